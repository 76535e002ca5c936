"""Raw lyrics become clean songs, and no song stands in two splits."""
import io
import json
import os
import re
import tarfile
import zipfile

import pytest

import corpus
import files
from conftest import SONGS


def invented(count, seed=0, lines=6):
    """`count` different songs of random characters, each line 7 of them."""
    import numpy as np
    letters = sorted(set(''.join(SONGS)) - {'\n'})
    rng = np.random.default_rng(seed)
    return ['\n'.join(''.join(rng.choice(letters, 7)) for _ in range(lines)) for _ in range(count)]


# --- cleaning ---------------------------------------------------------------------------------------------------------

def test_an_lrc_file_becomes_its_sung_lines():
    raw = ('[ti:纸鹤]\r\n[ar:无名]\r\n[al:]\r\n[by:某人]\r\n[offset:500]\r\n[00:00.00]作词：某人\r\n[00:01.00] 作曲 : 某人\r\n'
           '[00:12.34]纸鹤停在窗台上\r\n[00:15.00][01:15.00]等一阵不赶路的风\r\n[00:18]<00:18.10>把<00:18.40>昨天折成翅膀\r\n'
           '[01:02:33]飞过晾衣绳\r\n[00:20.00]\r\n')
    assert corpus.clean(raw) == '纸鹤停在窗台上\n等一阵不赶路的风\n把 昨天折成翅膀\n飞过晾衣绳'


@pytest.mark.parametrize('line', [
    '作词：某人', '作曲:某人', '编曲 : 某人', '词：某人', '曲：某人', '填词：某人', '作詞：某人', '編曲：某人', '词曲：某人',
    '作词/作曲：某人', '作词、作曲：某人', '编曲/制作人 : 某某', '制作人：某人', '混音师：某人', '录音室：某处', '和声：某人',
    '吉他：某人', '原唱：某人', '监制：某人', '母带：某处', 'OP：某公司', 'Lyrics by: Someone', 'Composed by：Someone',
    'Producer: Someone', 'lyricist:Someone', 'ISRC：XX-X00-00'])
def test_a_credit_line_goes(line):
    assert corpus.clean(f'{line}\n钟摆数到第九下') == '钟摆数到第九下'


@pytest.mark.parametrize('line', [
    '你写的词我唱成曲', '这首曲：献给你', '他说：别回头', '曲终人散', '鼓声响起', '和声渐远', '制作一只纸鹤', '我的词：都是你',
    '音乐停了', 'Music is my answer', '女：你哼错的那一句'])
def test_a_sung_line_that_looks_a_little_like_a_credit_stays(line):
    assert corpus.clean(line) == line


def test_spaces_and_line_ends_are_made_one_kind():
    assert corpus.clean('a\r\nb\rc\nd\u2028e\x85f\x0bg') == 'a\nb\nc\nd\ne\nf\ng'
    assert corpus.clean('  风\u3000\u3000来了\t \xa0走了  \n \u3000 \n\n再来') == '风 来了 走了\n再来'


def test_what_no_reader_sees_goes_and_html_is_read():
    assert corpus.clean('\ufeff风\u200b来\u200e了\x00\x7f\x1b') == '风来了'
    assert corpus.clean('Tom &amp; 小猫&#39;s&nbsp;歌') == "Tom & 小猫's 歌"
    assert corpus.clean('风\ud800来') == '风?来', 'a lone surrogate cannot be written as UTF-8'


def test_cleaning_a_clean_song_changes_nothing():
    assert [corpus.clean(song) for song in SONGS] == SONGS


@pytest.mark.parametrize('raw', ['', '\n\n', '[00:01.00]', '作词：某人', '[ti:风]\r\n', ' \u3000\u200b'])
def test_a_song_without_words_is_no_song(raw):
    assert corpus.clean(raw) == ''


# --- copies -----------------------------------------------------------------------------------------------------------

def test_copies_and_near_copies_go_and_the_order_stays():
    a, b, c = invented(3)
    other_lines = invented(1, seed=9)[0].split('\n')
    live = '\n'.join(a.split('\n')[:4] + other_lines[:2])  # four lines of six are a's
    spelled = b.replace('\n', '，\n') + '！'
    assert corpus.drop_copies([a, b, live, spelled, a, c]) == [a, b, c]


def test_a_line_that_many_songs_share_makes_them_no_copies():
    songs = [song + '\n啦啦啦啦啦啦啦' for song in invented(20)]
    assert corpus.drop_copies(songs) == songs


def test_short_songs_are_copies_only_when_they_are_the_same():
    assert corpus.drop_copies(['啦啦啦', '啦啦', '啦啦啦', '啦，啦啦！', 'LA la', 'la la']) == ['啦啦啦', '啦啦', 'LA la']


def test_an_excerpt_that_stands_before_the_whole_song_does_not_leak():
    """
    Only the later song was asked how much of it stands in the earlier one. A verse that came first, and then the whole
    song around it, both stayed: the verse could stand in test and every line of it in train.
    """
    whole = invented(1, lines=24)[0]
    verse = '\n'.join(whole.split('\n')[6:11])
    assert corpus.drop_copies([verse, whole]) == [whole]
    assert corpus.drop_copies([whole, verse]) == [whole]


def test_no_songs_are_no_mistake():
    assert corpus.drop_copies([]) == [] and corpus.drop_copies(['！！', '…']) == []


# --- splits -----------------------------------------------------------------------------------------------------------

def test_every_song_stands_in_exactly_one_split_of_about_the_right_size():
    songs = invented(1000)
    splits = corpus.split(songs)
    assert sorted(sum(splits.values(), [])) == sorted(songs)
    assert 30 <= len(splits['test']) <= 70 and 30 <= len(splits['valid']) <= 70


def test_the_split_is_the_same_whatever_the_order_and_whatever_is_added():
    songs, more = invented(400), invented(200, seed=1)
    before, after = corpus.split(songs), corpus.split(more + songs[::-1])
    for name in corpus.SPLITS:
        assert set(before[name]) <= set(after[name]), f'{name} lost a song to another split'


@pytest.mark.parametrize('count', [3, 4, 5, 10, 30])
def test_a_few_songs_fill_all_three_splits(count):
    for seed in range(20):
        songs = invented(count, seed)
        splits = corpus.split(songs)
        assert all(splits.values()) and sorted(sum(splits.values(), [])) == sorted(songs)


@pytest.mark.parametrize('lines', [3, 4, 5, 19, 20, 21, 40, 1000])
def test_one_long_text_is_cut_at_line_ends_and_loses_none(lines):
    text = invented(1, lines=lines)[0]
    splits = corpus.split([text])
    assert all(part[0] for part in splits.values())
    assert '\n'.join(splits[name][0] for name in corpus.SPLITS) == text


def test_fewer_than_three_lines_cannot_be_split():
    with pytest.raises(ValueError, match='three lines'):
        corpus.split(['风\n雨'])


def test_no_run_of_a_song_stands_in_two_splits(tmp_path):
    """Leakage: copies, live versions and excerpts of a song must not stand in train and in test."""
    folder = tmp_path / 'songs'
    folder.mkdir()
    songs = invented(300, lines=8)
    for i, song in enumerate(songs):
        lines = song.split('\n')
        (folder / f'{i:03}a.txt').write_text(song, encoding='utf-8')
        (folder / f'{i:03}b-live.txt').write_text('\n'.join(lines[:5] + lines[1:3]), encoding='utf-8')
        (folder / f'{299 - i:03}-verse.lrc').write_text('[00:01.00]' + '\n'.join(lines[2:6]), encoding='utf-8')
    splits = corpus.prepare(str(folder), str(tmp_path / 'lyric'))

    def runs(name):
        letters = [re.sub(r'\W', '', song) for song in splits[name]]
        return {s[i:i + 12] for s in letters for i in range(len(s) - 11)}
    assert all(splits.values())
    assert not runs('train') & runs('test') and not runs('train') & runs('valid') and not runs('valid') & runs('test')


# --- reading ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'gb18030', 'gbk'])
def test_every_usual_encoding_of_chinese_is_read(tmp_path, encoding):
    path = tmp_path / 'songs.txt'
    path.write_bytes('\n\n'.join(SONGS).replace('\n', '\r\n').encode(encoding))
    assert corpus.read_songs(str(path)) == SONGS


def test_a_txt_with_blank_lines_is_a_song_between_them_and_without_one_long_text(tmp_path):
    path = tmp_path / 'songs.txt'
    path.write_text('\n \u3000\n\n\n'.join(SONGS), encoding='utf-8')
    assert corpus.read_songs(str(path)) == SONGS
    path.write_text('\n'.join(SONGS), encoding='utf-8')
    assert corpus.read_songs(str(path)) == ['\n'.join(SONGS)]


def test_a_folder_is_a_song_a_file_whatever_else_lies_there(tmp_path):
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'a.txt').write_text(SONGS[0].replace('\n', '\n\n'), encoding='utf-8')  # blank lines part nothing here
    (tmp_path / 'b.LRC').write_text('[00:01.00]' + SONGS[1], encoding='utf-8')
    (tmp_path / 'deep' / 'c.txt').write_bytes(SONGS[2].encode('gb18030'))
    (tmp_path / 'cover.jpg').write_bytes(b'\xff\xd8\xff')
    assert corpus.read_songs(str(tmp_path)) == SONGS[:3]


@pytest.mark.parametrize('name, content', [
    ('a.jsonl', '\n'.join(json.dumps({'id': i, 'text': s}) for i, s in enumerate(SONGS)) + '\n\n'),
    ('a.jsonl', '\n'.join(json.dumps({'lyrics': s.split('\n')}, ensure_ascii=False) for s in SONGS)),
    ('a.json', json.dumps([{'lyrics': s} for s in SONGS])),
    ('a.json', json.dumps([{'title': '无题', 'paragraphs': s.split('\n')} for s in SONGS], ensure_ascii=False)),
    ('a.json', json.dumps(SONGS)),
    ('a.csv', 'title,lyrics\n' + ''.join(f'无题,"{s}"\n' for s in SONGS)),
    ('a.csv', '\ufefftext\r\n' + ''.join(f'"{s}"\r\n' for s in SONGS)),
])
def test_tables_are_read_by_their_text_or_lyrics_field(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding='utf-8', newline='')
    assert corpus.read_songs(str(tmp_path / name)) == SONGS


def test_a_line_separator_inside_a_jsonl_string_does_not_break_the_record(tmp_path):
    """str.splitlines also cuts at U+2028, which JSON allows inside a string: a whole corpus was 'no valid jsonl'."""
    path = tmp_path / 'a.jsonl'
    path.write_text(json.dumps({'text': '纸鹤停在窗台上\u2028等一阵风'}, ensure_ascii=False) + '\n', encoding='utf-8')
    assert corpus.read_songs(str(path)) == ['纸鹤停在窗台上\n等一阵风']


@pytest.mark.parametrize('name, content, says', [
    ('a.json', b'[{"text": "', 'a.json is no valid json'),
    ('a.jsonl', b'{"text": "a"}\n{"text"', 'a.jsonl is no valid jsonl'),
    ('a.json', b'[' * 100000, 'a.json is no valid json'),
    ('a.json', b'[{"name": "x"}]', 'no field text or lyrics'),
    ('a.csv', b'name,year\nx,1\n', 'no field text or lyrics'),
    ('a.json', b'3', 'no field text or lyrics'),
    ('a.txt', b'\xff\xff\xff\xff', 'neither UTF-8 nor UTF-16 nor GB18030'),
    ('a.txt', b'\xff\xfea', 'neither UTF-8 nor UTF-16 nor GB18030'),
    ('a.txt', b'', 'holds no lyrics'),
    ('a.txt', '作词：某人\n'.encode(), 'holds no lyrics'),
    ('a.json', b'[]', 'holds no lyrics'),
    ('a.zip', b'PK\x03\x04 cut', 'a.zip is no whole archive'),
    ('a.tgz', b'no archive', 'a.tgz is no whole archive'),
])
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        corpus.read_songs(str(tmp_path / name))
    assert says in str(error.value) and '\n' not in str(error.value)


def test_a_source_that_is_not_there_names_the_sources_there_are(tmp_path):
    with pytest.raises(ValueError, match='no such file or folder.*embedded.*songci.*thuclgpt'):
        corpus.read_songs(str(tmp_path / 'missing'))


# --- archives ---------------------------------------------------------------------------------------------------------

def archive(path, members):
    """Write a .zip or .tgz of {name: bytes}."""
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
            for name, data in members.items():
                z.writestr(name, data)
    else:
        with tarfile.open(path, 'w:gz') as t:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    return str(path)


BOTH = pytest.mark.parametrize('name', ['a.zip', 'a.tgz', 'a.tar.gz'])


@BOTH
def test_an_archive_is_read_like_the_folder_in_it(tmp_path, name):
    songs = {f'songs/{i}.txt': s.encode() for i, s in enumerate(SONGS)}
    path = archive(tmp_path / name, {**songs, 'songs/cover.jpg': b'\xff\xd8', 'README': b'none'})
    assert corpus.read_songs(path) == SONGS
    assert os.listdir(tmp_path) == [name], 'nothing is unpacked to the disk'


@BOTH
def test_what_a_mac_hides_in_an_archive_is_passed_over(tmp_path, name):
    """Finder's zip files hold a binary __MACOSX/._song.txt for every song: the whole archive was refused for one."""
    songs = {f'{i}.txt': s.encode() for i, s in enumerate(SONGS)}
    hidden = {f'__MACOSX/._{i}.txt': b'\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xff\xff\xff' for i in range(len(SONGS))}
    assert corpus.read_songs(archive(tmp_path / name, {**songs, **hidden})) == SONGS


@BOTH
@pytest.mark.parametrize('member', ['../evil.txt', '/etc/evil.txt', 'a/../../evil.txt', '..\\evil.txt', 'C:\\evil.txt', '\\evil.txt'])
def test_an_archive_that_points_outside_is_refused(tmp_path, name, member):
    path = archive(tmp_path / name, {'good.txt': SONGS[0].encode(), member: b'evil'})
    with pytest.raises(ValueError, match='refused'):
        corpus.read_songs(path)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_archive_with_a_link_or_a_device_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / 'a.tgz', 'w:gz') as t:
        info = tarfile.TarInfo('song.txt')
        info.type, info.linkname = kind, '/etc/passwd'
        t.addfile(info)
    with pytest.raises(ValueError, match='refused'):
        corpus.read_songs(str(tmp_path / 'a.tgz'))


@BOTH
def test_an_archive_bomb_is_refused_before_it_is_read(tmp_path, name, monkeypatch):
    monkeypatch.setattr('archive.MAX_BYTES', 1 << 20)
    path = archive(tmp_path / name, {'a.txt': bytes(600 << 10), 'b.txt': bytes(600 << 10)})
    with pytest.raises(ValueError, match='unpacks to more than'):
        corpus.read_songs(path)


@BOTH
def test_a_damaged_archive_is_refused_wherever_the_damage_stands(tmp_path, name):
    """zlib.error, and zipfile's RuntimeError and NotImplementedError, ended in a traceback."""
    path = tmp_path / name
    whole = archive(path, {f'{i}.txt': s.encode() for i, s in enumerate(SONGS)}) and path.read_bytes()
    for at in range(10, len(whole), 11):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xff]) + whole[at + 1:]):
            path.write_bytes(damaged)
            try:
                assert corpus.read_songs(str(path))  # a flipped time stamp does no harm
            except ValueError as error:
                assert '\n' not in str(error)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = tmp_path / 'a.zip'
    archive(path, {'a.txt': SONGS[0].encode()})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag 'encrypted', in the member's head and in the directory
    data[data.index(b'PK\x01\x02') + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='a.zip is no whole archive'):
        corpus.read_songs(str(path))


def test_of_the_chinese_poetry_collection_the_song_forms_are_taken(tmp_path):
    def poems(*songs):
        return json.dumps([{'rhythmic': '无题', 'paragraphs': s.split('\n')} for s in songs], ensure_ascii=False).encode()
    path = archive(tmp_path / 'chinese-poetry.tgz', {
        'chinese-poetry-1/宋词/ci.song.0.json': poems(*SONGS[:2]), 'chinese-poetry-1/元曲/yuanqu.json': poems(SONGS[2]),
        'chinese-poetry-1/宋词/author.song.json': b'[{"name": "x"}]', 'chinese-poetry-1/全唐诗/poet.tang.0.json': poems(SONGS[3])})
    assert sorted(corpus.read_songs(path)) == sorted(SONGS[:3])


# --- named sources ----------------------------------------------------------------------------------------------------

@pytest.fixture
def thuclgpt(server, monkeypatch):
    """The predecessor's three files, on the local server: CRLF line ends, no song boundaries."""
    texts = dict(zip(corpus.SPLITS, ('\n'.join(SONGS[:6]), SONGS[6], SONGS[7])))
    for name, text in texts.items():
        path = '/' + corpus.THUCLGPT.split('/', 3)[3] + f'lyric_{name}.txt'
        server.pages[path] = text.replace('\n', '\r\n').encode()
        monkeypatch.setitem(corpus.THUCLGPT_IDS, name, git_id(server.pages[path]))
    return texts


def git_id(body):
    import hashlib
    return hashlib.sha1(b'blob %d\0' % len(body) + body).hexdigest()


def test_thuclgpt_is_downloaded_checked_and_used_as_it_is_split(thuclgpt, server, tmp_path):
    splits = corpus.prepare('thuclgpt', str(tmp_path), mirror=server.url)
    assert splits == {name: [text] for name, text in thuclgpt.items()}
    for name, text in thuclgpt.items():
        assert (tmp_path / f'lyric_{name}.txt').read_text(encoding='utf-8') == text + '\n'
    requests = len(server.seen)
    assert corpus.prepare('thuclgpt', str(tmp_path), mirror=server.url + '/') == splits
    assert len(server.seen) == requests == 3, 'what is there is not fetched again'
    assert corpus.prepare('', str(tmp_path)) == splits, 'without --source the prepared corpus stands'


def test_a_forged_thuclgpt_is_refused_and_nothing_is_prepared(thuclgpt, server, tmp_path):
    server.pages['/' + corpus.THUCLGPT.split('/', 3)[3] + 'lyric_test.txt'] = '别的字'.encode()
    with pytest.raises(SystemExit, match='git blob id'):
        corpus.prepare('thuclgpt', str(tmp_path), mirror=server.url)
    assert not list(tmp_path.glob('lyric_*'))


def test_the_real_addresses_are_the_pinned_commits():
    assert corpus.THUCLGPT == ('https://raw.githubusercontent.com/Derican/thuclGPT/'
                               'cae8286eeca0e06ba4f1bc7bc128db290e32802b/data/lyric/')
    assert corpus.SONGCI == ('https://raw.githubusercontent.com/chinese-poetry/chinese-poetry/'
                             '99ebbef7e1345c0985c44b9fd96a3f9e776f117b/')
    assert len(corpus.SONGCI_FILES) == 23 and corpus.SONGCI_FILES[21] == '宋词/ci.song.21000.json'


@pytest.fixture
def songci(server, monkeypatch):
    """Three files of the poetry collection, on the local server."""
    import urllib.parse
    songs = invented(60)
    monkeypatch.setattr(corpus, 'SONGCI_FILES', corpus.SONGCI_FILES[:2] + corpus.SONGCI_FILES[-1:])
    for name, part in zip(corpus.SONGCI_FILES, (songs[:20], songs[20:40], songs[40:])):
        path = '/' + corpus.SONGCI.split('/', 3)[3] + urllib.parse.quote(name)
        server.pages[path] = json.dumps([{'paragraphs': s.split('\n')} for s in part], ensure_ascii=False).encode()
    return songs


def test_songci_is_downloaded_and_split_by_song(songci, server, tmp_path):
    server.script = [None, 'cut']
    splits = corpus.prepare('songci', str(tmp_path), mirror=server.url)
    assert sorted(sum(splits.values(), [])) == sorted(songci) and all(splits.values())
    assert [s for name in corpus.SPLITS for s in corpus.read_text(str(tmp_path / f'lyric_{name}.txt'))] == sum(splits.values(), [])


def test_a_songci_page_that_is_no_poetry_is_refused(songci, server, tmp_path):
    server.pages[sorted(server.pages)[0]] = b'<html>sign in to the hotel network</html>'
    with pytest.raises(SystemExit, match='not the file it should be'):
        corpus.prepare('songci', str(tmp_path), mirror=server.url)
    assert not list(tmp_path.glob('lyric_*'))


def test_the_embedded_songs_are_many_clean_and_split_without_leakage(tmp_path):
    songs = corpus.read_songs('embedded')
    assert len(songs) >= 120 and sum(map(len, songs)) >= 20000
    assert [corpus.clean(song) for song in songs] == songs
    splits = corpus.prepare('', str(tmp_path))
    assert sorted(sum(splits.values(), [])) == sorted(songs) and all(splits.values())


# --- prepare ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def source(tmp_path):
    """A .txt of 40 invented songs."""
    path = tmp_path / 'mine.txt'
    path.write_text('\n\n'.join(invented(40)), encoding='utf-8')
    return str(path)


def test_preparing_twice_writes_the_same_bytes(source, tmp_path):
    for folder in ('a', 'b', 'a'):
        corpus.prepare(source, str(tmp_path / folder))
    for name in ('lyric_train.txt', 'lyric_valid.txt', 'lyric_test.txt', 'split.json'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_what_is_written_reads_back_as_the_same_songs(source, tmp_path):
    splits = corpus.prepare(source, str(tmp_path / 'lyric'))
    assert {s: corpus.read_text(str(tmp_path / 'lyric' / f'lyric_{s}.txt')) for s in corpus.SPLITS} == splits
    assert corpus.prepare('', str(tmp_path / 'lyric')) == splits, 'the prepared files stand, the embedded songs do not return'


def test_a_new_source_takes_the_place_of_files_we_wrote(source, tmp_path):
    corpus.prepare('embedded', str(tmp_path / 'lyric'))
    assert len(sum(corpus.prepare(source, str(tmp_path / 'lyric')).values(), [])) == 40


def three_files(folder):
    folder.mkdir()
    for name, part in zip(corpus.SPLITS, (SONGS[:6], SONGS[6:7], SONGS[7:])):
        (folder / f'lyric_{name}.txt').write_text('\n\n'.join(part), encoding='utf-8')
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_the_users_own_three_files_are_used_as_they_are(tmp_path):
    before = three_files(tmp_path / 'lyric')
    assert corpus.prepare('', str(tmp_path / 'lyric')) == {'train': SONGS[:6], 'valid': SONGS[6:7], 'test': SONGS[7:]}
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / 'lyric').iterdir()} == before


@pytest.mark.parametrize('asked', ['embedded', 'mine'])
def test_the_users_own_three_files_are_never_overwritten(source, tmp_path, asked):
    before = three_files(tmp_path / 'lyric')
    with pytest.raises(SystemExit, match='put there by hand'):
        corpus.prepare(source if asked == 'mine' else asked, str(tmp_path / 'lyric'))
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / 'lyric').iterdir()} == before


def test_a_prepared_file_that_the_user_edited_is_the_users_own(source, tmp_path):
    folder = tmp_path / 'lyric'
    corpus.prepare(source, str(folder))
    (folder / 'lyric_test.txt').write_text(SONGS[0], encoding='utf-8')
    with pytest.raises(SystemExit, match='put there by hand'):
        corpus.prepare('embedded', str(folder))
    assert corpus.prepare('', str(folder))['test'] == SONGS[:1]


def test_two_files_of_three_are_not_enough(tmp_path):
    before = three_files(tmp_path / 'lyric')
    os.remove(tmp_path / 'lyric' / 'lyric_valid.txt')
    with pytest.raises(SystemExit, match='all three splits are needed'):
        corpus.prepare('', str(tmp_path / 'lyric'))
    assert len(list((tmp_path / 'lyric').iterdir())) == len(before) - 1


def test_a_bad_source_leaves_the_prepared_files_alone(source, tmp_path):
    folder = tmp_path / 'lyric'
    corpus.prepare(source, str(folder))
    before = {p.name: files.sha256(str(p)) for p in folder.iterdir()}
    for bad in (str(tmp_path / 'missing'), str(folder / 'split.json')):
        with pytest.raises(SystemExit, match='--source'):
            corpus.prepare(bad, str(folder))
    assert {p.name: files.sha256(str(p)) for p in folder.iterdir()} == before


def test_a_full_disk_leaves_the_prepared_files_alone(small_disk, tmp_path):
    source = tmp_path / 'mine.txt'
    source.write_text('\n\n'.join(invented(40)), encoding='utf-8')
    corpus.prepare(str(source), str(small_disk / 'lyric'))
    before = {p.name: files.sha256(str(p)) for p in (small_disk / 'lyric').iterdir()}
    source.write_text('\n\n'.join(invented(1500, seed=2)), encoding='utf-8')
    with pytest.raises(OSError):
        corpus.prepare(str(source), str(small_disk / 'lyric'))
    assert {p.name: files.sha256(str(p)) for p in (small_disk / 'lyric').iterdir()} == before
