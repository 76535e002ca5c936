"""
Bad input, tried by machine: whatever the bytes, a clear error or the right answer; never another exception, never silent
garbage. A few hundred cases here, always the same; FUZZ_CASES=10000 tries new ones every time (make fuzz).
"""
import ast
import functools
import io
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

import checkpoint
import configurator
import corpus
import dataset
import runlog
import tokenizer
from conftest import ROOT, SCRATCH, SONGS, make_model

sys.path.insert(0, os.path.join(ROOT, 'dev'))
from stress import same

CASES = int(os.environ.get('FUZZ_CASES', 400))


def fuzz(share, **strategies):
    """Run a test on that share of CASES."""
    def decorate(test):
        @functools.wraps(test)
        def counted(**drawn):
            global tried
            tried += 1
            test(**drawn)
        return settings(max_examples=max(2, round(CASES * share)), derandomize='FUZZ_CASES' not in os.environ, deadline=None,
                        database=None, suppress_health_check=list(HealthCheck))(given(**strategies)(counted))
    return decorate


tried = 0


def clear(error):
    """The message of an error the user can do something about: one line, and no path of another exception."""
    text = error.code if isinstance(error, SystemExit) else str(error)
    assert isinstance(text, str) and text and '\n' not in text, repr(text)
    return text


@st.composite
def damage(draw, whole):
    """The bytes `whole` with one to three wounds: flipped, overwritten, cut out, cut off, doubled or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), at + draw(st.sampled_from((1, 1, 1, 2, 4, 8, 100))))
        kind = draw(st.sampled_from(('flip', 'set', 'set', 'cut out', 'cut off', 'double', 'put in', 'zero')))
        if kind == 'flip' and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 'set' and data:
            data[at] = draw(st.sampled_from(b'0123456789-."\\[]{},:eENnull\n\r\t \x00\x7f\x80\xff'))
        elif kind == 'cut out':
            del data[at:end]
        elif kind == 'cut off':
            del data[at:]
        elif kind == 'double':
            data[at:at] = data[at:end]
        elif kind == 'put in':
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[at:end] = bytes(end - at)
    return bytes(data)


class Folder:
    """A folder of files, one of which is damaged for a while."""

    def __init__(self, make):
        self.path = tempfile.mkdtemp(dir=SCRATCH.name)
        make(self.path)
        self.whole = {}
        for name in os.listdir(self.path):
            with open(os.path.join(self.path, name), 'rb') as f:
                self.whole[name] = f.read()

    def wounded(self, data, names):
        """Damage one of the files; returns its name, or None where the wounds left it as it was."""
        name = data.draw(st.sampled_from(names))
        bytes_ = data.draw(damage(self.whole[name]))
        for other in self.whole:
            with open(os.path.join(self.path, other), 'wb') as f:
                f.write(bytes_ if other == name else self.whole[other])
        return name if bytes_ != self.whole[name] else None


# --- text and tokens --------------------------------------------------------------------------------------------------

LETTERS = st.text(st.characters(exclude_categories=['Cs']) | st.sampled_from('风 \n\u3000▁<>[]#\x00\ufeff\u200dÅé①\U0001f600'), max_size=60)


@functools.cache
def kinds():
    path = os.path.join(SCRATCH.name, 'fuzz-vocab.txt')
    with open(path, 'w', encoding='utf-8') as f:
        f.write('\n'.join(['[PAD]', *(f'[unused{i}]' for i in range(5)), '[UNK]', '[CLS]', '[SEP]', '[MASK]',
                           *sorted(set(''.join(SONGS)) - {'\n'}), 'song', '##s', 'a', '##a', '，']))
    songs = SONGS * 8
    return {'words': tokenizer.build_words(songs, 800)[0], 'wordpiece': tokenizer.from_wordpiece(path),
            'bytes': tokenizer.from_gpt2({**{c: i for i, c in enumerate(alphabet())}, '<|endoftext|>': 256}, [])}


def alphabet():
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]


@fuzz(0.1, seen=LETTERS, text=LETTERS)
def test_characters_give_back_what_they_know_and_say_what_they_do_not(seen, text):
    t = tokenizer.build_characters([seen])
    ids = t.encode(text)
    known = set(seen) | {'\n'}
    assert ids == t.hf.encode(text, add_special_tokens=False).ids and len(ids) == len(text)
    assert [i == t.unk_id for i in ids] == [c not in known for c in text] and t.unknown(text) == [c for c in text if c not in known]
    assert t.decode(ids) == ''.join(c if c in known else '<unk>' for c in text)
    assert t.encode(t.decode(t.encode(seen))) == t.encode(seen) and t.decode(t.encode(seen)) == seen
    again = tokenizer.Tokenizer(type(t.hf).from_str(t.hf.to_str()))
    assert again.encode(text) == ids and again.vocab_size == t.vocab_size


@fuzz(0.2, text=LETTERS, kind=st.sampled_from(('words', 'bytes', 'wordpiece')))
def test_every_kind_gives_a_text_back_or_names_what_it_does_not_know(text, kind):
    t = kinds()[kind]
    ids = t.encode(text)
    assert all(0 <= i < t.vocab_size for i in ids)
    (song,) = t.encode_songs([text])
    assert song.tolist() == [t.bos_id] * (t.bos_id != t.eot_id) + ids + [t.eot_id]
    if kind == 'wordpiece':  # BERT's knows no case and no accents; what it knows it gives back
        known = ''.join(c for c in text + SONGS[0] if c in ' \n' or c in ''.join(SONGS))
        assert t.decode(t.encode(known)) == known
    else:
        assert t.decode(ids) == (text.replace('▁', ' ') if kind == 'words' else text)  # SentencePiece's own sign for a space


# --- raw lyrics -------------------------------------------------------------------------------------------------------

LRC = '[ti:纸鹤]\n[ar:某人]\n[00:01.00]作词：某人\n[00:12.50]纸鹤停在窗台上\n[00:15.10][01:15.10]等一阵不赶路的风&amp;雨\n'
RAW = [(name, text.encode(code)) for code in ('utf-8', 'utf-8-sig', 'gb18030', 'utf-16') for name, text in (
    ('a.lrc', LRC), ('a.txt', '\n\n'.join(SONGS[:3])), ('a.json', json.dumps([{'text': s} for s in SONGS[:3]], ensure_ascii=False)),
    ('a.json', json.dumps({'lyrics': SONGS[0].split('\n')})), ('a.jsonl', '\n'.join(json.dumps({'lyrics': s}) for s in SONGS[:3])),
    ('a.csv', 'title,text\n一,"纸鹤, ""飞""\n窗台"\n二,冰箱\n'))]


@fuzz(0.2, data=st.data(), source=st.sampled_from(RAW), alone=st.booleans())
def test_mangled_lyrics_are_clean_songs_or_one_line(data, source, alone):
    name, raw = source
    raw = data.draw(damage(raw) | st.binary(max_size=40) | st.just(raw))
    try:
        songs = [corpus.clean(text) for text in corpus.texts_in(raw, name, alone)]
    except ValueError as error:
        assert name in clear(error)
        return
    for song in songs:
        assert song.encode('utf-8').decode('utf-8') == song
        assert all(line and line == ' '.join(line.split()) for line in song.split('\n')) or not song
        assert not corpus.NOT_TEXT.search(song.replace('\n', ''))
    if corpus.drop_copies(songs):
        try:
            splits = corpus.split(corpus.drop_copies(songs))
            assert all(splits[name] for name in corpus.SPLITS)
        except ValueError as error:
            assert 'three lines' in clear(error)


@fuzz(0.02, text=st.lists(st.sampled_from(('&#', '&#x', '9' * 5000, '1', ';', '风', '&amp', '[00:', '00]', '作词', '：', '\n', 'F' * 5000)),
                          max_size=8).map(''.join))
def test_strange_entities_and_stamps_are_cleaned(text):
    corpus.clean(text)


def archives():
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, 'w', method) as z:
            for i, song in enumerate(SONGS[:4]):
                z.writestr(f'{i}.txt', song)
        found.append(('a.zip', out.getvalue()))
    for mode in ('w', 'w:gz', 'w:bz2', 'w:xz'):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as t:
            for i, song in enumerate(SONGS[:4]):
                info = tarfile.TarInfo(f'{i}.txt')
                info.size = len(song.encode())
                t.addfile(info, io.BytesIO(song.encode()))
        found.append(('a.tgz', out.getvalue()))
    return found


@fuzz(0.1, data=st.data(), archive=st.sampled_from(archives()))
def test_a_mangled_archive_is_read_or_refused_in_one_line(data, archive):
    name, whole = archive
    path = os.path.join(SCRATCH.name, name)
    with open(path, 'wb') as f:
        f.write(data.draw(damage(whole)))
    try:
        songs = corpus.read_songs(path)
    except ValueError as error:
        assert re.search(r'a\.(zip|tgz) |\.(txt|lrc|json|csv)', clear(error)), error
        return
    assert name == 'a.tgz' or all(song in SONGS for song in songs), 'a zip file has checksums'


# --- command lines ----------------------------------------------------------------------------------------------------

def settings_of(script):
    """{name: default} of a script, without running it."""
    with open(os.path.join(ROOT, script), encoding='utf-8') as f:
        nodes = ast.parse(f.read()).body
    names = configurator.defined_settings(os.path.join(ROOT, script))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in nodes
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) in names and isinstance(node.value, ast.Constant)}


DEFAULTS = settings_of('train.py')
VALUES = st.text(max_size=12) | st.sampled_from(('1' * 400, '9' * 5000, '0x' + 'f' * 4500, '1e999', '-1e999', 'nan', '{[]: 1}', '{{}}', '(' * 300,
                                                 '-' * 3000 + '1', '1_0', '1e4', '1e4.', "b'a'", '...', 'None', '\x00', '"', '\\', '1\n2')) | \
    st.recursive(st.integers() | st.floats() | st.booleans() | st.text(max_size=3), st.lists).map(repr)
FLAGS = st.builds('{}{}{}{}'.format, st.sampled_from(('--', '--', '-', '---', '')), st.sampled_from(sorted(DEFAULTS)) | st.text(max_size=6),
                  st.sampled_from(('=', '=', '=', '==', '', ' ')), VALUES)
PROGRAM = st.lists(st.sampled_from([*DEFAULTS, '=', '= ', '\n', '1', '1e999', '"a"', "'", '[', ']', '(', ' ', '\t', '#', 'import math', '\x00', '风',
                                    'lambda: 1', 'def f', ':', 'raise ValueError', '1/0', '_a', '2**9', '"\\ud800"']), max_size=12).map(''.join)


@fuzz(0.15, argv=st.lists(FLAGS, max_size=4), program=st.none() | PROGRAM | st.binary(max_size=20))
def test_any_command_line_gives_settings_of_the_right_types_or_one_line(argv, program):
    script, hook = {'__file__': os.path.join(ROOT, 'train.py'), '__doc__': 'Trains.', **DEFAULTS}, sys.excepthook
    argv = [arg for arg in argv if arg not in ('-h', '--help') and not os.path.exists(os.path.join(ROOT, arg.replace('\x00', '')))]
    if program is not None:
        path = os.path.join(SCRATCH.name, 'fuzz_config.py')
        with open(path, 'wb') as f:
            f.write(program if isinstance(program, bytes) else program.encode('utf-8'))
        argv.append(path)
    try:
        found = configurator.configure(script, argv)
    except SystemExit as end:
        clear(end)
        return
    finally:
        sys.excepthook = hook
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in DEFAULTS.items()}


# --- folders ----------------------------------------------------------------------------------------------------------

def save_tiny(folder, **fields):
    t = tokenizer.build_characters(SONGS[:2])
    checkpoint.save_model(folder, make_model(vocab_size=t.vocab_size, **fields), t)


@functools.cache
def ours():
    return Folder(save_tiny)


@functools.cache
def foreign():
    """A folder as transformers or an old run might have left it: no hashes."""
    def make(folder):
        save_tiny(folder)
        os.remove(os.path.join(folder, 'sha256.json'))
    return Folder(make)


@functools.cache
def old():
    """A folder of nanoGPT."""
    def make(folder):
        model = make_model(vocab_size=40)
        torch.save({'model': model.state_dict(), 'model_args': {'n_layer': 2, 'n_head': 2, 'n_embd': 16, 'block_size': 16, 'bias': True,
                                                                'vocab_size': 40, 'dropout': 0.0}, 'config': {'dataset': 'x'}},
                   os.path.join(folder, 'ckpt.pt'))
        letters = sorted(set(''.join(SONGS)))[:40]
        with open(os.path.join(folder, 'meta.pkl'), 'wb') as f:
            pickle.dump({'vocab_size': 40, 'stoi': {c: i for i, c in enumerate(letters)}, 'itos': dict(enumerate(letters))}, f)
    return Folder(make)


@functools.cache
def bert():
    """A folder with a BERT vocabulary and weights in pytorch_model.bin."""
    def make(folder):
        kinds()
        shutil.copy(os.path.join(SCRATCH.name, 'fuzz-vocab.txt'), os.path.join(folder, 'vocab.txt'))
        size = kinds()['wordpiece'].vocab_size
        model = make_model(vocab_size=size)
        checkpoint.save_model(folder, model, kinds()['wordpiece'])
        weights = checkpoint.load_file(os.path.join(folder, 'model.safetensors'))
        torch.save(weights, os.path.join(folder, 'pytorch_model.bin'))
        for name in ('model.safetensors', 'sha256.json', 'tokenizer.json'):
            os.remove(os.path.join(folder, name))
    return Folder(make)


def opened(folder):
    """(weights, tokenizer's text) of a model folder, or None after one clear line."""
    try:
        model, t = checkpoint.load_model(folder.path)
    except SystemExit as end:
        assert folder.path in clear(end)
        return None
    t.decode(t.encode(SONGS[0]))
    return {k: w.clone() for k, w in model.state_dict().items()}, t.hf.to_str(), vars(model.config)


def alike(a, b):
    return all(torch.equal(a[0][k], b[0][k]) for k in b[0]) and a[1:] == b[1:]


@fuzz(0.1, data=st.data())
def test_a_damaged_model_folder_of_ours_is_refused_or_opens_as_the_same(data):
    folder = ours()
    if not hasattr(folder, 'right'):
        folder.right = opened(folder)
        assert folder.right
    folder.wounded(data, ['config.json', 'model.safetensors', 'tokenizer.json', 'sha256.json', 'tokenizer_config.json'])
    now = opened(folder)
    assert now is None or alike(now, folder.right), 'silent garbage'


@fuzz(0.15, data=st.data(), which=st.sampled_from((foreign, foreign, old, bert)))
def test_a_damaged_model_folder_of_others_opens_or_ends_in_one_line(data, which):
    folder = which()
    folder.wounded(data, [name for name in folder.whole if not name.endswith('_config.json')])
    opened(folder)


@functools.cache
def state():
    def make(folder):
        model = make_model()
        o = torch.optim.AdamW(model.parameters())
        model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).backward()
        o.step()
        checkpoint.save_state(folder, {'model': model.state_dict(), 'optimizers': [o.state_dict()], 'step': 3, 'best_val_loss': 1.5})
    return Folder(make)


@fuzz(0.08, data=st.data())
def test_a_damaged_train_state_is_refused_or_opens_as_the_same(data):
    """torch.load does not look at the checksums of the file it reads: a flipped bit was a slightly different optimizer."""
    folder = state()
    if not hasattr(folder, 'right'):
        folder.right = checkpoint.load_state(folder.path)
    folder.wounded(data, ['train_state.pt'])
    try:
        now = checkpoint.load_state(folder.path)
    except SystemExit as end:
        assert 'train_state.pt' in clear(end)
        return
    assert same(now, folder.right), 'silent garbage'


def flips(whole, count=60):
    """The bytes with one bit flipped, in `count` places from the first to the last."""
    for i in range(count):
        at = i * (len(whole) - 1) // (count - 1)
        yield whole[:at] + bytes([whole[at] ^ 1 << i % 8]) + whole[at + 1:]


@pytest.mark.parametrize('make, name', [(lambda: ours(), 'model.safetensors'), (lambda: ours(), 'config.json'), (lambda: ours(), 'tokenizer.json'),
                                        (lambda: state(), 'train_state.pt'), (lambda: shards(), 'train.bin'), (lambda: shards(), 'tokenizer.json')])
def test_a_flipped_bit_in_any_region_of_a_file_is_never_silent(make, name):
    folder = make()

    def load():
        if folder is ours():
            return opened(folder)
        if folder is state():
            return checkpoint.load_state(folder.path)
        return [ids.tolist() for ids in dataset.load(folder.path)[0].values()]
    for other, bytes_ in folder.whole.items():
        with open(os.path.join(folder.path, other), 'wb') as f:
            f.write(bytes_)
    right = load()
    for bytes_ in flips(folder.whole[name]):
        with open(os.path.join(folder.path, name), 'wb') as f:
            f.write(bytes_)
        try:
            now = load()
        except SystemExit as end:
            clear(end)
        else:
            assert now is None or same(now, right), 'silent garbage'
    with open(os.path.join(folder.path, name), 'wb') as f:
        f.write(folder.whole[name])


@functools.cache
def shards():
    return Folder(lambda folder: dataset.write(folder, tokenizer.build_characters(SONGS[:6]), SONGS[:6], SONGS[6:]))


@fuzz(0.1, data=st.data())
def test_a_damaged_dataset_is_refused_or_opens_as_the_same(data):
    folder = shards()

    def load():
        data, _ = dataset.load(folder.path)
        t = tokenizer.load(os.path.join(folder.path, 'tokenizer.json'))
        return data['train'].tolist(), data['val'].tolist(), t.hf.to_str()
    if not hasattr(folder, 'right'):
        folder.right = load()
    folder.wounded(data, list(folder.whole))
    try:
        now = load()
    except (SystemExit, ValueError) as error:
        assert folder.path in clear(error)
        return
    assert now == folder.right, 'silent garbage'


@fuzz(0.03, data=st.data())
def test_a_damaged_log_does_not_keep_a_run_from_going_on(data):
    folder = log()
    folder.wounded(data, ['log.jsonl'])
    going_on = runlog.RunLog(folder.path, 5, {}, {})
    going_on.add(step=6, loss=1.0)
    last = going_on.rows()[-1]
    assert (last['step'], last['loss']) == (6, 1.0)


@functools.cache
def log():
    def make(folder):
        lines = runlog.RunLog(folder, 0, {}, {})
        for step in range(1, 8):
            lines.add(step=step, loss=4.0 / step)
    return Folder(make)


@fuzz(0.03, data=st.data())
def test_a_damaged_note_of_the_splits_is_no_traceback(data):
    folder = splits()
    name = folder.wounded(data, ['split.json'])
    try:
        assert corpus.prepare('', folder.path)
    except SystemExit as end:
        assert name and folder.path in clear(end)


@functools.cache
def splits():
    def make(folder):
        os.makedirs(folder + '-songs')
        for i, song in enumerate(SONGS):
            with open(os.path.join(folder + '-songs', f'{i}.txt'), 'w', encoding='utf-8') as f:
                f.write(song)
        corpus.prepare(folder + '-songs', folder)
    return Folder(make)


def test_how_many_cases_these_were_is_told(capsys):
    with capsys.disabled():
        print(f' {tried:,} cases ' if 'FUZZ_CASES' in os.environ else '', end='')
