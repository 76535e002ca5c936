"""
What the tests share: a few invented songs, a tiny tokenizer, dataset and model made of them, a way to run a script
inside this process (so that torch is imported once), and a web server on 127.0.0.1 that can misbehave.
"""
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
# libraries keep their caches in a folder that goes when the tests are over, and ask no server anything
SCRATCH = tempfile.TemporaryDirectory(prefix='thuclgpt-tests-')
for name in ('MPLCONFIGDIR', 'HF_HOME', 'HYPOTHESIS_STORAGE_DIRECTORY', 'WANDB_DIR', 'WANDB_CACHE_DIR', 'WANDB_CONFIG_DIR',
             'WANDB_DATA_DIR'):
    os.environ[name] = os.path.join(SCRATCH.name, name.lower())
os.makedirs(os.environ['WANDB_DIR'])
os.environ.update(HF_HUB_OFFLINE='1', WANDB_MODE='offline', TOKENIZERS_PARALLELISM='false', WANDB_SILENT='true')

import hypothesis
import pytest
import torch

import dataset
import runlog
import tokenizer
from model import GPT, GPTConfig

hypothesis.settings.register_profile('seeded', derandomize=True, deadline=None, database=None, max_examples=100)
hypothesis.settings.load_profile('seeded')

# written for these tests
SONGS = ['纸鹤停在窗台上\n等一阵不赶路的风\n把昨天折成翅膀\n飞过晾衣绳',
         '冰箱低声地哼歌\n橘子在灯下发光\n我数着地砖回家\n一格一格亮',
         '拖鞋丢在楼道口\n钥匙忘了开哪扇门\n雨把城市洗成蓝\n洗不掉你写的字',
         '钟摆数到第九下\n猫从屋顶跳进梦里\n月亮借走半块饼\n明天还给你',
         '桥下的船没有名字\n桨声是它的口音\n谁把灯笼挂上岸\n照见两个人',
         '操场边的白杨树\n替我们记着高低\n粉笔灰落满袖口\n像下了一场小雪',
         '旧唱片转得很慢\n针尖踩着沟里的光\n你哼错的那一句\n我学了好多年',
         '麦子弯腰听泥土\n锄头靠着墙做梦\n爷爷把烟袋点亮\n点亮了整个黄昏']


@pytest.fixture(autouse=True)
def quiet_machine():
    """One thread: tiny tensors gain nothing from more, and sums come out the same on every machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def songs():
    return list(SONGS)


@pytest.fixture
def characters():
    """A tiny character tokenizer."""
    return tokenizer.build_characters(SONGS)


def make_model(seed=0, **fields):
    """A random GPT of two layers, its weights large enough that its logits differ and its greedy texts wander."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{'block_size': 16, 'vocab_size': 50, 'n_layer': 2, 'n_head': 2, 'n_embd': 16, **fields}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.4 if p.dim() == 2 else 0.1))
    return model.eval()


@pytest.fixture
def tiny():
    """make_model, for tests that need a model of their own shape."""
    return make_model


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """A folder of datasets, not to be written to: tiny/ (shards of the songs above) and lyric/lyric_test.txt."""
    folder = tmp_path_factory.mktemp('data')
    dataset.write(str(folder / 'tiny'), tokenizer.build_characters(SONGS[:6]), SONGS[:6], SONGS[6:])
    (folder / 'lyric').mkdir()
    (folder / 'lyric' / 'lyric_test.txt').write_text('\n\n'.join(SONGS[6:]) + '\n', encoding='utf-8')
    return str(folder)


@dataclass
class Result:
    """What a script left behind: exit code, last line to the user on a mistake, and both outputs."""
    code: int
    message: str
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """
    run('train.py', '--device=cpu', ...): the script as `python train.py ...` would run it, in tmp_path, in this
    process. An OSError goes to sys.excepthook, as in the interpreter; any other exception is a bug and fails the test.
    """
    monkeypatch.chdir(tmp_path)

    def run(script, *args):
        capsys.readouterr()
        path, code, message = os.path.join(ROOT, script), 0, ''
        hook, search = sys.excepthook, list(sys.path)
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.setattr(sys, 'argv', [path, *args])
        try:
            runpy.run_path(path, run_name='__main__')
        except SystemExit as end:
            code, message = (1, end.code) if isinstance(end.code, str) else (end.code or 0, '')
        except (OSError, KeyboardInterrupt) as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        finally:
            sys.excepthook, sys.path[:] = hook, search
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        return Result(code, message or (err.strip().splitlines() or [''])[-1], out, err)
    return run


@pytest.fixture
def fails(run):
    """fails('train.py', ..., says='...'): runs a script that must end in one clear line and a non-zero exit."""
    def fails(script, *args, says):
        result = run(script, *args)
        assert result.code != 0, f'{script} {args} ended well'
        assert '\n' not in result.message, f'more than one line:\n{result.message}'
        assert re.search(says, result.message), f'{says!r} is not in {result.message!r}'
        return result
    return fails


TRAIN = ('--device=cpu', '--dtype=float32', '--dataset=tiny', '--out_dir=out-tiny', '--n_layer=2', '--n_head=2',
         '--n_embd=16', '--block_size=16', '--batch_size=4', '--max_iters=20', '--warmup_iters=4', '--learning_rate=1e-2',
         '--min_lr=1e-3', '--eval_interval=10', '--log_interval=1')


@pytest.fixture
def train(run, data_dir, monkeypatch):
    """train('--max_iters=5', ...): train.py on the tiny dataset, later flags win. Without the plots it takes no second."""
    def train(*args, plot=False):
        with monkeypatch.context() as patch:
            if not plot:
                patch.setattr(runlog.RunLog, 'plot', lambda *args: None)
            return run('train.py', *TRAIN, f'--data_dir={data_dir}', *args)
    return train


class Server:
    """
    A web server on 127.0.0.1. `pages`: {path: bytes}. It answers Range requests unless `ranges` is False, and follows
    `script`, a list with a word for each request in turn: an int, an error status; 'cut', break off half-way; 'chunked
    cut', the same without a length. `seen` lists (path, Range header) of all requests.
    """

    def __init__(self):
        outer, self.pages, self.ranges, self.script, self.seen = self, {}, True, [], []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                outer.seen.append((self.path, self.headers.get('Range')))
                act = outer.script.pop(0) if outer.script else None
                body = outer.pages.get(self.path)
                self.close_connection = True
                if body is None or isinstance(act, int):
                    return self.send_error(act or 404)
                begin = int(self.headers['Range'][6:-1]) if outer.ranges and 'Range' in self.headers else 0
                if begin and begin >= len(body):
                    return self.send_error(416)
                self.send_response(206 if begin else 200)
                if act == 'chunked cut':
                    self.send_header('Transfer-Encoding', 'chunked')
                    self.end_headers()
                    self.wfile.write(b'%x\r\n' % len(body) + body[:len(body) // 2])
                    return
                self.send_header('Content-Length', str(len(body) - begin))
                self.end_headers()
                rest = body[begin:]
                self.wfile.write(rest[:len(rest) // 2] if act == 'cut' else rest)

            def log_message(self, *args):
                pass
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB, where this process may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if not sys.platform.startswith('linux') or subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', 'size=128k', 'none', str(folder)], capture_output=True).returncode:
        pytest.skip('this process may not mount a disk')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)
