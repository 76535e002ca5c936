"""
Checks the embedded songs, data/lyric/songs: form, rhyme, repeats, words, splits, and what they share with other texts.

    python dev/check_songs.py                                     # seconds; names each broken promise, exits non-zero
    python dev/check_songs.py --known=my_lyrics/,poems.txt.xz     # and: does a run of eight characters stand there too?
    python dev/check_songs.py --write                             # puts the figures into data/lyric/songs/README.md

Needs pypinyin, of requirements-dev.txt.
"""
import collections
import glob
import hashlib
import lzma
import os
import random
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import corpus
import files
from configurator import configure
from quality import endings, letters, rhyme_rate

songs_dir = ''  # folder of the songs, one file a song; '' = data/lyric/songs of this project
known = ''  # other people's lyrics: files or folders of .txt, .lrc, .json, .xz, .zip, .tgz, parted by commas; '' = none
write = False  # put the table of figures between the markers of README.md in the songs' folder
min_songs = 600  # songs at least
min_characters = 130_000  # Chinese characters at least, titles not counted
min_sung = 0.9  # least share of lines of 5 to 14 characters
max_line = 18  # characters of the longest line
min_rhyme = 0.4  # least share of lines that rhyme, in each song: every second line makes 0.5, less its refrains
max_sharing = 3  # songs at most that one line may stand in
max_known = 0.002  # largest share of eight-character runs that may stand in `known`
configure(globals())

RUN = 8  # characters that make a line someone else's
KNOWN_ROW = '别人歌词和诗里也有的八字串 · runs of eight characters found in other lyrics and poems'
MARKS = '<!-- figures: dev/check_songs.py -->', '<!-- end of figures -->'
RARE = '拃囍啰蹚瞭嗞'  # allowed beyond GB 2312, the simplified characters of 1980, by which a traditional one is told


def read(folder):
    """{file name: text} of the songs as they stand; what is no UTF-8 becomes a character not allowed."""
    return {name: data.decode('utf-8', 'replace') for name, data in corpus.members(folder)} \
        or sys.exit(f'{folder} holds no songs')


def lines_of(text):
    """The sung lines: neither title nor blank ones."""
    return [line for line in text.partition('\n\n')[2].split('\n') if line]


def known_texts(path):
    """(file, text) of other people's lyrics: a folder's files one by one, an archive's members, an .xz unpacked."""
    if os.path.isdir(path):
        for name in sorted(glob.glob(os.path.join(glob.escape(path), '**', '*.*'), recursive=True)):
            if name.lower().endswith((*corpus.KINDS, '.xz', '.zip', '.tgz', '.tar.gz')):
                yield from known_texts(name)
    elif not os.path.isfile(path):
        raise SystemExit(f'--known: there is no {path}')
    elif path.lower().endswith('.xz'):
        with lzma.open(path, 'rt', encoding='utf-8') as f:
            yield path, f.read()
    else:
        for name, data in corpus.members(path):
            yield os.path.join(path, name), '\n\n'.join(corpus.texts_in(data, name))


def check_form(songs):
    """What is wrong with the files' form, song by song."""
    wrong, titles = [], {}
    for name, text in songs.items():
        title = text.partition('\n')[0]
        if not re.fullmatch(r'[^\n]+\n\n[^\n]+(?:\n{1,2}[^\n]+)*\n', text):
            wrong.append(f'{name}: not a title, a blank line, sections with one blank line between, a newline')
        if text.count('\n\n') < 3:
            wrong.append(f'{name}: fewer than three sections')
        for line in text.split('\n'):
            if line and not re.fullmatch('[\u4e00-\u9fff]+(?: [\u4e00-\u9fff]+)*', line):
                wrong.append(f'{name}: a line has more than Chinese characters and single spaces: {line!r}')
            if len(letters(line)) > max_line:
                wrong.append(f'{name}: a line of {len(letters(line))} characters: {line}')
        strange = sorted(c for c in set(letters(text)) - set(RARE) if not c.encode('gb2312', 'ignore'))
        if strange:
            wrong.append(f'{name}: not simplified, or very rare: {"".join(strange)}')
        if titles.setdefault(title, name) != name:
            wrong.append(f'{name}: the title {title} is taken by {titles[title]}')
    return wrong


def check_copies(songs):
    """What stands twice: near-duplicate songs, and lines in more than `max_sharing` songs. Returns (figures, wrong)."""
    texts = {name: '\n'.join(lines_of(text)) for name, text in songs.items()}
    kept, wrong = corpus.drop_copies(list(texts.values())), []
    for name, text in texts.items():
        if kept[:1] == [text]:  # drop_copies keeps the order
            kept.pop(0)
        else:
            wrong.append(f'{name}: a copy of another song, in whole or in part')
    copies, owners = len(wrong), collections.defaultdict(set)
    for name, text in songs.items():
        for line in lines_of(text):
            owners[letters(line)].add(name)
    wrong += [f'{line}: this line stands in {len(s)} songs: {", ".join(sorted(s))}'
              for line, s in owners.items() if len(s) > max_sharing]
    return {'copies': copies, 'lines': len(owners), 'shared': sum(len(s) > 1 for s in owners.values())}, wrong


def check_rhyme(songs):
    """The rhyme rates, those of all lines shuffled, and which songs hardly rhyme. Returns (figures, wrong)."""
    ends = {name: endings(lines_of(text)) for name, text in songs.items()}
    rates = {name: rhyme_rate(e) for name, e in ends.items()}
    pool = [end for e in ends.values() for end in e]
    wrong = [f'{name}: {rate:.0%} of its lines rhyme' for name, rate in rates.items() if rate < min_rhyme]
    return {'rhyme': sum(rates[n] * len(ends[n]) for n in ends) / max(1, len(pool)), 'least': min(rates.values()),
            'chance': rhyme_rate(random.Random(0).sample(pool, len(pool)))}, wrong


def check_known(songs):
    """Which runs of eight characters, line ends not counted, stand in `known`: names each. Returns (figures, wrong)."""
    owner = {}
    for name, text in songs.items():
        song = letters(''.join(lines_of(text)))
        for i in range(len(song) - RUN + 1):
            owner.setdefault(song[i:i + RUN], name)
    found, size = {}, 0
    for path in filter(None, known.split(',')):
        for source, text in known_texts(path.strip()):
            text = re.sub('[^\u4e00-\u9fff|]', '', re.sub(r'\n\s*\n', '|', text))  # | between songs: no run crosses it
            size += len(text)
            for i in range(len(text) - RUN + 1):
                if text[i:i + RUN] in owner:
                    found.setdefault(text[i:i + RUN], source)
    for run, source in sorted(found.items(), key=lambda item: owner[item[0]]):
        print(f'{owner[run]}: {run} stands in {source}')
    wrong = [f'{len(found):,} runs of {RUN} characters stand in other texts']
    return {'known_size': size, 'found': len(found), 'runs': len(owner)}, wrong * (len(found) > max_known * len(owner))


def growth(songs, step=100):
    """[(songs, distinct characters)] after each `step` songs, in an order that mixes the themes."""
    order = sorted(songs, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [(n, len(set(letters(''.join(line for name in order[:n] for line in lines_of(songs[name]))))))
            for n in [*range(step, len(order), step), len(order)]]


def table(figures, splits, grown):
    """The figures as lines of Markdown, Chinese and English."""
    f, unseen = figures, set(''.join(splits['valid'] + splits['test'])) - set(''.join(splits['train']))
    rows = [('歌 · songs', f'{f["songs"]:,}'),
            ('汉字，不计歌名 · characters without titles', f'{f["characters"]:,}'),
            ('句；其中五到十四字的 · lines; of 5 to 14 characters', f'{f["all_lines"]:,}; {f["sung"]:.1%}'),
            ('重复的歌 · near-duplicate songs', f'{f["copies"]:,}'),
            ('在两首以上的歌里出现的句子 · lines that stand in more than one song', f'{f["shared"]:,} / {f["lines"]:,}'),
            ('押韵的句子（十三辙）· lines that rhyme', f'{f["rhyme"]:.0%}'),
            ('押韵最少的一首；若把句子全打乱 · in the song that rhymes least; were all lines shuffled',
             f'{f["least"]:.0%}; {f["chance"]:.0%}'),
            ('不同的字，唱到第几首 · distinct characters after so many songs', ', '.join(f'{n:,}: {c:,}' for n, c in grown)),
            ('训练、验证、测试 · train, valid, test songs', ', '.join(f'{len(splits[s]):,}' for s in corpus.SPLITS)),
            ('后两者里训练没有的字 · characters of the latter two unseen in train', f'{len(unseen):,}')]
    if 'runs' in f:
        rows.append((KNOWN_ROW, f'{f["found"]:,} / {f["runs"]:,}，对照 against {f["known_size"]:,} 字 characters'))
    return ['| 数 · figure | |', '|---|---|'] + [f'| {a} | {b} |' for a, b in rows]


def write_table(path, rows):
    """Put `rows` between the markers; without --known the row about known texts stays as it was measured."""
    with open(path, encoding='utf-8') as f:
        text = f.read()
    before, mark, rest = text.partition(MARKS[0])
    old, end, after = rest.partition(MARKS[1])
    assert mark and end, f'{path} has no place for the figures: {MARKS}'
    if not known:
        rows = rows + [line for line in old.split('\n') if line.startswith(f'| {KNOWN_ROW} |')]
    with files.atomic(path) as f:
        f.write(before + mark + '\n' + '\n'.join(rows) + '\n' + end + after)


def stop_if(wrong):
    """End the script with the broken promises, if there are any."""
    if wrong:
        print('\n'.join(wrong), file=sys.stderr)
        raise SystemExit(f'{len(wrong):,} promises are broken')


folder = songs_dir or os.path.join(corpus.HERE, 'data', 'lyric', 'songs')
songs = read(folder)
lengths = [len(letters(line)) for text in songs.values() for line in lines_of(text)]
figures = {'songs': len(songs), 'characters': sum(lengths), 'all_lines': len(lengths),
           'sung': sum(5 <= n <= 14 for n in lengths) / max(1, len(lengths))}
stop_if(check_form(songs))  # the other checks build on the form
least = {'songs': min_songs, 'characters': min_characters, 'sung': min_sung}
wrong = [f'{name}: {figures[name]:,}, less than {least[name]:,}' for name in least if figures[name] < least[name]]
for check in (check_copies, check_rhyme) + ((check_known,) if known else ()):
    more, mistakes = check(songs)
    figures.update(more)
    wrong += mistakes
splits = corpus.split(['\n'.join(lines_of(text)) for text in songs.values()])
rows = table(figures, splits, growth(songs))
print('\n'.join(rows))
if write:
    write_table(os.path.join(folder, 'README.md'), rows)
stop_if(wrong)
