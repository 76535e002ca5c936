"""
The page in a real browser (Debian's chromium), its API, and the shelf of models behind them.

One server stands for all tests. It starts in an empty folder; the models come later, as they do in life.
"""
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch

import checkpoint
import serving
import tokenizer as tokenizers
from inference import generate
from model import GPT, GPTConfig

# A browser, a server and a busy machine between them miss a beat now and then: a promise is broken if it fails three times.
pytestmark = pytest.mark.flaky(reruns=2)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHROMIUM = '/usr/bin/chromium'
SONGS = ['末班车开进了雨里\n阳台上的番茄红了', '妈妈把灯留到很晚', '海风翻开旧的信纸', '<b>img src=x onerror()</b>&;"0123456789']


def make_model(folder, seed, n_layer=2, n_embd=32, block_size=64):
    """A random character model that never ends its songs, as a model folder; returns (model, tokenizer)."""
    torch.manual_seed(seed)
    tokenizer = tokenizers.build_characters(SONGS)
    model = GPT(GPTConfig(block_size, tokenizer.vocab_size, n_layer, 2, n_embd, 0.0, 0.0, True)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=0.3)  # wilder than a fresh model: its greedy texts differ from prompt to prompt
        model.transformer.ln_f.bias.fill_(1)
        model.transformer.wte.weight[tokenizer.eot_id] = -1
    checkpoint.save_model(str(folder), model, tokenizer)
    return model, tokenizer


def expected(pair, text, length=120):
    """The greedy continuation, computed without any server."""
    model, tokenizer = pair
    ids = [tokenizer.bos_id] + tokenizer.encode(text)
    return tokenizer.decode(generate(model, [ids], length, temperature=0, stop_id=tokenizer.eot_id,
                                     banned_ids=tokenizer.banned_ids)[0])


class Server:
    """web_demo.py as a process of its own, in a folder of its own."""

    def __init__(self, folder, *flags, **environment):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.url, self.folder, self.log = f'http://127.0.0.1:{self.port}', folder, folder / 'server.log'
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen(
                [sys.executable, os.path.join(ROOT, 'web_demo.py'), f'--port={self.port}', '--open_browser=False',
                 '--device=cpu', '--dtype=float32',
                 *flags], cwd=folder, stdout=log, stderr=log, env={**os.environ, **environment})

    def wait(self):
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return self
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def cpu_seconds(self):
        with open(f'/proc/{self.process.pid}/stat') as f:
            fields = f.read().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def status(self, path, method='GET', data=None):
        try:
            kind = 'application/json' if data and data.startswith(b'{') else 'application/x-www-form-urlencoded'
            request = urllib.request.Request(self.url + path, data, {'Content-Type': kind}, method=method)
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp('page'))
    yield server.wait()
    server.process.terminate()
    server.process.wait(10)


@pytest.fixture(scope='module')
def browser():
    if not os.path.exists(CHROMIUM):
        pytest.skip(f'no Chromium at {CHROMIUM} (apt-get install chromium): the page is not tested in a browser')
    playwright = pytest.importorskip('playwright.sync_api', reason='no playwright (pip install playwright)')
    with playwright.sync_playwright() as p:
        yield p.chromium.launch(executable_path=CHROMIUM, args=[
            '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run'])


@pytest.fixture
def visit(browser, server):
    """visit(): a page of a new visitor. At the end: no console error, no request to anywhere else, in any of them."""
    contexts, troubles = [], []

    def new(locale='zh-CN', to=server):
        contexts.append(browser.new_context(locale=locale, viewport={'width': 1000, 'height': 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on('console', lambda m: troubles.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda error: troubles.append(str(error)))
        page.on('response', lambda r: troubles.append(f'{r.status} {r.url}') if r.status >= 400 else None)
        page.on('request', lambda r: None if r.url.startswith((to.url, 'data:', 'blob:')) else troubles.append(r.url))
        page.goto(to.url)
        page.wait_for_selector('#chat .placeholder')
        page.wait_for_timeout(500)  # placeholder and welcome may still be on their way; nothing on the page says they came
        return page
    yield new
    for context in contexts:
        context.close()
    assert not troubles


@pytest.fixture(scope='module')
def models(server):
    """{name: (model, tokenizer)}; out-slow takes seconds for a long song, out-lyric-char is the newest."""
    made = {'out-slow': make_model(server.folder / 'out-slow', 1, n_layer=8, n_embd=512, block_size=1024),
            'out-b': make_model(server.folder / 'out-b', 2),
            'out-lyric-char': make_model(server.folder / 'out-lyric-char', 3)}
    for age, name in enumerate(reversed(made)):
        os.utime(server.folder / name / 'model.safetensors', (time.time() - age * 60,) * 2)
    return made


def choose(page, name):
    page.click('#models input')
    page.click(f'#models li:has-text("{name}")')


def tune(page, **numbers):
    """Set sliders, by their place in serving.LIMITS; temperature=0 makes a song predictable."""
    if not page.is_visible('#tuning input[type=number]'):
        page.click('#tuning button')
    for name, value in numbers.items():
        field = page.locator('#tuning input[type=number]').nth(list(serving.LIMITS).index(name))
        for _ in range(50):  # until Gradio has taken it: what is typed while the page still wakes up is lost
            field.fill(str(value))
            field.blur()
            page.wait_for_timeout(100)
            slider = field.evaluate('e => (e.closest(".block").querySelector("input[type=range]") ?? e).value')
            if float(slider) == float(field.input_value()) == value:
                break
        else:
            raise AssertionError(f'the page does not take {name} = {value}')


def songs(page):
    return page.locator('#chat .bot-row .message-content').all_text_contents()


def shown(*arguments):
    """What the page shows of an expected continuation: no blank lines at its ends."""
    return expected(*arguments).strip('\n')


def rest(page, turns):
    """Wait until so many lines are answered: Gradio offers Retry when all events are over, the button sends again."""
    page.wait_for_function('n => document.querySelectorAll("#chat .user-row").length == n', arg=turns)
    page.wait_for_selector('#chat .bot-row [aria-label="重试"], #chat .bot-row [aria-label="Retry"]')
    page.wait_for_selector('#box .submit-button')


def send(page, line):
    turns = page.locator('#chat .user-row').count()
    page.fill('#box textarea', line)
    page.click('#box .submit-button')
    rest(page, turns + 1)


# --- the page -------------------------------------------------------------------------------------------------------

def test_an_empty_folder_names_the_command_and_a_model_appears_without_a_restart(visit, server, request):
    page = visit('en-US')
    assert 'python train.py config/quickstart.py' in page.text_content('#chat .placeholder')
    page.fill('#box textarea', '妈妈')
    page.press('#box textarea', 'Enter')
    page.wait_for_selector('.toast-body:has-text("There is no such model")')
    assert page.input_value('#box textarea') == '妈妈'  # what was written is not lost
    request.getfixturevalue('models')
    choose(page, 'characters')  # opening the list is enough
    send(page, '妈妈')
    assert len(songs(page)) == 1


def test_labels_follow_the_browsers_language(visit, models):
    chinese, english = visit('zh-TW'), visit('de-DE')
    assert '你起一句' in chinese.text_content('#subtitle') and '写一句' in chinese.text_content('#chat .placeholder')
    assert 'You begin' in english.text_content('#subtitle')
    assert 'Write a line' in english.text_content('#chat .placeholder')
    assert re.match(r'字 +· +0\.0 M', chinese.input_value('#models input'))


def test_a_song_streams_in_and_goes_on_from_what_was_sung(visit, models):
    page = visit()
    tune(page, temperature=0, max_new_tokens=30)
    send(page, '末班车')
    first = expected(models['out-lyric-char'], '末班车', 30)
    assert songs(page) == [first.strip('\n')]
    send(page, '雨里')
    second = expected(models['out-lyric-char'], '末班车' + first.rstrip() + '\n雨里', 30)
    assert songs(page) == [first.strip('\n'), second.strip('\n')]
    page.uncheck('#song input')  # now each line begins anew
    send(page, '雨里')
    assert songs(page)[2] == shown(models['out-lyric-char'], '雨里', 30) != second
    tune(page, temperature=1, seed=7)
    send(page, '番茄')
    send(page, '番茄')
    assert songs(page)[3] == songs(page)[4] and page.text_content('#note').strip() == '种子 7'


def test_text_grows_piece_by_piece_and_stop_stops_the_computing(visit, server, models):
    """Of Gradio's Stop one must see more than a still page: the server's own clock has to rest."""
    page = visit()
    choose(page, 'slow')
    tune(page, max_new_tokens=500, num_samples=4)
    page.fill('#box textarea', '海风')
    page.click('#box .submit-button')
    lengths, deadline = set(), time.time() + 15
    while len(lengths) < 5:
        assert time.time() < deadline, f'the text does not grow: {sorted(lengths)} characters'
        lengths.add(len(''.join(songs(page))))
        time.sleep(0.03)
    page.click('#box .stop-button')
    page.wait_for_selector('#chat button:has-text("留第 3 稿")')
    time.sleep(0.3)
    stopped, clock = songs(page), server.cpu_seconds()
    time.sleep(1)
    assert songs(page) == stopped and server.cpu_seconds() - clock < 0.5
    assert re.search(r'out-slow: stopped after \d+ of 500 tokens x 4', server.log.read_text())
    assert len(stopped) == 4  # what was sung so far stays, and one draft can be kept
    page.click('#chat button:has-text("留第 3 稿")')
    page.wait_for_function('document.querySelectorAll("#chat .bot-row").length == 1')
    assert songs(page) == [stopped[2]]


def test_a_closed_tab_frees_its_generation(visit, server, models):
    page = visit()
    choose(page, 'slow')
    tune(page, max_new_tokens=500, num_samples=4)
    page.fill('#box textarea', '信纸')
    page.click('#box .submit-button')
    page.wait_for_selector('#chat .bot-row')
    before = server.log.read_text().count('out-slow: stopped')
    page.close()
    deadline = time.time() + 5
    while server.log.read_text().count('out-slow: stopped') == before:
        assert time.time() < deadline, 'five seconds after its tab was closed a generation still runs'
        time.sleep(0.05)


def test_retry_undo_clear_and_examples(visit, models):
    page = visit()
    tune(page, max_new_tokens=30)
    page.click('#chat .example:has-text("末班车开进了雨里")')
    rest(page, 1)
    first = songs(page)
    page.click('#chat [aria-label="重试"]')
    page.wait_for_function('old => document.querySelector("#chat .bot-row .message-content")?.textContent != old',
                           arg=first[0])
    rest(page, 1)
    assert len(songs(page)) == 1
    page.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    page.locator('#chat .bot-row [aria-label="Copy message"]').click()
    assert page.evaluate('navigator.clipboard.readText()') == songs(page)[0]
    page.click('#chat [aria-label="撤销"]')
    page.wait_for_selector('#chat .placeholder')
    assert page.input_value('#box textarea') == '末班车开进了雨里'
    send(page, '妈妈')
    page.click('#chat [aria-label="清空对话"]')
    page.wait_for_function('!document.querySelector("#note").textContent.trim()')
    tune(page, temperature=0)
    send(page, '海风')  # the cleared song is forgotten by the server too
    assert songs(page) == [shown(models['out-lyric-char'], '海风', 30)]


def test_two_visitors_at_once_get_their_own_songs_and_a_reload_begins_anew(visit, models):
    pages = [visit(), visit()]
    choose(pages[1], 'b')
    for page, line in zip(pages, ('妈妈把灯', '海风翻开')):
        tune(page, temperature=0, max_new_tokens=200)
        page.fill('#box textarea', line)
    for page in pages:
        page.press('#box textarea', 'Enter')
    for page, name, line in zip(pages, ('out-lyric-char', 'out-b'), ('妈妈把灯', '海风翻开')):
        rest(page, 1)
        assert page.text_content('#chat .user-row .message-content') == line
        assert songs(page) == [shown(models[name], line, 200)]
    pages[0].reload()
    pages[0].wait_for_selector('#chat .placeholder')
    tune(pages[0], temperature=0, max_new_tokens=30)
    send(pages[0], '灯')
    assert songs(pages[0]) == [shown(models['out-lyric-char'], '灯', 30)]


def test_hostile_lines_are_text_or_refused(visit, models):
    page = visit()
    tune(page, temperature=0, max_new_tokens=20)
    page.uncheck('#song input')
    for line in ('<img src=x onerror="document.title=1"><b>x</b>', '**x** $$x$$ [x](javascript:0)', '😀👨‍👩‍👧 R&B',
                 '灯\x07\x1b[31m火'):
        send(page, line)
        shown = page.locator('#chat .user-row .message-content').last
        assert shown.text_content().replace('\u2060', '') == line.replace('\x07', '').replace('\x1b', '')
        assert shown.locator('img, b, strong, a, .katex').count() == 0
    assert page.title() == 'thuclGPT'
    for line, words in (('灯' * 10_000, '太长了'), ('  \n ', '先写一句')):
        page.fill('#box textarea', line)
        page.click('#box .submit-button')
        page.wait_for_selector(f'.toast-body:has-text("{words}")')
    assert len(songs(page)) == 4


# --- the API, the doors, the command line -----------------------------------------------------------------------------

def client_of(server):
    from gradio_client import Client
    return Client(server.url, verbose=False)


def test_complete_answers_other_programs_and_refuses_what_lies_outside_the_limits(server, models):
    client = client_of(server)
    song = client.predict('末班车', model='out-b', temperature=0, max_new_tokens=40, api_name='/complete')
    assert song == expected(models['out-b'], '末班车', 40)
    half_an_emoji = b'{"data": ["\\ud83d\\u0000<", "out-b", 5, 0, 0, 1, 1, 0]}'  # a lone surrogate: no UTF-8 holds it
    status, body = server.status('/gradio_api/call/complete', 'POST', half_an_emoji)
    status, body = server.status('/gradio_api/call/complete/' + json.loads(body)['event_id'])
    assert status == 200 and b'event: complete' in body
    for wrong, words in (({'temperature': 9}, 'temperature must be between 0 and 2'),
                         ({'max_new_tokens': 10**9}, 'max_new_tokens must be between 1 and 500'),
                         ({'top_k': 'x'}, 'top_k'),
                         ({'model': '../out-b'}, 'no such model'), ({'model': '/etc'}, 'no such model'),
                         ({'prompt': ''}, 'prompt is empty'), ({'prompt': '灯' * 10_000}, 'Too long: 10,000')):
        with pytest.raises(Exception, match=words):
            client.predict(**{'prompt': '灯', **wrong}, api_name='/complete')
    assert 'Traceback' not in server.log.read_text()


def test_ten_visitors_at_once_all_get_their_own_answer(server, models):
    lines, answers = [''.join(SONGS).replace('\n', '')[i:i + 4] for i in range(10)], {}

    def visitor(line):
        answers[line] = client_of(server).predict(line, model='out-b', temperature=0, max_new_tokens=60,
                                                  api_name='/complete')
    threads = [threading.Thread(target=visitor, args=(line,)) for line in lines]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert answers == {line: expected(models['out-b'], line, 60) for line in lines}


def test_only_the_doors_of_the_page_are_open(server, models):
    """Gradio's server can do far more than this page needs: take uploads, give out files, fetch other sites' pages."""
    api = '/gradio_api'
    for path in (f'{api}/file=/etc/passwd', f'{api}/file={ROOT}/web_demo.py', f'{api}/file/etc/passwd',
                 f'{api}/runs', f'{api}/proxy=https://example.org', '/monitoring', f'{api}/deep_link?session_hash=x',
                 '/server.log', '/assets/../../../../../../../../etc/passwd', '/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd'):
        status, body = server.status(path)
        assert status >= 400 and b'root:' not in body, path
    for path in (f'{api}/upload', f'{api}/component_server', f'{api}/vibe-edit'):
        assert server.status(path, 'POST', b'x')[0] == 404
    assert server.status(f'{api}/queue/join', 'POST', b'x' * 300_000)[0] == 413
    with socket.socket() as s:  # this machine's other address is deaf
        s.settimeout(2)
        assert s.connect_ex(('127.0.0.2', server.port)) != 0


def test_a_password_guards_page_and_api(tmp_path):
    server = Server(tmp_path, '--auth=DOOR', DOOR='anna:sesame').wait()
    try:
        assert b'auth_required' in server.status('/')[1] and server.status('/gradio_api/info')[0] == 401
        assert server.status('/gradio_api/call/complete', 'POST', b'{"data": ["x"]}')[0] == 401
        assert server.status('/login', 'POST', b'username=anna&password=sesam')[0] == 400
        assert server.status('/login', 'POST', b'username=anna&password=sesame')[0] == 200
    finally:
        server.process.kill()


@pytest.mark.parametrize('flag, words', [('--auth=NO_SUCH_DOOR', 'NO_SUCH_DOOR must hold user:password'),
                                         ('--model_dir=no/such', 'no/such: no such folder'),
                                         ('--prt=1', 'Did you mean port')])
def test_a_mistake_on_the_command_line_ends_in_one_line(flag, words, tmp_path):
    run = subprocess.run([sys.executable, os.path.join(ROOT, 'web_demo.py'), flag], cwd=tmp_path,
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and words in run.stderr and run.stderr.count('\n') == 1


def test_help_loads_neither_gradio_nor_torch():
    run = subprocess.run([sys.executable, '-X', 'importtime', os.path.join(ROOT, 'web_demo.py'), '--help'],
                         capture_output=True, text=True, timeout=60)
    assert '--cache_gb=4.0' in run.stdout and 'HERE' not in run.stdout
    assert not re.search(r'\| +(gradio|torch)$', run.stderr, re.M)


# --- the shelf ------------------------------------------------------------------------------------------------------

def test_the_shelf_keeps_what_fits_loads_once_and_follows_a_retrained_model(tmp_path, monkeypatch):
    for seed, name in enumerate('abc'):
        make_model(tmp_path / name, seed)
    size = os.path.getsize(tmp_path / 'a' / 'model.safetensors')
    loads, load = [], checkpoint.load_model
    monkeypatch.setattr(checkpoint, 'load_model', lambda folder, *rest, **more: loads.append(folder[-1]) or load(folder, *rest, **more))
    shelf = serving.Shelf(str(tmp_path), limit=2.5 * size)
    threads = [threading.Thread(target=shelf.get, args=('a',)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert loads == ['a']
    for name in 'bacb':  # c takes the place of b, which was used before a
        shelf.get(name)
    assert loads == ['a', 'b', 'c', 'b'] and list(shelf.loaded) == ['c', 'b']
    make_model(tmp_path / 'b', 7)
    shelf.get('b')
    assert loads[-1] == 'b' and len(loads) == 5
    (tmp_path / 'c' / 'model.safetensors').write_bytes(b'broken')
    with pytest.raises(serving.Refusal, match='cannot be opened'):
        shelf.get('c')
    assert 'c' not in shelf.facts() and shelf.facts()['a'][1] is None


@pytest.mark.parametrize('name, value', [('top_p', float('nan')), ('seed', -1), ('top_k', '5'), ('temperature', None),
                                         ('num_samples', True), ('max_new_tokens', float('inf'))])
def test_numbers_outside_the_limits_are_refused(name, value):
    assert serving.check(serving.DEFAULTS)['max_new_tokens'] == 120
    with pytest.raises(serving.Refusal, match=f'{name} must be between'):
        serving.check({**serving.DEFAULTS, name: value})


def test_a_closed_generation_computes_no_further_token(tmp_path, monkeypatch):
    make_model(tmp_path / 'a', 1)
    steps, stream = [], serving.stream
    monkeypatch.setattr(serving, 'stream', lambda *a, **k: (steps.append(new) or new for new in stream(*a, **k)))
    song = serving.Shelf(str(tmp_path)).sing('a', '灯', {**serving.DEFAULTS, 'seed': 1})
    next(song)
    done = len(steps)
    song.close()
    time.sleep(0.1)
    assert len(steps) == done < 120
