"""
One process or several, on torch's own engine. torchrun starts the processes and tells each its number; here they meet,
share the work, and agree.

    torchrun --standalone --nproc_per_node=4 train.py ...            # each process holds the model (DDP)
    torchrun --standalone --nproc_per_node=4 train.py ... --fsdp     # each holds its part of it (FSDP2)

DDP averages gradients. FSDP2 also parts weights and optimizer state, for models too large for one card (arXiv
2304.11277). What is written to the disk is the same either way, so a run moves freely between them.
"""
import atexit
import datetime
import os
import sys

import torch
import torch.distributed as dist


def rank():
    """This process's number, from 0."""
    return int(os.environ.get('RANK', 0))  # torchrun sets it


def world():
    """How many processes there are."""
    return int(os.environ.get('WORLD_SIZE', 1))


def start(device, backend='auto'):
    """Meet the other processes, where there are any. Returns this process's device: cuda becomes a card of its own."""
    if world() == 1:
        return device
    if device == 'cuda':
        card = int(os.environ['LOCAL_RANK'])
        if card >= torch.cuda.device_count():
            raise SystemExit(f'--nproc_per_node asks for more processes than there are cards ({torch.cuda.device_count()}).')
        device = f'cuda:{card}'
        torch.cuda.set_device(device)
    if backend == 'nccl' or backend == 'auto' and device.startswith('cuda'):
        backend = 'cpu:gloo,cuda:nccl'  # gloo for small talk: it does not wait for the cards, and notices a dead process
    sys.excepthook = hook = _leave_at_once(sys.excepthook)
    dist.init_process_group('gloo' if backend == 'auto' else backend, timeout=datetime.timedelta(minutes=10))
    sys.excepthook = hook  # torch has put one around it, which prints only what it returns from
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return device


def _leave_at_once(hook):
    """An excepthook that names the process and waits for nobody: what joins the processes may wait for the dead."""
    def leave(kind, error, trace):
        if issubclass(kind, RuntimeError) and any(word in str(error) for word in ('gloo', 'NCCL', 'Gloo', 'TCPStore')):
            print(f'process {rank()}: the connection to the other processes broke, one of them has ended. Go on from the last '
                  'checkpoint with --init_from=resume.', file=sys.stderr)
        else:
            hook(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return leave


def share(gradient_accumulation_steps, batch_size):
    """
    (micro-batches, sequences in each) of this process: a step is gradient_accumulation_steps * batch_size sequences,
    however many processes share it.
    """
    if gradient_accumulation_steps % world() == 0:
        return gradient_accumulation_steps // world(), batch_size
    if batch_size % world() == 0:
        return gradient_accumulation_steps, batch_size // world()
    raise SystemExit(f'{world()} processes can share neither gradient_accumulation_steps={gradient_accumulation_steps} '
                     f'nor batch_size={batch_size} evenly.')


def agree(*values):
    """The largest of each value over all processes, so that all decide alike. Costs no wait for the device."""
    if world() == 1:
        return values
    values = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def total(x):
    """A small tensor's sum over all processes, on the CPU."""
    x = x.cpu()
    if world() > 1:
        dist.all_reduce(x)
    return x


def place(model, device, fsdp=False):
    """Bring the model to the device; with `fsdp`, in place, this process's part of every weight (then all is a DTensor)."""
    if not fsdp or world() == 1:
        return model.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # 1.5 s to import, for those alone who ask for it
    mesh = init_device_mesh(device.split(':')[0], (world(),))
    for part in (*model.transformer.h, model):  # a block is gathered when its turn comes, and let go after
        fully_shard(part, mesh=mesh)  # moves and cuts it: the card never holds the whole model
    return model


def join(module, device, fsdp=False):
    """What to call in training so that gradients are averaged: the module itself, or DDP around it."""
    if fsdp or world() == 1:  # FSDP's hooks are in the module
        return module
    from torch.nn.parallel import DistributedDataParallel
    return DistributedDataParallel(module, device_ids=[torch.device(device).index] if device.startswith('cuda') else None)


def is_part(x):
    """Whether a tensor is a DTensor, of which this process holds a part."""
    return hasattr(x, 'full_tensor')


def whole(tree, memo=None):
    """
    Dicts and lists of tensors with their parts put together. All processes must call it; all but the first get None in
    place of each parted tensor. One tensor under two names (a tied embedding) stays one.
    """
    memo = {} if memo is None else memo
    if isinstance(tree, dict):
        return {k: whole(v, memo) for k, v in tree.items()}
    if isinstance(tree, list):
        return [whole(v, memo) for v in tree]
    if not isinstance(tree, torch.Tensor):
        return tree
    if id(tree) not in memo:
        x = tree.detach()
        if is_part(x):
            x = x.full_tensor()
            x = x.cpu() if rank() == 0 else None
        memo[id(tree)] = x, tree  # holding the key keeps its id taken
    return memo[id(tree)][0]


def parted(saved, optimizer):
    """An optimizer's saved state_dict with each tensor cut as the optimizer's own weights are cut, if they are."""
    weights = [p for group in optimizer.param_groups for p in group['params']]
    for i, values in saved['state'].items():
        for key, x in values.items():
            if is_part(p := weights[i]) and x.shape == p.shape:
                from torch.distributed.tensor import distribute_tensor
                values[key] = distribute_tensor(x.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
    return saved
