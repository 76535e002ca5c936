"""The training loop: its losses, and what a run survives."""
import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch

import checkpoint
import dataset
import optim
from conftest import ROOT, TRAIN

# The losses of the first 20 steps of TRAIN, float32, written down when the tests were. A refactor keeps them.
GOLDEN = [4.89174, 4.89112, 4.86972, 4.83824, 4.85195, 4.79001, 4.74452, 4.75194, 4.70677, 4.63222, 4.57725, 4.58047, 4.58372,
          4.50074, 4.5189, 4.48073, 4.45793, 4.41357, 4.44075, 4.42038]


def rows(folder, key):
    """{step: value} of log.jsonl, where no step stands twice."""
    with open(os.path.join(folder, 'log.jsonl'), encoding='utf-8') as f:
        pairs = [(row['step'], row[key]) for row in map(json.loads, f) if key in row]
    assert len(dict(pairs)) == len(pairs), f'a step stands twice: {pairs}'
    return dict(pairs)


def state_of(folder):
    return checkpoint.load_state(str(folder))


def same(a, b):
    """Whether two saved states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def at_batch(monkeypatch, number, act):
    """Have act() called when the training loop asks for its batch number `number`, from 0."""
    calls, plain = iter(range(10**6)), dataset.batch

    def batch(*args):
        if next(calls) == number:
            act()
        return plain(*args)
    monkeypatch.setattr(dataset, 'batch', batch)


# --- losses -----------------------------------------------------------------------------------------------------------

def test_the_first_20_losses_are_the_ones_written_down(train, tmp_path):
    assert train().code == 0
    losses = list(rows(tmp_path / 'out-tiny', 'loss').values())
    assert losses == pytest.approx(GOLDEN, abs=1e-4), f'now {[round(x, 5) for x in losses]}'
    assert losses[-1] < losses[0] - 0.4, 'it learns'


def test_eval_interval_and_log_interval_change_nothing(train, tmp_path):
    """In nanoGPT evaluation draws from the training random stream."""
    train('--dropout=0.3')
    a = state_of(tmp_path / 'out-tiny')
    train('--dropout=0.3', '--eval_interval=3', '--log_interval=7', '--checkpoint_interval=4', '--out_dir=out-b')
    assert same(a['model'], state_of(tmp_path / 'out-b')['model'])


def test_gradient_accumulation_is_a_larger_batch(train, tmp_path):
    train('--dropout=0.0')
    train('--dropout=0.0', '--batch_size=2', '--gradient_accumulation_steps=2', '--out_dir=out-b')
    a, b = (rows(tmp_path / name, 'loss') for name in ('out-tiny', 'out-b'))
    assert b == pytest.approx(a, abs=1e-4)


def test_the_validation_loss_is_exact_and_that_of_the_saved_model(train, tmp_path, data_dir):
    """Each token of the whole split once, from the model in the folder: not random windows."""
    train()
    val = rows(tmp_path / 'out-tiny', 'val_loss')
    model, t = checkpoint.load_model(str(tmp_path / 'out-tiny'))
    ids = torch.tensor([t.eot_id, *dataset.load(os.path.join(data_dir, 'tiny'))[0]['val'].tolist()])
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(ids) - 1, 16):
            part = ids[i:i + 17]
            total += model.double()(part[None, :-1], part[None, 1:], reduction='none').sum().item()
    assert min(val.values()) == pytest.approx(total / (len(ids) - 1), abs=1e-4)


def test_the_folder_keeps_the_best_model_not_the_last(train, tmp_path):
    """nanoGPT's always_save_checkpoint overwrites the best with worse ones."""
    train('--learning_rate=0.3', '--min_lr=0.3', '--max_iters=30', '--eval_interval=2', '--warmup_iters=0')
    val = rows(tmp_path / 'out-tiny', 'val_loss')
    best = min(val, key=val.get)
    assert best < 30 and state_of(tmp_path / 'out-tiny')['best_val_loss'] == val[best]
    assert f'{val[best]:.4f}' in train('--init_from=out-tiny', '--eval_only', '--out_dir=out-b').out


@pytest.mark.parametrize('optimizer', ['adamw', 'muon', 'adamw8'])
def test_weights_decay_and_vectors_do_not(tiny, optimizer):
    model = tiny()
    groups = [g for o in optim.optimizers_for(model, optimizer, weight_decay=0.1) for g in o.param_groups]
    decayed = {id(p) for g in groups if g['weight_decay'] == 0.1 for p in g['params']}
    listed = [id(p) for g in groups for p in g['params']]
    assert decayed == {id(p) for p in model.parameters() if p.dim() == 2}
    assert sorted(listed) == sorted(id(p) for p in model.parameters()), 'each parameter once'


def test_the_learning_rate_warms_up_and_decays_to_its_floor():
    learning_rate_at = optim.learning_rate_at
    rates = [learning_rate_at(s, 1.0, 0.1, 4, 20) for s in range(25)]
    assert rates[:4] == pytest.approx([.2, .4, .6, .8]) and rates[4] == 1.0
    assert all(a > b for a, b in zip(rates[4:20], rates[5:21])) and rates[20:] == pytest.approx([0.1] * 5)
    assert rates[12] == pytest.approx(0.55), 'a cosine is half-way in the middle'
    assert learning_rate_at(12, 1.0, 0.1, 0, 20, 'none') == 1.0 and learning_rate_at(0, 1.0, 0.1, 0, 20) == 1.0


# --- stopped, killed, resumed -----------------------------------------------------------------------------------------

def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(train, tmp_path):
    """nanoGPT's resumed run repeats the first batches."""
    train('--dropout=0.3')
    train('--dropout=0.3', '--out_dir=out-b', '--max_iters=10', '--lr_decay_iters=20')
    result = train('--dropout=0.3', '--out_dir=out-b', '--init_from=resume')
    assert result.code == 0
    assert same(state_of(tmp_path / 'out-tiny'), state_of(tmp_path / 'out-b'))
    for key in ('loss', 'val_loss', 'lr', 'grad_norm'):
        assert rows(tmp_path / 'out-tiny', key) == rows(tmp_path / 'out-b', key)
    weights = [(tmp_path / name / 'model.safetensors').read_bytes() for name in ('out-tiny', 'out-b')]
    assert weights[0] == weights[1]


SCRIPT = '''
import os, runpy, sys
sys.path.insert(0, {root!r})
import torch, dataset, runlog
runlog.RunLog.plot = lambda *args: None
torch.set_num_threads(1)
calls, batch, replace = iter(range(10**6)), dataset.batch, os.replace

def kill_at_batch(*args):
    if next(calls) == {batch}:
        os.kill(os.getpid(), 9)
    return batch(*args)

saves = iter(range(10**6))

def kill_at_replace(source, target):
    if target.endswith('train_state.pt') and next(saves) == 2:
        os.kill(os.getpid(), 9)
    replace(source, target)
dataset.batch = kill_at_batch
if {at_save}:
    os.replace = kill_at_replace
sys.argv = ['train.py', *{args!r}]
runpy.run_path({root!r} + '/train.py', run_name='__main__')
'''


@pytest.mark.parametrize('at_save', [False, True], ids=['in the middle of a step', 'in the middle of a save'])
def test_a_killed_run_resumes_as_if_nothing_had_happened(train, tmp_path, data_dir, at_save):
    args = ['--dropout=0.3', '--eval_interval=7', '--checkpoint_interval=4']
    train(*args)
    code = SCRIPT.format(root=ROOT, batch=10**6 if at_save else 18, at_save=at_save,
                         args=[*TRAIN, f'--data_dir={data_dir}', *args, '--out_dir=out-b'])
    process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert state_of(tmp_path / 'out-b')['step'] in ((4, 7) if at_save else (16,))
    assert train(*args, '--out_dir=out-b', '--init_from=resume').code == 0
    assert same(state_of(tmp_path / 'out-tiny'), state_of(tmp_path / 'out-b'))
    assert rows(tmp_path / 'out-tiny', 'loss') == rows(tmp_path / 'out-b', 'loss'), 'no step is missing or stands twice'
    assert (tmp_path / 'out-tiny' / 'model.safetensors').read_bytes() == (tmp_path / 'out-b' / 'model.safetensors').read_bytes()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(train, tmp_path, monkeypatch, number):
    """Before the first evaluation the folder had no tokenizer yet, and resuming ended in a traceback."""
    train('--dropout=0.3')
    with monkeypatch.context() as patch:
        at_batch(patch, 6, lambda: os.kill(os.getpid(), number))
        result = train('--dropout=0.3', '--out_dir=out-b')
    assert result.code == 128 + number and 'Stopped at step 7 and saved' in result.out
    assert state_of(tmp_path / 'out-b')['step'] == 7
    assert train('--dropout=0.3', '--out_dir=out-b', '--init_from=resume').code == 0
    assert same(state_of(tmp_path / 'out-tiny')['model'], state_of(tmp_path / 'out-b')['model'])


def test_a_run_is_never_overwritten_unless_asked(train, tmp_path):
    train('--max_iters=3')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'out-tiny').iterdir()}
    result = train('--max_iters=3', '--seed=2')
    assert result.code and 'out-tiny holds a run already' in result.message and '--init_from=resume' in result.message
    assert {p.name: p.read_bytes() for p in (tmp_path / 'out-tiny').iterdir()} == before
    assert train('--max_iters=3', '--seed=2', '--overwrite').code == 0
    assert (tmp_path / 'out-tiny' / 'model.safetensors').read_bytes() != before['model.safetensors']


def test_a_finished_run_that_is_resumed_says_so_and_changes_nothing(train, tmp_path):
    train('--max_iters=3')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'out-tiny').iterdir()}
    result = train('--max_iters=3', '--init_from=resume')
    assert result.code == 0 and 'nothing to do' in result.out
    assert {p.name: p.read_bytes() for p in (tmp_path / 'out-tiny').iterdir()} == before


def test_resuming_what_is_not_there_ends_in_one_line(train):
    result = train('--init_from=resume')
    assert result.code and 'no run to resume' in result.message


# --- what goes wrong --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('interval', [1, 10])
def test_a_loss_that_is_no_number_stops_with_a_line_and_the_last_checkpoint_intact(train, tmp_path, interval):
    """
    With an evaluation after every step, the step that broke the weights still had a finite loss of its own: the weights
    behind it were saved over the last good train_state.pt, and resuming could only begin from broken weights.
    """
    train('--max_iters=4', '--eval_interval=2')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'out-tiny').iterdir()}
    result = train('--init_from=resume', '--learning_rate=1e30', '--warmup_iters=0', f'--eval_interval={interval}',
                   '--log_interval=1')
    assert result.code and 'Training stops' in result.message and '\n' not in result.message
    assert 'learning_rate' in result.message and 'nan' in result.message
    for name in ('train_state.pt', 'model.safetensors', 'config.json'):
        assert (tmp_path / 'out-tiny' / name).read_bytes() == before[name], name
    assert train('--init_from=resume').code == 0, 'from there training goes on'


@pytest.mark.parametrize('free', [0, 8 << 10, 20 << 10])
def test_a_full_disk_stops_with_a_line_and_the_last_checkpoint_intact(train, small_disk, free):
    folder = small_disk / 'out-full'
    args = [f'--out_dir={folder}', '--n_embd=8', '--n_layer=1', '--eval_interval=1']
    result = train(*args, '--max_iters=1')
    assert result.code == 0, result
    before = {name: (folder / name).read_bytes() for name in ('train_state.pt', 'model.safetensors', 'log.jsonl')}
    with pytest.raises(OSError), open(small_disk / 'other', 'wb', buffering=0) as f:
        while f.write(bytes(512)):
            pass
    os.truncate(small_disk / 'other', max(0, os.path.getsize(small_disk / 'other') - free))
    result = train(*args, '--max_iters=9', '--init_from=resume')
    assert result.code and re.search('No space left|could not be written', result.message) and '\n' not in result.message
    for name in ('train_state.pt', 'model.safetensors'):
        assert (folder / name).read_bytes() == before[name], name
    assert (folder / 'log.jsonl').read_bytes()[:len(before['log.jsonl'])] == before['log.jsonl']
    os.remove(small_disk / 'other')
    result = train(*args, '--max_iters=2', '--init_from=resume')
    assert result.code == 0 and state_of(folder)['step'] == 2, 'with room again, the run goes on'


@pytest.mark.parametrize('args, says', [
    (['--dataset=nothing'], 'prepare.py'),
    (['--block_size=100000'], 'fewer than one block of 100000'),
    (['--init_from=out-nowhere'], 'out-nowhere'),
    (['--dtype=float8'], 'dtype=float8'),
    (['--n_head=3'], 'n_head'),
    (['--batch_size=0'], 'batch_size'),
    (['--eval_interval=0'], 'eval_interval'),
    (['--log_interval=0'], 'log_interval'),
    (['--gradient_accumulation_steps=0'], 'gradient_accumulation_steps'),
    (['--n_layer=0'], 'n_layer'),
    (['--block_size=0'], 'block_size'),
    (['--dropout=2.0'], 'dropout'),
    (['--decay=sine'], 'decay'),
    (['--optimizer=sgd'], 'optimizer'),
    (['--device=quantum'], 'device'),
])
def test_a_setting_that_cannot_be_ends_in_one_line_before_anything_is_written(train, tmp_path, args, says):
    result = train(*args)
    assert result.code and says in result.message and '\n' not in result.message
    left = os.listdir(tmp_path / 'out-tiny') if (tmp_path / 'out-tiny').exists() else []
    assert not {'train_state.pt', 'model.safetensors', 'log.jsonl'} & {*left}


def test_a_model_with_another_tokenizer_than_the_dataset_is_refused(train, tmp_path, tiny, characters):
    checkpoint.save_model(str(tmp_path / 'out-other'), tiny(vocab_size=characters.vocab_size), characters)
    result = train('--init_from=out-other')
    assert result.code and 'another tokenizer' in result.message


# --- what a run leaves ------------------------------------------------------------------------------------------------

def test_a_run_leaves_a_model_folder_a_log_and_a_plot(train, tmp_path, data_dir):
    result = train(plot=True)
    folder = tmp_path / 'out-tiny'
    assert {'config.json', 'generation_config.json', 'log.jsonl', 'loss.png', 'model.safetensors', 'run.json', 'tokenizer.json',
            'tokenizer_config.json', 'train_state.pt'} <= {*os.listdir(folder)} and not list(folder.glob('*.tmp'))
    assert (folder / 'loss.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    assert list(rows(folder, 'loss')) == list(range(1, 21)) and list(rows(folder, 'val_loss')) == [10, 20]
    told = json.loads((folder / 'run.json').read_text(encoding='utf-8'))
    assert told['settings']['learning_rate'] == 1e-2 and told['torch'] == torch.__version__
    assert told['dataset']['train']['sha256'] == json.load(open(os.path.join(data_dir, 'tiny', 'meta.json')))['train']['sha256']
    assert 'learning_rate=0.01' in result.out and 'parameters' in result.out and 'completion.py' in result.out
    assert not [p for p in tmp_path.iterdir() if p.name != 'out-tiny'], 'nothing is written elsewhere'


def test_patience_stops_when_validation_no_longer_improves(train, tmp_path):
    args = ('--learning_rate=0.3', '--min_lr=0.3', '--warmup_iters=0', '--eval_interval=1', '--patience=3')
    result = train(*args, '--max_iters=200')
    val = rows(tmp_path / 'out-tiny', 'val_loss')
    best = min(val, key=val.get)
    assert result.code == 0 and 'No better validation loss in 3 evaluations' in result.out
    assert max(val) == best + 3 < 200
    train(*args, f'--max_iters={best + 2}', '--out_dir=out-b')
    train(*args, '--max_iters=200', '--init_from=resume', '--out_dir=out-b')
    assert rows(tmp_path / 'out-b', 'val_loss') == val, 'a resumed run remembers how long it has been waiting'


def test_eval_only_prints_the_loss_and_writes_nothing(train, tmp_path):
    result = train('--eval_only')
    assert result.code == 0 and 'validation loss' in result.out and not (tmp_path / 'out-tiny').exists()


def test_fine_tuning_begins_where_the_other_model_ended(train, tmp_path):
    train()
    result = train('--init_from=out-tiny', '--out_dir=out-b', '--max_iters=2', '--learning_rate=1e-9', '--min_lr=1e-9')
    assert result.code == 0
    best = min(rows(tmp_path / 'out-tiny', 'val_loss').values())
    assert rows(tmp_path / 'out-b', 'val_loss')[2] == pytest.approx(best, abs=1e-4)


def test_wandb_works_offline(train, tmp_path):
    result = train('--max_iters=2', '--wandb_log', '--wandb_run_name=test')
    assert result.code == 0, result
    import wandb
    wandb.finish()
    assert list((tmp_path / 'out-tiny').rglob('*.wandb'))


def test_two_processes_take_the_same_steps_as_one(train, tmp_path, data_dir):
    train('--dropout=0.0', '--max_iters=4', '--eval_interval=2')
    args = [*TRAIN, f'--data_dir={data_dir}', '--dropout=0.0', '--max_iters=4', '--eval_interval=2', '--out_dir=out-b']
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    code = SCRIPT.format(root=ROOT, batch=10**6, at_save=False, args=args)  # no kill: train.py without its plots
    processes = [subprocess.Popen(  # as torchrun starts them
        [sys.executable, '-c', code], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'WORLD_SIZE': '2', 'RANK': str(rank), 'LOCAL_RANK': str(rank),
             'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}) for rank in (0, 1)]
    try:
        errors = [p.communicate(timeout=90)[1].decode() for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], errors
    for key in ('loss', 'val_loss'):
        assert rows(tmp_path / 'out-b', key) == pytest.approx(rows(tmp_path / 'out-tiny', key), abs=1e-4)


def test_resuming_with_other_steps_is_told(train):
    """It went on in silence, with other data and another loss than the run it had been."""
    assert train('--max_iters=2').code == 0
    assert 'A step was 4 sequences (epochs) so far, and is 8 (epochs)' in train('--init_from=resume', '--max_iters=4', '--batch_size=8').out
    assert 'A step was' not in train('--init_from=resume', '--max_iters=6', '--batch_size=2', '--gradient_accumulation_steps=4').out


@pytest.mark.parametrize('before, after', [('adamw', 'muon'), ('muon', 'adamw8'), ('adamw8', 'adamw')])
def test_resuming_with_another_optimizer_ends_in_one_line(train, before, after):
    """It ended in a KeyError, somewhere in torch."""
    assert train('--max_iters=2', f'--optimizer={before}', '--dtype=auto').code == 0
    result = train('--init_from=resume', '--max_iters=4', f'--optimizer={after}', '--dtype=auto')
    assert result.code == 1 and f'has used {before}' in result.message and '\n' not in result.message


# --- AdamW8 -----------------------------------------------------------------------------------------------------------

def test_adamw8_takes_adamws_steps_but_for_its_rounding():
    """Ten thousand weights under noisy gradients: the mean way is AdamW's to a hundredth, in steps bfloat16 cannot hold."""
    torch.manual_seed(0)
    start = torch.full((10_000,), 1.0)
    ways = []
    for kind in (torch.optim.AdamW, optim.AdamW8):
        p = start.clone().to(torch.bfloat16 if kind is optim.AdamW8 else torch.float32).requires_grad_()
        o, noise = kind([p], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1), torch.Generator().manual_seed(1)
        for _ in range(50):
            p.grad = (0.01 + 0.02 * torch.randn(p.shape, generator=noise)).to(p.dtype)
            o.step()
        ways.append((p.detach().float() - start).mean().item())
    assert ways[0] < -1e-3 and ways[1] == pytest.approx(ways[0], rel=0.02), 'a step of 1e-4 is a 40th of what bfloat16 resolves at 1'


def test_adamw8_keeps_seven_bytes_a_weight_and_its_state_reloads_as_it_was():
    p = torch.randn(300, 5).to(torch.bfloat16).requires_grad_()
    runs = []
    o = optim.AdamW8([p], lr=1e-2, betas=(0.9, 0.99))
    for n in range(3):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(n)).to(p.dtype)
        o.step()
    tensors = [p, p.grad, *(x for x in o.state[p].values() if isinstance(x, torch.Tensor))]
    assert sum(x.numel() * x.element_size() for x in tensors) == 7 * p.numel()
    saved, at = copy.deepcopy(o.state_dict()), p.detach().clone()
    for fresh in (o, optim.AdamW8([p], lr=1e-2, betas=(0.9, 0.99))):
        if fresh is not o:
            p.data.copy_(at)
            fresh.load_state_dict(saved)
            assert fresh.state[p]['ratio'].dtype == torch.int8
        torch.manual_seed(len(runs))  # whatever else draws random numbers
        p.grad = torch.ones_like(p)
        fresh.step()
        runs.append(p.detach().clone())
    assert torch.equal(*runs)


def test_adamw8_trains_resumes_and_evaluates_as_it_saved(train, tmp_path):
    options = ('--optimizer=adamw8', '--dtype=auto')
    assert train(*options).code == 0
    assert train(*options, '--out_dir=out-b', '--max_iters=10', '--lr_decay_iters=20').code == 0
    assert train(*options, '--out_dir=out-b', '--init_from=resume').code == 0
    a, b = (rows(tmp_path / name, 'val_loss') for name in ('out-tiny', 'out-b'))
    assert a == b and a[20] < a[10]
    again = train('--init_from=out-tiny', '--out_dir=out-c', '--eval_only').out  # in float32
    assert float(re.search('validation loss ([0-9.]+)', again)[1]) == pytest.approx(min(a.values()), abs=0.01)


def test_adamw8_refuses_what_it_cannot_do(train):
    for flags in (('--dtype=float32',), ('--dtype=bfloat16', '--fsdp')):
        result = train('--optimizer=adamw8', *flags)
        assert result.code == 1 and 'adamw8 goes with' in result.message
    for beta1, beta2 in ((0.95, 0.9), (0.9, 1.0), (0.9, 0.0)):
        result = train('--optimizer=adamw8', '--dtype=bfloat16', f'--beta1={beta1}', f'--beta2={beta2}')
        assert result.code == 1 and 'adamw8 needs' in result.message
