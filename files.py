"""
Files that are whole or not there: atomic writes, folders held by one run, hashes, and downloads that resume.

    with files.atomic('meta.json') as f:            # text; atomic(path, 'wb') for bytes
        json.dump(meta, f)
    files.download('https://...', 'cache/lyrics.txt', blob_id='ec12f4ef...')
"""
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request

from tqdm import tqdm


@contextlib.contextmanager
def atomic(path, mode='w'):
    """
    Open a file beside `path` for writing; when the block ends well it is flushed to the disk and takes path's place in
    one step, so a reader (or a crash, or a full disk) sees the old file or the new one, never half of one.
    Raises OSError; then, as after any exception in the block, `path` is as it was.
    """
    beside = f'{path}.{os.getpid()}.tmp'
    text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': '\n'}
    try:
        with open(beside, mode, **text) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except OSError as error:
        error.filename = error.filename or path  # 'No space left on device' alone would not say for what
        raise
    finally:
        if os.path.exists(beside):
            os.remove(beside)
    # the new name itself reaches the disk with the folder's entry; Windows cannot open folders and needs no such step
    if os.name == 'posix':
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_held = {}  # locks open in this process


def hold(folder):
    """
    Make `folder` and hold it for this process, until it ends in whatever way; any other is refused with one line. Clears
    what a killed one left half-written. Windows has no such lock: nobody is refused.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.realpath(os.path.join(folder, 'lock'))
    lock = _held.get(path) or open(path, 'a')
    try:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _held[path] = lock
    except ImportError:
        return
    except BlockingIOError:
        raise SystemExit(f'Another run is writing to {folder}: wait for its end, or give this one an --out_dir of its own.') from None
    except OSError as error:  # some network disks
        print(f'{folder} cannot be locked ({error.strerror}): see to it that no second run writes there.')
        return
    for name in os.listdir(folder):
        if name.endswith('.tmp'):
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


@contextlib.contextmanager
def together(folder):
    """
    For files that belong together: yields a folder beside, to write them into; when the block ends well they take their
    places. sha256.json, for check_together, names the new generation before it comes and the old one until it is gone.
    """
    beside = os.path.join(folder, f'{os.getpid()}.tmp')
    os.makedirs(beside, exist_ok=True)
    try:
        yield beside
        new = {name: sha256(os.path.join(beside, name)) for name in sorted(os.listdir(beside))}
        _write_generations(folder, [new, *_generations(folder)])
        for name in new:
            os.replace(os.path.join(beside, name), os.path.join(folder, name))
        _write_generations(folder, [new])
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_generations(folder, known):
    with atomic(os.path.join(folder, 'sha256.json')) as f:
        json.dump(known, f, indent=1)


def _generations(folder):
    try:
        with open(os.path.join(folder, 'sha256.json'), encoding='utf-8') as f:
            known = json.load(f)
        return known if isinstance(known, list) and all(isinstance(files, dict) for files in known) else [{'sha256.json': ''}]
    except FileNotFoundError:
        return []
    except ValueError:
        return [{'sha256.json': ''}]  # damaged: matches nothing


def check_together(folder):
    """Raises ValueError where the files are none of the generations that sha256.json knows. Without it: no check."""
    while known := _generations(folder):
        now = {name: sha256(path) for name in known[0] if os.path.exists(path := os.path.join(folder, name))}
        if now in known:
            return
        if known == _generations(folder):  # else a run saved just now: look again
            raise ValueError(f'{", ".join(name for name in known[0] if now.get(name) != known[0][name])} differs from what '
                             'sha256.json says (if you changed it yourself, delete sha256.json)')


def sha256(path):
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') else \
            hashlib.sha256(f.read()).hexdigest()  # Python 3.10 has no file_digest


def git_blob_id(path):
    """The id git gives to a file's content: SHA-1 of 'blob <size>', a zero byte, and the content."""
    digest = hashlib.sha1(b'blob %d\0' % os.path.getsize(path))
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(url, path, blob_id='', check=None, tries=5, pause=1.0):
    """
    Fetch `url` into `path`, unless it is there already. A broken connection is taken up where it broke (the part so
    far stays in `path`.part, also for the next run). The file takes its place only after it proved right: its git blob
    id equals `blob_id` where one is given, and `check(path)` raises no ValueError. Ends in SystemExit with one line.
    """
    if os.path.exists(path):
        return
    part, by_hand = path + '.part', f'To do it by hand: save {url} as {path} and run this again.'
    for attempt in range(1, tries + 1):
        try:
            _fetch_rest(url, part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == tries:
                raise SystemExit(f'Download failed: {url} answered {error.code} {error.reason}. {by_hand}') from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == tries:
                raise SystemExit(f'Download failed: {url}: {getattr(error, "reason", error)}. {by_hand}') from error
        except OSError as error:  # our side: disk full, no right to write; what came so far stays for the next run
            raise SystemExit(f'Download failed: cannot write {part}: {error.strerror}.') from error
        time.sleep(pause * attempt)
    try:
        if blob_id and git_blob_id(part) != blob_id:
            raise ValueError(f'its git blob id is {git_blob_id(part)}, not {blob_id}')
        if check:
            check(part)
    except ValueError as error:
        os.remove(part)
        raise SystemExit(f'Download failed: {url} is not the file it should be: {error}. {by_hand}') from error
    os.replace(part, path)


def _fetch_rest(url, part):
    """Append to `part` what it still lacks of `url`. Raises ConnectionError when the server stops early."""
    have = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # 'range not satisfiable': nothing is left to fetch, the caller's check decides
            return
        raise
    with response:
        if have and response.status != 206:  # the server does not resume: from the start
            have = 0
        rest = response.headers.get('Content-Length')
        total = have + int(rest) if rest else None
        with open(part, 'ab' if have else 'wb') as f, tqdm(
                desc=os.path.basename(part)[:-5], total=total, initial=have, unit='B', unit_scale=True, leave=False) as bar:
            while block := response.read(1 << 16):
                f.write(block)
                have += len(block)
                bar.update(len(block))
        if total is not None and have < total:
            raise ConnectionError(f'the connection broke at {have:,} of {total:,} bytes')
