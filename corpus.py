"""
Raw lyrics -> clean songs -> train / valid / test.

A song here is a text: its lines joined by '\n', no empty ones. Sources: a folder (one song a file: .txt, .lrc; or
.jsonl, .json, .csv), one such file (.txt: a blank line separates songs), a .zip or .tgz of them, or a name: embedded,
thuclgpt, songci. The three splits are written once, as lyric_{train,valid,test}.txt; all lyric datasets are made of them.
"""
import csv
import hashlib
import html
import io
import json
import os
import re
import urllib.parse

import numpy as np

import archive
import files

HERE = os.path.dirname(os.path.abspath(__file__))
SPLITS = ('train', 'valid', 'test')
KINDS = ('.txt', '.lrc', '.jsonl', '.json', '.csv')
THUCLGPT = 'https://raw.githubusercontent.com/Derican/thuclGPT/cae8286eeca0e06ba4f1bc7bc128db290e32802b/data/lyric/'
THUCLGPT_IDS = {'train': 'ec12f4efb4010bd960ed2d6064acaadd52854ec2', 'valid': '210393e1b0266ea374997c3509089163c39d135e',
                'test': 'f325852cd9f18e86b7dc363664e86986ebe498af'}
SONGCI = 'https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/99ebbef7e1345c0985c44b9fd96a3f9e776f117b/'
SONGCI_FILES = [*(f'宋词/ci.song.{n}.json' for n in range(0, 22000, 1000)), '元曲/yuanqu.json']


# --- cleaning ---------------------------------------------------------------------------------------------------------

TIME_STAMP = re.compile(r'\[\d+:\d+(?:[.:]\d+)?\]|<\d+:\d+(?:[.:]\d+)?>')
LRC_TAG = re.compile(r'^\[(?:ti|ar|al|by|offset|re|ve|au|length|kana|hash|total|sign|qq|id):.*\]$', re.I)
# 作词：某某, 编曲/制作人 : 某某, Lyrics by: ... Roles and a colon, nothing else before it: a sung line with 词 in it stays.
ROLE = (r'(?:[作填]?[词詞]|[作谱譜]?曲|原唱|演唱|歌手|[编編][曲写寫]|改[编編]|[监監][制製唱棚]|[录錄]音|混音|[缩縮]混|母[带帶]|和[声聲音]|吉他|[贝貝]斯|鼓'
        r'|[键鍵][盘盤]|弦[乐樂]|[钢鋼]琴|制作|製作|出品|策[划劃]|[发發]行|[统統][筹籌]|推[广廣]|文案|企[划劃]|[设設][计計]|OP|SP|ISRC|LRC'
        r'|lyrics?|lyricist|music|compos(?:ed|er)|arrang(?:ed|er)|produc(?:ed|er)|written|mixed|vocals?|singer)')
CREDIT = re.compile(rf'^{ROLE}(?:[\s/、&和与與]*{ROLE})*(?:人|者|师|師|室|公司| by)?\s*[:：]', re.I)
NOT_TEXT = re.compile('[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffe\uffff]')


def clean(text):
    """
    One song's lines, cleaned: LRC time stamps and tags, credit lines, HTML entities, control and zero-width characters
    go; every run of white space inside a line becomes one space; empty lines go. '' when nothing is left.

    >>> clean('[ti:风]\\r\\n[00:01.00]作词：某人\\r\\n[00:02.00] 风\\u3000来了\\n\\n走了')
    '风 来了\\n走了'
    """
    lines = []
    text = html.unescape(re.sub('&#[0-9]{9,};?', '', text))  # Python refuses numbers of thousands of digits
    for line in re.split('\r\n|[\r\n\v\f\x85\u2028\u2029]', text):
        line = NOT_TEXT.sub('', line.encode('utf-8', 'replace').decode('utf-8'))  # lone surrogates become '?'
        line = ' '.join(TIME_STAMP.sub(' ', line).split())
        if line and not LRC_TAG.match(line) and not CREDIT.match(line):
            lines.append(line)
    return '\n'.join(lines)


def drop_copies(songs, share=1 / 3, run=8):
    """
    The songs less those of whose `run`-character runs at least `share` stand in a longer song, or an earlier one of the
    same length: copies, excerpts, live versions, other transcriptions. So no song stands in two splits, and none is
    learned twice. Order is kept.
    """
    seen, unique = set(), []
    for at, song in enumerate(songs):
        letters = ''.join(re.findall(r'\w', song)).lower()
        if letters and letters not in seen:
            seen.add(letters)
            unique.append((at, letters))
    if not unique:
        return []
    unique.sort(key=lambda pair: -len(pair[1]))  # longest first: a short song in a long one shares more of its runs
    hashes, owners = [], []
    for i, (_, letters) in enumerate(unique):
        codes = np.frombuffer(letters.encode('utf-32-le'), np.uint32).astype(np.uint64)
        n = max(0, len(codes) - run + 1)
        h = np.zeros(n, np.uint64)
        for k in range(run):  # polynomial hash modulo 2**64
            h = h * np.uint64(1099511628211) + codes[k:k + n]
        hashes.append(h)
        owners.append(np.full(n, i))
    hashes, owners = np.concatenate(hashes), np.concatenate(owners)
    _, first, back = np.unique(hashes, return_index=True, return_inverse=True)  # first: in the longest song
    copied = np.bincount(owners, owners[first][back] < owners, minlength=len(unique))
    total = np.bincount(owners, minlength=len(unique))
    return [songs[at] for at in sorted(at for (at, _), c, t in zip(unique, copied, total) if t == 0 or c < share * t)]


def split(songs):
    """
    {'train': [...], 'valid': [...], 'test': [...]}: 90%, 5%, 5% of the songs, each by the hash of its own text, so that
    songs added later move none. Where that leaves a split empty, the songs with the smallest hashes fill it; a single
    long text is cut at line ends. Raises ValueError below three lines.
    """
    if len(songs) < 3:
        lines = '\n'.join(songs).split('\n')
        if len(lines) < 3:
            raise ValueError('three lines are needed, one for each of train, valid and test')
        a, b = min(int(len(lines) * .9), len(lines) - 2), min(int(len(lines) * .95), len(lines) - 1)
        return {'train': ['\n'.join(lines[:a])], 'valid': ['\n'.join(lines[a:max(b, a + 1)])],
                'test': ['\n'.join(lines[max(b, a + 1):])]}
    place = [int.from_bytes(hashlib.sha256(song.encode()).digest()[:8], 'big') / 2**64 for song in songs]
    name = ['test' if p < .05 else 'valid' if p < .10 else 'train' for p in place]
    order = sorted(range(len(songs)), key=place.__getitem__)
    for i, wanted in zip((order[0], order[1], order[-1]), ('test', 'valid', 'train')):
        if wanted not in name:
            name[i] = wanted
    return {s: [song for song, n in zip(songs, name) if n == s] for s in SPLITS}


# --- reading ----------------------------------------------------------------------------------------------------------

def decode(data, name):
    """bytes -> str: UTF-8, UTF-16 with its mark, or GB18030. Raises ValueError that names the file."""
    for encoding in (['utf-16'] if data[:2] in (b'\xff\xfe', b'\xfe\xff') else ['utf-8-sig', 'gb18030']):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    raise ValueError(f'{name} is neither UTF-8 nor UTF-16 nor GB18030 text')


def texts_in(data, name, alone=False):
    """The raw song texts in one file's bytes. `alone`: a .txt that is the whole source, where blank lines part songs."""
    text, ext = decode(data, name), os.path.splitext(name)[1].lower()
    if ext in ('.txt', '.lrc'):
        text = text.replace('\r\n', '\n').replace('\r', '\n')
        return re.split(r'\n\s*\n', text) if alone else [text]
    try:
        if ext == '.csv':
            csv.field_size_limit(1 << 30)
            items = list(csv.DictReader(io.StringIO(text)))
        else:
            items = [json.loads(line) for line in text.split('\n') if line.strip()] if ext == '.jsonl' else json.loads(text)
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f'{name} is no valid {ext[1:]}: {error}') from error
    items = items if isinstance(items, list) else [items]
    texts = [item if isinstance(item, str) else next(
        (item[k] for k in ('text', 'lyrics', 'lyric', 'paragraphs', 'content') if item.get(k)), None)
        for item in items if isinstance(item, (dict, str))]
    if items and not any(texts):
        raise ValueError(f'{name} has no field text or lyrics')
    return ['\n'.join(map(str, t)) if isinstance(t, list) else str(t) for t in texts if t]


def _holds_songs(name):  # what a Mac hides beside each file, ._song.txt, is none
    return name.lower().endswith(KINDS) and not os.path.basename(name).startswith('.')


def _songs_among(names):
    """Which of an archive's files to read. Of the chinese-poetry collection: the song forms, not all of Tang poetry."""
    songs = [name for name in names if _holds_songs(name)]
    return [n for n in songs if re.search(r'(^|/)(宋词|元曲|songci|yuanqu)/(ci\.song\.\d+|.*yuanqu)\.json$', n)] or songs


def members(path):
    """(name, bytes) of the song files in a folder, an archive, or of the file itself, in the order of their names."""
    if os.path.isdir(path):
        names = sorted(os.path.join(root, f) for root, _, found in os.walk(path) for f in found)
        for name in names:
            if _holds_songs(name):
                with open(name, 'rb') as f:
                    yield os.path.relpath(name, path), f.read()
    elif path.lower().endswith(('.zip', '.tgz', '.tar.gz')):
        yield from archive.members(path, _songs_among)
    else:
        with open(path, 'rb') as f:
            yield os.path.basename(path), f.read()


def read_songs(source):
    """Clean songs of a source, copies dropped. Raises ValueError on what cannot be read."""
    if source == 'embedded':  # each file: a title, a blank line, the song
        texts = [decode(d, n).partition('\n\n')[2] for n, d in members(os.path.join(HERE, 'data', 'lyric', 'songs'))]
    elif not os.path.exists(source):
        raise ValueError(f'{source}: no such file or folder; the named sources are embedded, songci and thuclgpt')
    else:
        alone = os.path.isfile(source) and source.lower().endswith('.txt')
        texts = [t for name, data in members(source) for t in texts_in(data, name, alone)]
    songs = drop_copies([song for song in map(clean, texts) if song])
    if not songs:
        raise ValueError(f'{source} holds no lyrics (read are {" ".join(KINDS)}, folders, .zip and .tgz of them)')
    return songs


def fetch(source, folder, mirror=''):
    """
    Download a named source into `folder` and return {split: songs}. `mirror` replaces https://raw.githubusercontent.com.
    """
    os.makedirs(folder, exist_ok=True)
    at = (lambda url: url.replace('https://raw.githubusercontent.com', mirror.rstrip('/'))) if mirror else str
    if source == 'thuclgpt':
        splits = {}
        for name, blob_id in THUCLGPT_IDS.items():
            path = os.path.join(folder, f'thuclgpt_{name}.txt')
            files.download(at(THUCLGPT) + f'lyric_{name}.txt', path, blob_id=blob_id)
            splits[name] = read_text(path)
        return splits
    for name in SONGCI_FILES:
        path = os.path.join(folder, os.path.basename(name))
        files.download(at(SONGCI) + urllib.parse.quote(name), path, check=_holds_poems)
    return split(read_songs(folder))


def _holds_poems(path):
    with open(path, 'rb') as f:
        texts_in(f.read(), path + '.json')


def read_text(path):
    """The clean songs of a text file, in its order, nothing dropped: a blank line parts songs; none: one long text."""
    with open(path, 'rb') as f:
        return [song for song in map(clean, texts_in(f.read(), os.path.basename(path), alone=True)) if song]


def _note_of(path):
    """What split.json says; one that is missing or damaged says that nothing was written by us."""
    try:
        with open(path, encoding='utf-8') as f:
            made = json.load(f)
        return {'source': str(made['source']), 'sha256': dict(made['sha256'])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {'source': '', 'sha256': {}}


def prepare(source='', folder=None, mirror=''):
    """
    {'train': songs, 'valid': songs, 'test': songs}, read from or written to `folder`/lyric_{train,valid,test}.txt.
    source '' takes the files that stand there, else the embedded songs. Three files put there by hand are never
    overwritten: split.json tells which ones this function wrote. Ends in SystemExit, one line, on the user's mistake.
    """
    paths = {s: os.path.join(folder, f'lyric_{s}.txt') for s in SPLITS}
    note, there = os.path.join(folder, 'split.json'), [p for p in paths.values() if os.path.exists(p)]
    made = _note_of(note)
    ours = bool(there) and all(made['sha256'].get(os.path.basename(p)) == files.sha256(p) for p in there)
    if there and not ours and (source or len(there) < 3):
        raise SystemExit(f'{folder} holds {", ".join(map(os.path.basename, there))}, put there by hand: '
                         + ('move the files away to use --source.' if source else 'all three splits are needed.'))
    if len(there) == 3 and not source and (not ours or made['source'] != 'embedded'):
        return {s: read_text(p) for s, p in paths.items()}
    source = source or 'embedded'
    try:
        named = source in ('songci', 'thuclgpt')
        splits = fetch(source, os.path.join(folder, 'download', source), mirror) if named else split(read_songs(source))
    except ValueError as error:
        raise SystemExit(f'--source: {error}') from error
    os.makedirs(folder, exist_ok=True)
    for name, songs in splits.items():
        with files.atomic(paths[name]) as f:
            f.write('\n\n'.join(songs) + '\n')
    with files.atomic(note) as f:
        json.dump({'source': source, 'sha256': {os.path.basename(p): files.sha256(p) for p in paths.values()}}, f, indent=1)
    return splits
