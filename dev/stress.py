"""
Kills a tiny training run with SIGKILL at random moments, again and again, and compares what it ends in with the run that
nobody touched: the losses in log.jsonl, the weights, the optimizer, the model folder, all bit for bit.

    python dev/stress.py               # 100 kills, some minutes
    python dev/stress.py --kills=1000 --seed=2
"""
import atexit
import json
import multiprocessing
import os
import random
import runpy
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch
from tqdm import tqdm

import checkpoint
import corpus
import dataset
import runlog
import tokenizer
from configurator import configure

kills = 100  # how many
seed = 1  # of the moments

TRAIN = ('--device=cpu', '--dtype=float32', '--n_layer=2', '--n_head=2', '--n_embd=64', '--block_size=32', '--batch_size=8',
         '--dropout=0.2', '--max_iters=120', '--warmup_iters=4', '--learning_rate=3e-3', '--eval_interval=20',
         '--checkpoint_interval=1', '--log_interval=5')


def _train(args, folder, environment, output):
    """One run of train.py, as `python train.py` would have it, in a process of its own that has imported torch already."""
    os.environ.update(environment)
    os.chdir(folder)
    with open(output, 'w') as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    torch.set_num_threads(1)
    runlog.RunLog.plot = lambda *args: None
    tqdm.set_lock(threading.RLock())  # its own lock, between processes, would outlive a killed one
    sys.argv, code = ['train.py', *args], 0
    try:
        runpy.run_path(os.path.join(ROOT, 'train.py'), run_name='__main__')
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            code = print(code, file=sys.stderr) or 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(args, folder, output='output.txt', **environment):
    """Start train.py in `folder`; a multiprocessing.Process. What it prints goes to the file `output` there."""
    context = multiprocessing.get_context('forkserver')  # a clean process imports torch once; each run is a fork of it
    context.set_forkserver_preload(['stress', 'distributed', 'optim', 'vocabulary', 'torch._dynamo', 'torch.distributed.fsdp'])
    process = context.Process(target=_train, args=(args, str(folder), environment, os.path.join(str(folder), output)))
    process.start()
    return process


def prepare(folder, songs):
    """A small dataset of characters, folder/small."""
    dataset.write(os.path.join(folder, 'small'), tokenizer.build_characters(songs), songs[8:], songs[:8])


def outcome(folder):
    """All that a run ends in, to be compared: its state, its model's bytes, its log without the times."""
    with open(os.path.join(folder, 'log.jsonl'), encoding='utf-8') as f:
        rows = [{k: v for k, v in json.loads(line).items() if k not in ('tokens_per_s', 'seconds')} for line in f]
    with open(os.path.join(folder, 'model.safetensors'), 'rb') as f:
        return rows, f.read(), checkpoint.load_state(folder)


def same(a, b):
    """Whether two nests of dicts, lists, tensors and values are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def stress(folder, args, kills, seed, show=lambda *row: None):
    """
    Run train.py with `args` twice in peace, then kill and resume until `kills` have hit. {what: how often}; show(number of
    kills, steps kept, where it hit) after each. Raises AssertionError where anything is lost.
    """
    dice, count = random.Random(seed), dict.fromkeys(('kills', 'while saving', 'before the first checkpoint', 'runs completed'), 0)
    for name in ('peace', 'again'):
        began = time.time()
        run = start([*args, f'--out_dir={name}'], folder)
        run.join()
        assert run.exitcode == 0, open(os.path.join(folder, 'output.txt')).read()
    seconds, wanted = time.time() - began, outcome(os.path.join(folder, 'peace'))
    assert same(wanted, outcome(os.path.join(folder, 'again'))), 'the same settings twice do not give the same'
    while count['kills'] < kills:
        out = os.path.join(folder, f'broken-{count["runs completed"]}')
        while True:
            there = os.path.exists(os.path.join(out, 'train_state.pt'))
            run = start([*args, f'--out_dir={out}', *['--init_from=resume'] * there], folder)
            run.join(dice.uniform(0, seconds) if count['kills'] < kills else None)
            if run.exitcode is not None:
                break
            run.kill()
            run.join()
            if run.exitcode == 0:  # it was quicker
                break
            count['kills'] += 1
            saving = os.path.isdir(out) and any(name.endswith('.tmp') for name in os.listdir(out))
            step = -1
            if os.path.exists(os.path.join(out, 'train_state.pt')):
                step = checkpoint.load_state(out)['step']
            if os.path.exists(os.path.join(out, 'model.safetensors')):
                checkpoint.load_model(out)
            count['while saving'] += saving
            count['before the first checkpoint'] += step < 0
            show(count['kills'], step, 'while saving' if saving else '')
        assert run.exitcode == 0, open(os.path.join(folder, 'output.txt')).read()
        assert same(wanted, outcome(out)), f'{out} differs from the run nobody touched'
        assert not [name for name in os.listdir(out) if name.endswith('.tmp')], 'half-written files are left'
        count['runs completed'] += 1
    return {**count, 'seconds of a run': round(seconds, 1)}


if __name__ == '__main__':
    configure(globals())
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder, corpus.read_songs('embedded'))
        began = time.time()
        count = stress(folder, [*TRAIN, '--dataset=small', f'--data_dir={folder}'], kills, seed,
                       lambda *row: print('kill {:4}  last checkpoint: step {:4}  {}'.format(*row), flush=True))
    print(f'\nAll runs equal the unbroken one bit for bit, after {time.time() - began:,.0f} s:')
    for what, how_often in count.items():
        print(f'  {what:30}{how_often:8}')
