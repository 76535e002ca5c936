"""
What a run can be trusted with: it is killed, locked out, moved between processes, its disk vanishes, its files are
hostile. Each run is a process of its own, forked from one that has imported torch. `dev/stress.py` kills many more.
"""
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import sys
import tarfile
import time
import zipfile

import pytest
import torch

import checkpoint
import corpus
from conftest import ROOT, SONGS, TRAIN

sys.path.insert(0, os.path.join(ROOT, 'dev'))
import stress

LONG = ('--max_iters=100000', '--eval_interval=50000', '--checkpoint_interval=5')  # a run that does not end by itself

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks processes that have imported torch')


@pytest.fixture
def start(tmp_path, data_dir):
    """start('--max_iters=5', ..., processes=2): the processes of a run; what each prints goes to output-<rank>.txt."""
    started = []

    def start(*args, processes=1):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = str(s.getsockname()[1])
        run = [stress.start([*TRAIN, '--dropout=0.0', f'--data_dir={data_dir}', *args], tmp_path, f'output-{rank}.txt', **({} if processes == 1 else {
            'WORLD_SIZE': str(processes), 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}))
            for rank in range(processes)]
        started.extend(run)
        return run
    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def end(tmp_path):
    """end(run): waits; the exit codes, and the last line of each process."""
    def end(run, seconds=60):
        last = time.monotonic() + seconds
        for process in run:
            process.join(max(0, last - time.monotonic()))
        codes = [process.exitcode for process in run]
        assert None not in codes, f'{codes}: a process hangs'
        lines = [(tmp_path / f'output-{rank}.txt').read_text().strip().splitlines() or [''] for rank in range(len(run))]
        return codes, [line[-1] for line in lines]
    return end


def until(there, seconds=60):
    last = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < last, 'waited in vain'
        time.sleep(0.01)


def rows(folder):
    """{(step, figure): value} of log.jsonl."""
    with open(os.path.join(folder, 'log.jsonl'), encoding='utf-8') as f:
        return {(row['step'], key): row[key] for row in map(json.loads, f) for key in ('loss', 'val_loss', 'grad_norm') if key in row}


def shapes(tree):
    """A saved state with each tensor replaced by its type and shape."""
    if isinstance(tree, torch.Tensor):
        return type(tree), tree.dtype, tree.shape
    if isinstance(tree, dict):
        return {k: shapes(v) for k, v in tree.items()}
    return [shapes(v) for v in tree] if isinstance(tree, (list, tuple)) else type(tree)


# --- killed -----------------------------------------------------------------------------------------------------------

def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(tmp_path, data_dir):
    args = [*TRAIN, f'--data_dir={data_dir}', '--dropout=0.3', '--max_iters=30', '--eval_interval=6', '--checkpoint_interval=1']
    count = stress.stress(str(tmp_path), args, kills=4, seed=3)
    assert count['kills'] == 4 and count['runs completed'] >= 1


# --- one process or several -------------------------------------------------------------------------------------------

def test_a_run_moves_between_one_process_and_two_and_between_ddp_and_fsdp(start, end, tmp_path):
    """Losses to 1e-5 in float32; the files are the same kind whoever wrote them."""
    args = ['--eval_interval=3', '--lr_decay_iters=15', '--batch_size=2', '--gradient_accumulation_steps=3',
            '--block_size=24']  # 64 validation tokens are 3 blocks: two for one process, one for the other, one at a time
    assert end(start('--max_iters=15', '--out_dir=one', *args)) [0] == [0]
    for last, processes, fsdp in ((3, 1, ''), (6, 2, ''), (9, 2, '--fsdp'), (12, 1, ''), (15, 2, '--fsdp')):
        run = start(f'--max_iters={last}', '--out_dir=moved', f'--init_from={"resume" if last > 3 else "scratch"}', *args,
                    *filter(None, [fsdp]), processes=processes)
        codes, lines = end(run)
        assert codes == [0] * processes, lines
    one, moved = rows(tmp_path / 'one'), rows(tmp_path / 'moved')
    assert one.keys() == moved.keys() and max(abs(one[k] - moved[k]) for k in one) < 1e-5
    one, moved = (checkpoint.load_state(str(tmp_path / name)) for name in ('one', 'moved'))
    assert shapes(one) == shapes(moved)
    assert moved['model']['lm_head.weight'].data_ptr() == moved['model']['transformer.wte.weight'].data_ptr(), 'stored once'
    assert max((one['model'][k] - moved['model'][k]).abs().max() for k in one['model']) < 1e-5
    a, b = (checkpoint.load_model(str(tmp_path / name))[0].state_dict() for name in ('one', 'moved'))
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-5


def test_muon_and_fsdp_go_together(start, end, tmp_path):
    """Muon multiplies in bfloat16, so that gradients which differ in the last bit move the losses by 1e-4."""
    args = ['--optimizer=muon', '--max_iters=4', '--eval_interval=4']
    assert end(start('--out_dir=one', *args))[0] == [0]
    codes, lines = end(start('--out_dir=two', '--fsdp', *args, processes=2))
    assert codes == [0, 0], lines
    one, two = rows(tmp_path / 'one'), rows(tmp_path / 'two')
    assert max(abs(one[k] - two[k]) for k in one) < 1e-2


def test_a_process_that_dies_ends_the_run_in_seconds_and_the_run_goes_on(start, end, tmp_path):
    run = start('--out_dir=out', *LONG, processes=2)
    until((tmp_path / 'out' / 'log.jsonl').exists)
    os.kill(run[1].pid, signal.SIGKILL)
    codes, lines = end(run, seconds=10)
    assert codes == [1, -signal.SIGKILL] and 'one of them has ended' in lines[0] and '--init_from=resume' in lines[0]
    step = checkpoint.load_state(str(tmp_path / 'out'))['step']
    assert end(start('--out_dir=out', '--init_from=resume', f'--max_iters={step + 2}'))[0] == [0]


def test_a_signal_to_one_process_stops_all_at_the_same_step(start, end, tmp_path):
    """Each process looked at its own flag: one left the loop, and the other waited for it in all_reduce."""
    run = start('--out_dir=out', *LONG, processes=2)
    until((tmp_path / 'out' / 'log.jsonl').exists)
    os.kill(run[1].pid, signal.SIGTERM)
    codes, lines = end(run, seconds=10)
    assert codes == [128 + signal.SIGTERM] * 2 and 'and saved; go on with --init_from=resume' in lines[0]
    assert f'step {checkpoint.load_state(str(tmp_path / "out"))["step"]:,} ' in lines[0]


def test_a_loss_that_is_no_number_ends_all_processes_with_one_line(start, end, tmp_path):
    assert end(start('--out_dir=out', '--max_iters=2', '--eval_interval=2'))[0] == [0]
    before = (tmp_path / 'out' / 'train_state.pt').read_bytes()
    codes, lines = end(start('--out_dir=out', '--init_from=resume', '--learning_rate=1e30', '--warmup_iters=0', processes=2))
    assert codes == [1, 1] and 'Training stops' in lines[0] and 'Training stops' not in lines[1]
    assert (tmp_path / 'out' / 'train_state.pt').read_bytes() == before


@pytest.mark.parametrize('args, processes, says', [(['--batch_size=3'], 2, '2 processes can share neither'),
                                                   (['--fsdp', '--dtype=float16'], 2, '--dtype=float16')])
def test_what_several_processes_cannot_share_is_refused(start, end, args, processes, says):
    codes, lines = end(start('--out_dir=out', *args, processes=processes))
    assert codes == [1] * processes and all(says in line for line in lines)


# --- files ------------------------------------------------------------------------------------------------------------

def test_a_second_run_into_the_same_folder_is_refused_and_a_dead_one_holds_no_lock(start, end, tmp_path):
    run = start('--out_dir=out', *LONG)
    until((tmp_path / 'out' / 'log.jsonl').exists)
    for args in ('--init_from=resume',), ('--overwrite',):
        codes, lines = end(start('--out_dir=out', *args))
        assert codes == [1] and 'Another run is writing to out' in lines[0]
    run[0].kill()
    run[0].join()
    (tmp_path / 'out' / 'train_state.pt.123.tmp').write_bytes(bytes(100))
    step = checkpoint.load_state(str(tmp_path / 'out'))['step']
    assert end(start('--out_dir=out', '--init_from=resume', f'--max_iters={step + 1}'))[0] == [0]
    assert not list((tmp_path / 'out').glob('*.tmp')), 'what a killed run left half-written is cleared away'


def test_a_folder_that_vanishes_ends_in_one_line(start, end, tmp_path):
    run = start('--out_dir=out', *LONG)
    until((tmp_path / 'out' / 'train_state.pt').exists)
    os.rename(tmp_path / 'out', tmp_path / 'gone')
    codes, lines = end(run)
    assert codes == [1] and 'No such file or directory' in lines[0] and 'out' in lines[0]
    assert 'Traceback' not in (tmp_path / 'output-0.txt').read_text()
    assert checkpoint.load_state(str(tmp_path / 'gone'))['step'] >= 0


def test_a_folder_that_cannot_be_written_to_ends_in_one_line(train, tmp_path):
    """As root may write everywhere, a file stands in the folder's place, and a folder in the file's."""
    (tmp_path / 'out').write_text('a file')
    for name in ('out', 'out/deeper'):
        result = train(f'--out_dir={name}')
        assert result.code and 'out' in result.message and '\n' not in result.message.strip() and 'Traceback' not in result.err
    assert train('--max_iters=2', '--eval_interval=2').code == 0
    before = {name: (tmp_path / 'out-tiny' / name).read_bytes() for name in ('model.safetensors', 'config.json', 'sha256.json')}
    os.remove(tmp_path / 'out-tiny' / 'log.jsonl')
    (tmp_path / 'out-tiny' / 'log.jsonl').mkdir()
    result = train('--max_iters=4', '--init_from=resume')
    assert result.code and 'log.jsonl' in result.message and 'Traceback' not in result.err
    assert {name: (tmp_path / 'out-tiny' / name).read_bytes() for name in before} == before


def test_a_dataset_prepared_anew_is_not_taken_for_the_one_the_run_began_with(train, tmp_path, data_dir):
    shutil.copytree(os.path.join(data_dir, 'tiny'), tmp_path / 'data' / 'tiny')
    assert train('--max_iters=2', '--eval_interval=2', f'--data_dir={tmp_path}/data').code == 0
    import dataset
    import tokenizer
    dataset.write(str(tmp_path / 'data' / 'tiny'), tokenizer.load(tmp_path / 'data/tiny/tokenizer.json'), SONGS[1:6], SONGS[6:])
    result = train('--init_from=resume', f'--data_dir={tmp_path}/data')
    assert result.code and 'not what the run of out-tiny/train_state.pt began with' in result.message


class Bomb:
    """Unpickled, it would make a folder named boom."""

    def __reduce__(self):
        return os.mkdir, ('boom',)


def test_a_pickle_that_would_run_code_does_nothing_in_any_script(train, run, tmp_path):
    """train_state.pt, ckpt.pt and meta.pkl are pickles, and a pickle may call any function."""
    os.makedirs(tmp_path / 'out-tiny')
    torch.save({'model': Bomb(), 'made_of': Bomb()}, tmp_path / 'out-tiny' / 'train_state.pt')
    result = train('--init_from=resume')
    assert result.code and 'train_state.pt' in result.message and 'could run code' in result.message
    torch.save({'model': Bomb(), 'model_args': Bomb()}, tmp_path / 'out-tiny' / 'ckpt.pt')
    result = run('completion.py', '--out_dir=out-tiny', '--device=cpu')
    assert result.code and 'ckpt.pt' in result.message and 'could run code' in result.message
    torch.save({'model': {}, 'model_args': {'vocab_size': 3}}, tmp_path / 'out-tiny' / 'ckpt.pt')
    for protocol in range(6):
        (tmp_path / 'out-tiny' / 'meta.pkl').write_bytes(pickle.dumps({'stoi': Bomb()}, protocol))
        result = run('completion.py', '--out_dir=out-tiny', '--device=cpu')
        assert result.code and 'meta.pkl is not opened' in result.message and 'mkdir' in result.message
    assert not (tmp_path / 'boom').exists(), 'it ran'


def test_a_state_of_another_program_is_refused(train, tmp_path):
    os.makedirs(tmp_path / 'out-tiny')
    for other in ({'step': 3}, [1, 2], torch.zeros(3)):
        torch.save(other, tmp_path / 'out-tiny' / 'train_state.pt')
        result = train('--init_from=resume')
        assert result.code and 'train_state.pt' in result.message and '\n' not in result.message


# --- archives ---------------------------------------------------------------------------------------------------------

def hostile_zip(path, name='a.txt', data=b'one\ntwo\nthree', mode=0, claim=None):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        z.writestr(info, data)
    if claim is not None:  # the size, in the member's head and in the directory
        told, raw = len(data).to_bytes(4, 'little'), bytearray(path.read_bytes())
        for head, at in ((b'PK\x03\x04', 22), (b'PK\x01\x02', 24)):
            i = raw.index(head) + at
            assert raw[i:i + 4] == told
            raw[i:i + 4] = claim.to_bytes(4, 'little')
        path.write_bytes(raw)


def hostile_tgz(path, name='a.txt', kind=tarfile.REGTYPE, link='', size=0):
    with tarfile.open(path, 'w:gz') as t:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, size
        with open('/dev/zero', 'rb') as zeros:
            t.addfile(info, zeros if size else None)


@pytest.mark.parametrize('name, make', [
    ('up.zip', lambda p: hostile_zip(p, '../a.txt')),
    ('up in the middle.zip', lambda p: hostile_zip(p, 'songs/../../a.txt')),
    ('absolute.zip', lambda p: hostile_zip(p, '/etc/a.txt')),
    ('drive.zip', lambda p: hostile_zip(p, 'C:/a.txt')),
    ('backslash.zip', lambda p: hostile_zip(p, '..\\a.txt')),
    ('link.zip', lambda p: hostile_zip(p, data=b'/etc/hostname', mode=stat.S_IFLNK | 0o777)),
    ('bomb.zip', lambda p: hostile_zip(p, data=bytes(80 << 20))),
    ('larger than it says.zip', lambda p: hostile_zip(p, data=bytes(8 << 20), claim=100)),
    ('smaller than it says.zip', lambda p: hostile_zip(p, claim=1 << 31)),
    ('up.tgz', lambda p: hostile_tgz(p, '../a.txt')),
    ('absolute.tgz', lambda p: hostile_tgz(p, '/tmp/a.txt')),
    ('link.tgz', lambda p: hostile_tgz(p, kind=tarfile.SYMTYPE, link='/etc/hostname')),
    ('hard link.tgz', lambda p: hostile_tgz(p, kind=tarfile.LNKTYPE, link='/etc/hostname')),
    ('device.tgz', lambda p: hostile_tgz(p, kind=tarfile.CHRTYPE)),
    ('pipe.tgz', lambda p: hostile_tgz(p, kind=tarfile.FIFOTYPE)),
    ('bomb.tgz', lambda p: hostile_tgz(p, size=80 << 20)),
    ('bomb that is no song.tgz', lambda p: hostile_tgz(p, 'a.bin', size=80 << 20)),
])
def test_a_hostile_archive_is_refused(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=r'refused|no whole archive'):
        corpus.read_songs(str(tmp_path / name))
    assert os.listdir(tmp_path) == [name], 'nothing is unpacked'
