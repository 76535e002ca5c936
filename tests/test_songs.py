"""The embedded songs keep what data/lyric/songs/README.md promises; a song that breaks a promise is found and named."""
import os
import re
import shutil

import pytest

import corpus
from conftest import ROOT

SONGS = os.path.join(ROOT, 'data', 'lyric', 'songs')
CHECK = 'dev/check_songs.py'
# written for this test; its last section is sung to nobody
SONG = '''晾在风里的伞

巷口那把伞 晾了一下午
骨头断一根 照样撑着路
卖豆的阿婶 问我几时补
我说等雨停 雨说它不住

伞啊伞 你替谁站着
站到墙根下 青苔都绿了
伞啊伞 你替谁湿着
湿到没人问 天自己晴了

收伞的那天 落一地水珠
滚进砖缝里 喂了一棵树

伞啊伞 你替谁站着
站到墙根下 青苔都绿了
'''


@pytest.fixture
def folder(tmp_path):
    """folder(text, ...): a folder of songs 1.txt, 2.txt, ... for the check."""
    def folder(*texts):
        path = tmp_path / 'songs'
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for i, text in enumerate(texts, 1):
            (path / f'{i}.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
        return f'--songs_dir={path}'
    return folder


SMALL = ('--min_songs=1', '--min_characters=1')


def test_the_songs_keep_their_promises_and_the_readme_tells_their_figures(run):
    """600 songs, 130,000 characters, form, rhyme, no copies, no line in more than three songs: seconds, no network."""
    result = run(CHECK)
    assert result.code == 0, result.err
    with open(os.path.join(SONGS, 'README.md'), encoding='utf-8') as f:
        readme = f.read()
    assert result.out.strip() in readme, 'renew the figures: python dev/check_songs.py --write'


def test_only_the_songs_are_read_as_songs():
    """README.md and LICENSE stand in the same folder; each .txt there is one song, and none is dropped as a copy."""
    names = [name for name, _ in corpus.members(SONGS)]
    assert {'README.md', 'LICENSE'} <= set(os.listdir(SONGS)) and not {'README.md', 'LICENSE'} & set(names)
    assert len(corpus.read_songs('embedded')) == len(names) == sum(n.endswith('.txt') for n in os.listdir(SONGS))


def test_a_sound_song_passes(run, folder):
    assert run(CHECK, folder(SONG), *SMALL).code == 0


@pytest.mark.parametrize('broken, says', [
    (SONG.replace('\n\n', '\n', 1), 'not a title'),
    (SONG.replace('\n\n', '\n\n\n', 2), 'not a title'),
    (SONG + '\n', 'not a title'),
    (SONG.replace('晴了', '晴了 '), 'more than Chinese characters'),
    (SONG.replace('照样', '照样，'), 'more than Chinese characters'),
    (SONG.replace('阿婶', 'Mary'), 'more than Chinese characters'),
    (SONG.replace('伞', '傘'), 'not simplified'),
    (SONG.encode('gb18030'), 'more than Chinese characters'),
    (b'\xef\xbb\xbf' + SONG.encode(), 'more than Chinese characters'),
    (SONG.replace('\n', '\r\n'), 'more than Chinese characters'),
    (SONG.replace('卖豆的阿婶 问我几时补', '卖豆的阿婶她每天下午都要过来问我几时补'), 'a line of 19'),
    (re.sub('[午路补住珠树]', '山', SONG.replace('着\n', '火\n').replace('了\n', '西\n')), 'of its lines rhyme')])
def test_a_song_that_breaks_the_form_is_named(run, folder, broken, says):
    result = run(CHECK, folder(broken), *SMALL)
    assert result.code != 0 and re.search(rf'^1\.txt: .*{says}', result.err, re.M), result.err


def test_copies_and_stock_lines_and_too_few_songs_are_named(run, folder):
    copy = SONG.replace('晾在风里的伞', '又一把伞').replace('几时补', '怎么补')
    assert '2.txt: a copy' in run(CHECK, folder(SONG, copy), *SMALL).err
    assert 'the title 晾在风里的伞 is taken by 1.txt' in run(CHECK, folder(SONG, SONG), *SMALL).err
    four = [f'{title}\n\n卖豆的阿婶问我几时补\n\n{line}\n\n{line}\n' for title, line in zip('甲乙丙丁', ('水满', '火灭', '土松', '木香'))]
    assert 'stands in 4 songs: 1.txt' in run(CHECK, folder(*four), *SMALL).err
    assert 'stands in' not in run(CHECK, folder(*four[:3]), *SMALL).err
    assert 'songs: 1, less than 600' in run(CHECK, folder(SONG)).err


def test_what_stands_in_other_texts_too_is_named_across_line_ends(run, folder, tmp_path):
    """A line break in another place hides nothing: 天自己晴了 收伞的 is one run. From song to song there is none."""
    (tmp_path / 'theirs.txt').write_text('谁在问天自\n己晴了收伞\n\n的那天', encoding='utf-8')
    result = run(CHECK, folder(SONG), *SMALL, f'--known={tmp_path / "theirs.txt"}')
    assert result.code != 0 and '1.txt: 问天自己晴了收伞 stands in' in result.out
    assert '晴了收伞的' not in result.out and 'runs of 8 characters stand in other texts' in result.err
    assert run(CHECK, folder(SONG), *SMALL, '--known=nowhere').message == '--known: there is no nowhere'


def test_new_songs_move_no_earlier_song_to_another_split():
    """The hash of a song's own text decides, so a model's test songs stay unseen when the collection grows."""
    songs = corpus.read_songs('embedded')
    before, after = corpus.split(songs[::2]), corpus.split(songs)
    for name in corpus.SPLITS:
        assert before[name] and set(before[name]) <= set(after[name])
    assert sum(map(len, after.values())) == len(songs)
