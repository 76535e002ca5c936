"""
Trains a lyric GPT, from scratch or from any GPT-2, on the CPU, one GPU or several.

    python train.py config/quickstart.py                                     # minutes on a laptop
    python train.py config/train_lyric_char.py --batch_size=32               # flags override the config
    python train.py config/train_lyric_char.py --init_from=resume            # go on where it stopped
    torchrun --standalone --nproc_per_node=4 train.py config/train_lyric_char.py    # --fsdp: too large for one card

Writes a Hugging Face model folder (out_dir) with the weights of the best validation loss, and train_state.pt beside
them, from which a stopped or killed run goes on exactly as if nothing had happened. Ctrl-C saves and leaves.
"""
import math
import os
import signal
import sys
import time
from contextlib import nullcontext

# before torch: on a busy machine, threads that spin while they wait make small operations 40 times slower
os.environ.setdefault('GOMP_SPINCOUNT', '2000')
import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import dataset as datasets
import distributed
import files
import machine
import optim
import tokenizer as tokenizers
import vocabulary
from configurator import at_least, configure
from inference import score
from model import GPT, GPTConfig
from runlog import RunLog

# where from, where to
out_dir = 'out'  # the model folder
dataset = 'lyric_char'  # a folder in data/ that its prepare.py filled
data_dir = ''  # folder of all datasets; '' = data/ of this project
init_from = 'scratch'  # 'scratch', 'resume', or a GPT-2 to fine-tune: a model folder or a hub id
new_vocabulary = False  # True: give the GPT-2 the dataset's vocabulary in place of its own
overwrite = False  # True: start over in an out_dir that holds a run already
# model (scratch only; dropout always)
n_layer = 8  # blocks
n_head = 8  # attention heads in each
n_embd = 512  # width, a multiple of n_head
block_size = 1024  # longest context, tokens; a pretrained model may be cut to less
dropout = 0.2  # on embeddings, attention and MLP outputs; 0.0 = off
attn_dropout = 0.0  # on attention weights; above 0 it forbids the fast kernels
bias = False  # biases in Linear and LayerNorm
# optimisation
seed = 1337  # of weights, dropout and the order of the data
order = 'epochs'  # of the training windows: epochs, each window once; or random, anywhere, as nanoGPT draws them
batch_size = 64  # sequences in a micro-batch, over all processes
gradient_accumulation_steps = 1  # micro-batches in a step, over all processes
max_iters = 20000  # steps in all
optimizer = 'adamw'  # adamw; muon, for the hidden matrices; or adamw8, bfloat16 weights and small states: a third of the memory
learning_rate = 1e-3  # the highest
embedding_lr = 1.0  # that of the embeddings, as a multiple
min_lr = 1e-4  # the last
decay = 'cosine'  # from the one to the other: cosine, linear, or none
warmup_iters = 100  # steps of linear warm-up before; 0 = off
lr_decay_iters = 0  # step at which min_lr is reached; 0 = max_iters
weight_decay = 0.1  # of matrices and embeddings
beta1 = 0.9  # AdamW
beta2 = 0.99  # AdamW
grad_clip = 1.0  # largest gradient norm; 0.0 = off
# evaluation, log, checkpoints
eval_interval = 250  # steps between exact passes over the validation split
eval_only = False  # evaluate once and leave
patience = 0  # stop after so many evaluations without a better loss; 0 = never
log_interval = 10  # steps between lines of log.jsonl
checkpoint_interval = 0  # steps between saves of train_state.pt, besides those at evaluations; 0 = off
checkpoint_minutes = 10.0  # the same in minutes; 0.0 = off
wandb_log = False  # log to Weights & Biases (WANDB_MODE=offline works)
wandb_project = 'thuclgpt'  # its project
wandb_run_name = ''  # its run; '' = out_dir
# machine
device = 'auto'  # auto, cpu, cuda, cuda:1, mps
dtype = 'auto'  # of matrix products: auto, float32, bfloat16, float16
compile = False  # torch.compile; pays on GPUs
gradient_checkpointing = False  # recompute blocks in the backward pass: less memory, a third slower
fsdp = False  # several processes part weights and optimizer state among them
backend = 'auto'  # of torch.distributed; auto = nccl on CUDA, else gloo
settings = configure(globals())
at_least(1, settings, 'n_layer', 'n_head', 'n_embd', 'block_size', 'batch_size', 'gradient_accumulation_steps', 'eval_interval',
         'log_interval')
at_least(0, settings, 'dropout', 'attn_dropout')
if n_embd % n_head:
    raise SystemExit(f'--n_embd={n_embd}: must be a multiple of n_head={n_head}.')
if max(dropout, attn_dropout) >= 1:
    raise SystemExit(f'--dropout={dropout} --attn_dropout={attn_dropout}: must be below 1.')
for name, allowed in (('decay', ('cosine', 'linear', 'none')), ('order', ('epochs', 'random'))):
    if settings[name] not in allowed:
        raise SystemExit(f'--{name}={settings[name]}: must be {" or ".join(allowed)}.')

# --- one process or several -------------------------------------------------------------------------------------------

rank, world = distributed.rank(), distributed.world()
master = rank == 0  # the process that prints and writes
micro_steps, micro_batch = distributed.share(gradient_accumulation_steps, batch_size)
if init_from == 'scratch' and os.path.exists(os.path.join(out_dir, 'train_state.pt')) and not (overwrite or eval_only):
    raise SystemExit(f'{out_dir} holds a run already: go on with --init_from=resume, or start over with --overwrite.')
if master and not eval_only and os.path.isdir(out_dir):
    files.hold(out_dir)  # before its state is read
device = distributed.start(machine.pick_device(device), backend)

# --- data, model, optimizer -------------------------------------------------------------------------------------------

data_folder = datasets.folder_of(dataset, data_dir)
data, meta = datasets.load(data_folder)
tokenizer = tokenizers.load(os.path.join(data_folder, 'tokenizer.json'))
machine.keep_freed_memory()
torch.manual_seed(seed)
state, own_tokenizer = None, tokenizer  # own: the one the model was trained with
made_of = {'train.bin': meta['train']['sha256'], 'tokenizer.json': files.sha256(os.path.join(data_folder, 'tokenizer.json'))}
if init_from == 'scratch':
    model = GPT(GPTConfig(block_size, tokenizer.vocab_size, n_layer, n_head, n_embd, dropout, attn_dropout, bias))
elif init_from == 'resume':
    state = checkpoint.load_state(out_dir)
    if not isinstance(state, dict) or state.get('made_of') != made_of:
        raise SystemExit(f'{dataset} is not what the run of {out_dir}/train_state.pt began with. To train its model on other data, '
                         f'give --init_from={out_dir} and a new --out_dir.')
    model = GPT(GPTConfig(**{**state['config'], 'dropout': dropout, 'attn_dropout': attn_dropout}))
    model.load_state_dict(state['model'])
else:
    model, own_tokenizer = checkpoint.load_model(init_from, dropout=dropout, attn_dropout=attn_dropout, block_size=block_size)
    if new_vocabulary:
        copied = vocabulary.replace(model, own_tokenizer, tokenizer)
        print(f'{copied:.0%} of the {tokenizer.vocab_size:,} new rows are rows of {init_from}, the others means of some')
        own_tokenizer = tokenizer
if own_tokenizer.hf.to_str() != tokenizer.hf.to_str():
    raise SystemExit(f'{dataset} was encoded with another tokenizer ({tokenizer.kind}, {tokenizer.vocab_size:,}) than the model '
                     f'of {init_from} has ({own_tokenizer.kind}, {own_tokenizer.vocab_size:,}).')
block_size = model.config.block_size
if len(data['train']) <= block_size:
    raise SystemExit(f'{dataset} has {len(data["train"]):,} training tokens, fewer than one block of {block_size}.')
model.gradient_checkpointing = gradient_checkpointing
number = machine.pick_dtype(dtype if dtype != 'auto' or optimizer != 'adamw8' else 'bfloat16', device)
if optimizer == 'adamw8':  # no float32 weights anywhere, so nothing to cast
    if fsdp or number != torch.bfloat16:
        raise SystemExit(f'--optimizer=adamw8 goes with --dtype=bfloat16 and without --fsdp; here dtype is {dtype}, fsdp {fsdp}. '
                         'There is --optimizer=adamw.')
    if not beta1 ** 2 < beta2 < 1:
        raise SystemExit(f'--beta1={beta1} --beta2={beta2}: adamw8 needs beta1 * beta1 < beta2 < 1.')
    model = model.to(torch.bfloat16)
model = distributed.place(model, device, fsdp)
optimizers = optim.optimizers_for(model, optimizer, learning_rate, weight_decay, (beta1, beta2))
if fsdp and number == torch.float16:
    raise SystemExit('--fsdp does not go with --dtype=float16, whose scaler would have to agree: take bfloat16 or float32.')
autocast = nullcontext() if number == torch.float32 or optimizer == 'adamw8' else torch.autocast(device.split(':')[0], dtype=number)
scaler = torch.amp.GradScaler(device.split(':')[0], enabled=number == torch.float16)
step, best_val_loss, worse = 0, math.inf, 0  # worse: evaluations since the best one
batches = [gradient_accumulation_steps * batch_size, order]
if state:
    if state.get('optimizer', optimizer) != optimizer:
        raise SystemExit(f'--optimizer={optimizer}: the run of {out_dir} has used {state["optimizer"]}, whose state another cannot take over.')
    for o, saved in zip(optimizers, state['optimizers'], strict=True):
        o.load_state_dict(distributed.parted(saved, o))
    scaler.load_state_dict(state['scaler'])
    step, best_val_loss, worse = state['step'], state['best_val_loss'], state['worse']
    before, now = state.get('batches', batches), batches
    if before != now and master:
        print('A step was {} sequences ({}) so far, and is {} ({}) from here on: not the run it was.'.format(*before, *now))
    del state, saved
forward = distributed.join(torch.compile(model) if compile else model, device, fsdp)


def validate():
    """Exact validation loss, nats a token: the whole split, each token predicted once; the processes share the work."""
    ids = np.concatenate([[tokenizer.eot_id], data['val']])
    blocks = [ids[i:i + block_size + 1] for i in range(0, len(ids) - 1, block_size)]
    mine = blocks[rank::world]
    padding = blocks[:-(-len(blocks) // world) - len(mine)]  # FSDP's processes compute in step: to each as many blocks
    with autocast:
        nll = score(model, mine + padding, batch_size=max(1, min(micro_batch, 16384 // block_size)))
    return distributed.total(torch.tensor(sum(x.sum() for x in nll[:len(mine)]), dtype=torch.float64)).item() / (len(ids) - 1)


def save(best=False):
    """Write train_state.pt, all that resuming needs; and before it, if it is the best so far, the model folder."""
    weights = distributed.whole(model.state_dict(keep_vars=True))
    adapted = distributed.whole([o.state_dict() for o in optimizers])
    if master and best:
        checkpoint.save_model(out_dir, model, tokenizer, weights)
    if master:
        checkpoint.save_state(out_dir, {'model': weights, 'optimizers': adapted, 'scaler': scaler.state_dict(), 'made_of': made_of,
                                        'config': vars(model.config), 'step': step, 'best_val_loss': best_val_loss, 'worse': worse,
                                        'optimizer': optimizer, 'batches': batches})


def say(text):
    """Print a line, above the progress bar where there is one."""
    if master:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def check(losses, norms):
    """End the run, in all processes, where a loss or gradient norm of the last steps is no number; best before saving."""
    for i, (loss, norm) in enumerate(zip(losses, norms), step - len(losses) + 1):
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaler.is_enabled()):
            bar.close()
            raise SystemExit(f'Step {i}: loss {loss}, gradient norm {norm}. Training stops; what {out_dir} holds is intact. A lower '
                             'learning_rate or more warmup_iters may help.' if master else 1)


# --- what is about to happen ------------------------------------------------------------------------------------------

step_tokens = gradient_accumulation_steps * batch_size * block_size
c = model.config
say(f'{out_dir}: {init_from}, step {step:,} of {max_iters:,}\n'
    f'  data     {dataset}: {tokenizer.kind}, vocabulary {tokenizer.vocab_size:,}; train {len(data["train"]):,} tokens, '
    f'val {len(data["val"]):,}\n'
    f'  model    {c.n_layer} layers, {c.n_head} heads, {c.n_embd} wide, block {c.block_size}: {model.count_parameters():,} parameters\n'
    f'  step     {gradient_accumulation_steps} * {batch_size} sequences * {block_size} tokens = {step_tokens:,} tokens; '
    f'an epoch is {len(data["train"]) / step_tokens:.1f} steps\n'
    f'  machine  {device}, {str(number)[6:]}, {world} process{"es" * (world > 1)} of {torch.get_num_threads()} threads\n'
    + '\n'.join('  ' + '  '.join(f'{k}={v}' for k, v in list(settings.items())[i:i + 6]) for i in range(0, len(settings), 6)))
if eval_only:
    say(f'validation loss {validate():.4f} nats a token')
    raise SystemExit(0)
if step >= max_iters:
    say(f'{out_dir} is at step {step:,} of {max_iters:,}: nothing to do.')
    raise SystemExit(0)
if master:
    files.hold(out_dir)
    log = RunLog(out_dir, step, settings, meta)
    if wandb_log:
        log.to_wandb(wandb_project, wandb_run_name)
if init_from != 'resume':
    save()  # a full or read-only disk shows now, and a run killed before its first checkpoint can be resumed too

# --- the training loop ------------------------------------------------------------------------------------------------

stop_signal = 0


def ask_to_stop(signum, frame):
    """First signal: finish this step, save, leave. A second one leaves at once."""
    global stop_signal
    stop_signal = signum
    signal.signal(signum, signal.SIG_DFL)


for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, ask_to_stop)
bar = tqdm(total=max_iters, initial=step, unit='step', dynamic_ncols=True, disable=not (master and sys.stderr.isatty()))
pending, mark, last_save, val_note = [], (step, time.time()), time.time(), ''
model.train()
while step < max_iters:
    lr = optim.learning_rate_at(step, learning_rate, min_lr, warmup_iters, lr_decay_iters or max_iters, decay)
    for group in (g for o in optimizers for g in o.param_groups):
        group['lr'] = lr if group['body'] else embedding_lr * lr
    torch.manual_seed(seed + 1_000_003 * step + 7919 * rank)  # dropout, too, is a function of (seed, step)
    first = step * gradient_accumulation_steps * batch_size + rank * micro_batch  # this process's share of the step
    loss_sum = 0.0
    for micro in range(micro_steps):
        x, y = datasets.batch(data['train'], first + micro * micro_batch * world, micro_batch, block_size, seed,
                              order)
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with forward.no_sync() if hasattr(forward, 'no_sync') and micro < micro_steps - 1 else nullcontext():  # gradients meet once a step
            with autocast:
                loss = forward(x, y) / micro_steps
            scaler.scale(loss).backward()
        loss_sum += loss.detach()
    for o in optimizers:
        scaler.unscale_(o)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    norm = norm.full_tensor() if distributed.is_part(norm) else norm
    for o in optimizers:
        scaler.step(o)
        o.zero_grad(set_to_none=True)
    scaler.update()
    step += 1
    bar.update(1)
    pending.append(torch.stack([loss_sum, norm]))
    timed = checkpoint_minutes and time.time() - last_save > 60 * checkpoint_minutes
    stop, timed = distributed.agree(stop_signal, timed)
    evaluate = step % eval_interval == 0 or step == max_iters
    save_now = evaluate or stop or timed or (checkpoint_interval and step % checkpoint_interval == 0)
    if save_now or step % log_interval == 0:  # the one place that waits for the device
        losses, norms = (distributed.total(torch.stack(pending)) / world).T.tolist()
        check(losses, norms)
        speed = (step - mark[0]) * step_tokens / (time.time() - mark[1])
        pending, mark = [], (step, time.time())
        bar.set_postfix_str(f'loss {losses[-1]:.3f}{val_note}, {speed:,.0f} tokens/s')
        if master:
            log.add(step=step, loss=sum(losses) / len(losses), worst_loss=max(losses), grad_norm=max(norms), lr=lr,
                    tokens_per_s=round(speed))
    if evaluate:
        val_loss = validate()
        check([val_loss], norms[-1:])
        better = val_loss < best_val_loss
        best_val_loss, worse = (val_loss, 0) if better else (best_val_loss, worse + 1)
        val_note = f', val {val_loss:.3f}'
        say(f'step {step:>6,}  loss {losses[-1]:.4f}  val loss {val_loss:.4f}{" *" * better:2}  {speed:,.0f} tokens/s')
        if master:
            log.add(step=step, val_loss=val_loss)
            log.plot(f'loss (nats a token, {tokenizer.kind})')
    if save_now:
        save(best=evaluate and better)
        last_save, mark = time.time(), (step, time.time())
    if stop:
        bar.close()
        say(f'Stopped at step {step:,} and saved; go on with --init_from=resume.')
        raise SystemExit(128 + int(stop))
    if patience and worse >= patience:
        say(f'No better validation loss in {patience} evaluations: stopping early.')
        break
bar.close()
say(f'{out_dir}: best validation loss {best_val_loss:.4f} nats a token. Next: python completion.py --out_dir={out_dir}')
