"""
Reads .zip and .tgz archives of strangers: in memory, nothing is unpacked to the disk, and hostile ones are refused
(links, paths that point outside, bombs).
"""
import os
import re
import stat
import tarfile
import zipfile

MAX_BYTES = 2 << 30  # of one archive's chosen files, unpacked: a lyric corpus is smaller, an archive bomb is not
MAX_RATIO = 100  # of unpacked to packed size: lyrics shrink to a third, zeros to a thousandth


def members(path, choose):
    """
    (name, bytes) of the files that `choose` (a list of names -> those to read) takes from an archive, ordered by name.
    Raises ValueError, one line that names the archive, when it is hostile or not whole.
    """
    try:
        if path.lower().endswith('.zip'):
            with zipfile.ZipFile(path) as z:
                infos = [(i.filename, i.file_size, stat.S_ISLNK(i.external_attr >> 16), i) for i in z.infolist() if not i.is_dir()]
                yield from _safe_members(path, infos, choose, lambda i: z.read(i))
        else:
            with tarfile.open(path) as t:
                infos = ((m.name, m.size, not m.isfile(), m) for m in t if not m.isdir())  # unpacked member by member
                yield from _safe_members(path, infos, choose, lambda m: t.extractfile(m).read())
    except Exception as error:  # zipfile, tarfile and what they call each have their own
        if path in str(error):
            raise
        raise ValueError(f'{path} is no whole archive: {(str(error) or "it is cut off").splitlines()[0]}') from error


def _safe_members(path, infos, choose, read):
    total, safe = 0, []
    for info in infos:
        name, size, special, _ = info
        if special or name.startswith(('/', '\\')) or '..' in re.split(r'[/\\]', name) or re.match('[A-Za-z]:', name):
            raise ValueError(f'{path} is refused: its member {name!r} is a link or points outside')
        total += size
        if total > max(MAX_RATIO * os.path.getsize(path), 64 << 20):
            raise ValueError(f'{path} is refused: it unpacks to more than {MAX_RATIO} times its size')
        safe.append(info)
    chosen = set(choose([name for name, *_ in safe]))
    safe = sorted((info for info in safe if info[0] in chosen), key=lambda info: info[0])
    if sum(size for _, size, *_ in safe) > MAX_BYTES:
        raise ValueError(f'{path} is refused: it unpacks to more than {MAX_BYTES >> 30} GiB')
    for name, _, _, info in safe:
        yield name, read(info)
