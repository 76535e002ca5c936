"""Files that are whole or not there; downloads against a server on 127.0.0.1 that misbehaves."""
import hashlib
import os
import shutil
import subprocess
import sys

import pytest

import files
from conftest import ROOT

BODY = bytes(range(256)) * 1024  # 256 KiB: several blocks of a download


@pytest.fixture
def get(server, tmp_path):
    """get(blob_id=...): downloads BODY from the server; `get.path` is where to."""
    server.pages['/songs.bin'] = BODY

    def get(url='', **options):
        files.download(url or server.url + '/songs.bin', get.path, **{'pause': 0, **options})
        with open(get.path, 'rb') as f:
            return f.read()
    get.path = str(tmp_path / 'songs.bin')
    return get


def failure(call, **options):
    """The line a failed download ends in."""
    with pytest.raises(SystemExit) as end:
        call(**options)
    assert isinstance(end.value.code, str) and '\n' not in end.value.code
    return end.value.code


# --- atomic writes ----------------------------------------------------------------------------------------------------

def test_an_atomic_write_leaves_the_new_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with files.atomic(str(path)) as f:
        f.write('新的\n')
        assert path.read_text() == 'old', 'readers see the old file until the new one is whole'
    assert path.read_bytes() == '新的\n'.encode()
    assert os.listdir(tmp_path) == ['a.txt']


def test_an_exception_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    with pytest.raises(ZeroDivisionError), files.atomic(str(path), 'wb') as f:
        f.write(b'new')
        1 / 0
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']


def test_a_write_killed_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    code = f'import os, files\nwith files.atomic({str(path)!r}) as f:\n    f.write("new"); f.flush(); os.kill(os.getpid(), 9)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == -9
    assert path.read_text() == 'old'


def test_a_full_disk_leaves_the_old_file_and_raises_oserror(small_disk):
    path = small_disk / 'a.bin'
    path.write_bytes(b'old')
    with pytest.raises(OSError), files.atomic(str(path), 'wb') as f:
        f.write(BODY)
    assert path.read_bytes() == b'old' and os.listdir(small_disk) == ['a.bin']


def test_hashes_are_those_of_sha256sum_and_git(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'hello\n')
    assert files.sha256(str(path)) == hashlib.sha256(b'hello\n').hexdigest()
    assert files.git_blob_id(str(path)) == 'ce013625030ba8dba906f756967f9e9ca394464a'  # git hash-object
    path.write_bytes(b'')
    assert files.git_blob_id(str(path)) == 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'


# --- downloads --------------------------------------------------------------------------------------------------------

def test_a_download_gives_the_bytes_and_no_rest(get, tmp_path):
    assert get() == BODY
    assert os.listdir(tmp_path) == ['songs.bin']


def test_a_file_that_is_there_is_not_fetched_again(get, server):
    with open(get.path, 'wb') as f:
        f.write(b'mine')
    assert get() == b'mine' and server.seen == []


def test_a_broken_connection_is_taken_up_where_it_broke(get, server):
    server.script = ['cut', 'cut']
    assert get(blob_id=git_id(BODY)) == BODY
    ranges = [r for _, r in server.seen]
    assert ranges == [None, f'bytes={len(BODY) // 2}-', f'bytes={len(BODY) * 3 // 4}-']


def test_what_an_earlier_run_fetched_is_not_fetched_again(get, server):
    server.script = ['cut']
    line = failure(get, tries=1)
    assert 'broke' in line and get.path in line and server.url in line
    assert not os.path.exists(get.path)
    assert os.path.getsize(get.path + '.part') == len(BODY) // 2
    assert get() == BODY
    assert server.seen[-1][1] == f'bytes={len(BODY) // 2}-'


def test_a_server_that_cannot_resume_sends_it_all_again(get, server):
    server.ranges, server.script = False, ['cut']
    assert get(blob_id=git_id(BODY)) == BODY


def test_a_connection_that_breaks_in_a_transfer_of_unknown_length_is_taken_up_too(get, server):
    """http.client raises IncompleteRead there, which is no OSError: it ended in a traceback."""
    server.script = ['chunked cut']
    assert get(blob_id=git_id(BODY)) == BODY


def test_a_part_that_was_whole_already_is_checked_and_taken(get):
    with open(get.path + '.part', 'wb') as f:
        f.write(BODY)
    assert get(blob_id=git_id(BODY)) == BODY


def test_wrong_bytes_never_take_their_place_and_are_not_kept(get, server, tmp_path):
    line = failure(get, blob_id=git_id(b'other bytes'))
    assert 'git blob id' in line and 'by hand' in line and server.url in line and get.path in line
    assert os.listdir(tmp_path) == []


def test_a_stale_part_of_another_file_does_not_spoil_the_next_run(get, tmp_path):
    with open(get.path + '.part', 'wb') as f:
        f.write(b'something else')
    failure(get, blob_id=git_id(BODY))
    assert get(blob_id=git_id(BODY)) == BODY


def test_a_file_that_fails_its_check_never_takes_its_place(get, tmp_path):
    def check(path):
        raise ValueError('it holds no poems')
    assert 'it holds no poems' in failure(get, check=check)
    assert os.listdir(tmp_path) == []


def test_a_page_that_is_not_there_fails_at_once_with_what_to_do_by_hand(get, server):
    line = failure(get, url=server.url + '/missing')
    assert '404' in line and f'save {server.url}/missing as {get.path}' in line
    assert len(server.seen) == 1, '404 does not pass'


def test_a_server_in_trouble_is_asked_again(get, server):
    server.script = [503, 500]
    assert get() == BODY and len(server.seen) == 3


def test_a_server_that_stays_in_trouble_is_given_up(get, server):
    server.script = [503] * 9
    assert '503' in failure(get, tries=3) and len(server.seen) == 3


def test_no_server_at_all_ends_in_one_line(get):
    line = failure(get, url='http://127.0.0.1:9/songs.bin', tries=2)
    assert 'refused' in line and 'by hand' in line


def test_a_full_disk_ends_in_one_line_and_keeps_what_came(get, server, small_disk):
    get.path = str(small_disk / 'songs.bin')
    line = failure(get)
    assert 'No space left' in line and get.path in line
    assert not os.path.exists(get.path) and os.path.getsize(get.path + '.part') > 0


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_write_permission_ends_in_one_line(get, tmp_path):
    (tmp_path / 'closed').mkdir(mode=0o500)
    get.path = str(tmp_path / 'closed' / 'songs.bin')
    assert 'cannot write' in failure(get)


def git_id(body):
    return hashlib.sha1(b'blob %d\0' % len(body) + body).hexdigest()


@pytest.mark.skipif(not shutil.which('git'), reason='git is not installed')
def test_the_blob_id_is_what_git_itself_says(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(BODY)
    said = subprocess.run(['git', 'hash-object', str(path)], capture_output=True, text=True, check=True).stdout.strip()
    assert files.git_blob_id(str(path)) == said == git_id(BODY)
