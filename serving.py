"""
Many askers, one machine: models kept loaded on a shelf, generations that take turns on them.

    shelf = Shelf('models', device='cpu', limit=4e9)
    for texts in shelf.sing('out-lyric-char', '末班车开进了雨里', {**DEFAULTS, 'num_samples': 2, 'seed': 7}):
        print(texts)  # both continuations, a little longer each time

What an asker sends is not trusted: names are looked up in a list, numbers checked against LIMITS, texts cleaned.
"""
import functools
import glob
import json
import math
import os
import re
import sys
import threading
import time
import unicodedata
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors import SafetensorError, safe_open

import checkpoint
from inference import stream

# lowest, highest, default, step; whole numbers where the step is one
LIMITS = {'max_new_tokens': (1, 500, 120, 1), 'temperature': (0, 2, 0.8, 0.05), 'top_k': (0, 200, 0, 1),
          'top_p': (0.05, 1, 0.95, 0.05), 'repetition_penalty': (1, 2, 1, 0.05), 'num_samples': (1, 4, 1, 1),
          'seed': (0, 2**31 - 1, 0, 1)}
DEFAULTS = {name: default for name, (_, _, default, _) in LIMITS.items()}
LONGEST = 1000  # characters in one line of an asker
LOOK_BACK = 4000  # characters of a song that a model is given: more than any context here holds
FRAME = 0.02  # seconds between two looks at a growing text: it flows for the eye, and the page keeps up


class Refusal(Exception):
    """What an asker wants cannot be done. args: why, in Chinese and in English."""

    def __str__(self):
        return self.args[1]


def clean(line):
    """A line of an asker without control characters and half surrogates. Refuses one that is too long."""
    line = str(line or '')
    if len(line) > LONGEST:
        raise Refusal(f'太长了：{len(line):,} 字，最多 {LONGEST:,} 字。',
                      f'Too long: {len(line):,} characters, {LONGEST:,} at most.')
    line = line.replace('\r\n', '\n').replace('\r', '\n').replace('\t', ' ')
    return ''.join(c for c in line if c == '\n' or unicodedata.category(c) not in ('Cc', 'Cs')).strip()


def check(options):
    """The options as numbers of the right type. Refuses what lies outside LIMITS, or is no number at all."""
    checked = {}
    for name, (low, high, _, step) in LIMITS.items():
        value = options[name]
        if type(value) not in (int, float) or not low <= value <= high:  # NaN fails the comparison
            raise Refusal(f'{name} 要在 {low} 和 {high:,} 之间。', f'{name} must be between {low} and {high:,}.')
        checked[name] = int(value) if type(step) is int else float(value)
    return checked


@functools.lru_cache(maxsize=256)
def describe(folder, changed):
    """
    (parameters, best validation loss or None) of a model folder. `changed`, its weights' time stamp, is there for the
    cache. Raises OSError or SafetensorError on a damaged one.
    """
    with safe_open(os.path.join(folder, 'model.safetensors'), 'pt') as f:  # reads the header alone
        parameters = sum(math.prod(f.get_slice(key).get_shape()) for key in f.keys())
    losses, log = [], os.path.join(folder, 'log.jsonl')
    if os.path.exists(log):  # a model from elsewhere has none
        with open(log, encoding='utf-8') as f:
            losses = [json.loads(line)['val_loss'] for line in f if '"val_loss"' in line and line.endswith('}\n')]
    return parameters, min(losses, default=None)


class Shelf:
    """
    The models of the out* folders here and of `folder` (a model folder, or a folder of them). Loaded models stay, the
    least recently used leaves when their weights would exceed `limit` bytes; a model larger than that stands alone.
    """

    def __init__(self, folder='', device='cpu', dtype=torch.float32, limit=4e9):
        self.folder, self.device, self.dtype, self.limit = folder, device, dtype, limit
        self.loaded, self.lock = OrderedDict(), threading.Lock()  # one lock: whom ten ask for is loaded once
        # One thread computes all steps, in the order they were asked for: generations take turns token by token, none
        # starves, and the cores are not torn between torch's thread pools (which grow with every thread that calls).
        self.engine = ThreadPoolExecutor(1, 'engine')

    def names(self):
        """{name: model folder} of all there are, the newest first. Askers send names, so no other folder is opened."""
        files = glob.glob(os.path.join('out*', 'model.safetensors'))
        for depth in ('', '*') if self.folder else ():
            files += glob.glob(os.path.join(glob.escape(self.folder), depth, 'model.safetensors'))
        found = {}
        for folder in map(os.path.dirname, sorted(files, key=os.path.getmtime, reverse=True)):
            if os.path.exists(os.path.join(folder, 'config.json')):
                found.setdefault(os.path.basename(os.path.abspath(folder)), folder)
        return found

    def facts(self):
        """{name: (parameters, best validation loss or None)} of the models that can be read."""
        found = {}
        for name, folder in self.names().items():
            try:
                found[name] = describe(folder, os.stat(os.path.join(folder, 'model.safetensors')).st_mtime_ns)
            except (OSError, SafetensorError, ValueError):  # damaged; the owner sees it when training or completing
                continue
        return found

    def get(self, name):
        """(model, tokenizer); loaded anew when the file has changed, so a model in training shows its newest state."""
        folder = self.names().get(name)
        if folder is None:
            raise Refusal('没有这个模型，请另选一个。', 'There is no such model; choose another.')
        file = os.stat(os.path.join(folder, 'model.safetensors'))
        stamp = folder, file.st_mtime_ns
        with self.lock:
            if name in self.loaded and self.loaded[name][0] == stamp:
                self.loaded.move_to_end(name)
                return self.loaded[name][2]
            self.loaded.pop(name, None)
            while self.loaded and file.st_size + sum(size for _, size, _ in self.loaded.values()) > self.limit:
                self.loaded.popitem(last=False)
            try:
                pair = checkpoint.load_model(folder, self.device, self.dtype, generating=True)
            except SystemExit as error:
                print(error, file=sys.stderr)  # it names folders: for the owner, not for askers
                raise Refusal('这个模型打不开。', 'This model cannot be opened.') from error
            self.loaded[name] = stamp, file.st_size, pair
            return pair

    def sing(self, name, text, options):
        """
        Yields the continuations of `text`, a list of num_samples texts, as they grow. Closing the generator ends the
        computing. Raises Refusal, before anything is computed.
        """
        options = check(options)
        count, most, seed = (options.pop(key) for key in ('num_samples', 'max_new_tokens', 'seed'))
        model, tokenizer = self.get(name)
        ids = [tokenizer.bos_id] + tokenizer.encode(text)
        steps = stream(model, [ids] * count, most, generator=torch.Generator(self.device).manual_seed(seed),
                       stop_id=tokenizer.eot_id, banned_ids=tokenizer.banned_ids, **options)
        rows, began, looked, end = [[] for _ in range(count)], time.monotonic(), 0.0, 'stopped'
        try:
            while new := self.engine.submit(next, steps, None).result():
                for row, token in zip(rows, new):
                    row += [] if token is None else [token]
                if time.monotonic() - looked > FRAME:
                    # not text_stream: it pulls one row, here several grow side by side; half a character waits too
                    yield [tokenizer.decode(row).rstrip('\ufffd') for row in rows]
                    looked = time.monotonic()
            end = 'done'
            yield [tokenizer.decode(row).rstrip('\ufffd') for row in rows]
        finally:
            print(f'{name}: {end} after {max(map(len, rows))} of {most} tokens x {count}, '
                  f'{time.monotonic() - began:.2f} s, seed {seed}', file=sys.stderr, flush=True)


# --- the gate ---------------------------------------------------------------------------------------------------------

# What the page needs of Gradio's server. The rest (uploads, files, proxies, run history, monitoring) is not reachable.
DOORS = re.compile(r'/(|config|theme\.css|login|logout|manifest\.json|favicon\.ico|robots\.txt'
                   r'|(assets|static|svelte)/.*|gradio_api/(info|app_id|login_check|startup-events|theme\.css'
                   r'|cancel|reset|queue/(join|data)|heartbeat/.*|call/.*|run/.*|api/.*))/?')
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"  # Gradio evals


class Gate:
    """
    ASGI middleware: 404 to all but DOORS, 413 to a request larger than the page's own, and a policy that lets a
    browser load nothing from another server.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        size = dict(scope['headers']).get(b'content-length', b'0' if scope['method'] in ('GET', 'HEAD') else b'')
        status = 404 if not DOORS.fullmatch(scope['path']) else 413 if not size.isdigit() or int(size) > 200_000 else 0
        if status:
            await send({'type': 'http.response.start', 'status': status, 'headers': [(b'content-length', b'0')]})
            return await send({'type': 'http.response.body', 'body': b''})

        async def guarded(message):
            if message['type'] == 'http.response.start':
                message['headers'] = [*message['headers'], (b'content-security-policy', POLICY)]
            await send(message)
        await self.app(scope, receive, guarded)
