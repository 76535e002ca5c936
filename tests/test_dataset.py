"""Shards on the disk, what is refused, and batches that are a pure function of (seed, i)."""
import json
import os
import shutil

import numpy as np
import pytest
import torch

import dataset
import tokenizer
from conftest import SONGS


@pytest.fixture
def folder(data_dir, tmp_path):
    """A copy of the tiny dataset, to be damaged."""
    return shutil.copytree(os.path.join(data_dir, 'tiny'), tmp_path / 'tiny')


def refusal(folder):
    """The line that loading a damaged folder ends in."""
    with pytest.raises(SystemExit) as end:
        dataset.load(str(folder))
    assert isinstance(end.value.code, str) and '\n' not in end.value.code
    return end.value.code


def rehash(folder, **fields):
    """Make meta.json true again after a change of the shards, as another program that writes such folders would."""
    import files
    meta = {**json.loads((folder / 'meta.json').read_text()), **fields}
    for split in ('train', 'val'):
        path = folder / f'{split}.bin'
        meta[split].update(bytes=path.stat().st_size, sha256=files.sha256(str(path)))
    (folder / 'meta.json').write_text(json.dumps(meta))


# --- shards -----------------------------------------------------------------------------------------------------------

def test_the_shards_are_the_songs_as_little_endian_uint16(folder):
    data, _ = dataset.load(str(folder))
    t = tokenizer.load(str(folder / 'tokenizer.json'))
    for split, songs in (('train', SONGS[:6]), ('val', SONGS[6:])):
        expected = [i for song in songs for i in (*t.encode(song), t.eot_id)]
        assert data[split].tolist() == expected
        raw = (folder / f'{split}.bin').read_bytes()
        assert raw == b''.join(i.to_bytes(2, 'little') for i in expected)


def test_meta_counts_what_is_there_and_nothing_is_a_pickle(folder):
    _, meta = dataset.load(str(folder))
    t = tokenizer.load(str(folder / 'tokenizer.json'))
    assert meta['kind'] == 'characters' and meta['vocab_size'] == t.vocab_size
    assert meta['train']['songs'] == 6 and meta['train']['characters'] == sum(map(len, SONGS[:6]))
    assert meta['train']['tokens'] == meta['train']['characters'] + 6 and meta['train']['bytes'] == 2 * meta['train']['tokens']
    assert meta['train']['unknown'] == 0
    assert meta['val']['unknown'] == len(t.unknown(''.join(SONGS[6:]))) > 0, 'the vocabulary is learned on train alone'
    assert sorted(os.listdir(folder)) == ['meta.json', 'tokenizer.json', 'train.bin', 'val.bin']


def test_writing_twice_gives_the_same_bytes(tmp_path, characters):
    for name in 'ab':
        dataset.write(str(tmp_path / name), characters, SONGS[:6], SONGS[6:])
    for name in os.listdir(tmp_path / 'a'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_a_vocabulary_beyond_uint16_is_refused_before_anything_is_written(tmp_path, characters):
    """nanoGPT's shards wrap silently."""
    characters.vocab_size = 65537
    with pytest.raises(SystemExit, match='65,537'):
        dataset.write(str(tmp_path / 'x'), characters, SONGS, SONGS)
    assert not (tmp_path / 'x').exists()


def test_a_vocabulary_of_exactly_65536_fits(tmp_path):
    t = tokenizer.build_characters([''.join(map(chr, range(0x10000, 0x10000 + 65533))) + '\n'])
    assert t.vocab_size == 65536
    dataset.write(str(tmp_path / 'x'), t, [chr(0x10000 + 65532)], ['\n'])
    data, _ = dataset.load(str(tmp_path / 'x'))
    assert data['train'].tolist() == [65535, t.eot_id]


# --- what is refused --------------------------------------------------------------------------------------------------

def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path):
    assert 'python data/lyric_char/prepare.py' in refusal(tmp_path / 'lyric_char')


@pytest.mark.parametrize('name', ['meta.json', 'tokenizer.json', 'train.bin', 'val.bin'])
def test_a_missing_file_is_named(folder, name):
    os.remove(folder / name)
    assert f'lacks {name}' in refusal(folder)


@pytest.mark.parametrize('damage', [lambda b: b[:-2], lambda b: b[:-1], lambda b: b'', lambda b: b + b'\0\0',
                                    lambda b: bytes([b[0] ^ 1]) + b[1:]])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_shard_that_is_not_the_one_meta_describes_is_refused(folder, split, damage):
    path = folder / f'{split}.bin'
    path.write_bytes(damage(path.read_bytes()))
    assert f'{split}.bin is not the file' in refusal(folder)


def test_ids_beyond_the_vocabulary_are_refused_even_when_the_hash_is_right(folder):
    """On a GPU such an id ends in a device-side assert that names nothing."""
    ids = np.fromfile(folder / 'val.bin', dtype='<u2')
    ids[3] = 60000
    ids.tofile(folder / 'val.bin')
    rehash(folder)
    assert 'val.bin holds the id 60000, beyond the vocabulary' in refusal(folder)


def test_an_empty_shard_is_refused(folder):
    (folder / 'val.bin').write_bytes(b'')
    rehash(folder)
    refusal(folder)


@pytest.mark.parametrize('content', ['', '{', '[]', '{}', 'null', '{"train": 3, "val": 3}', '\xff'])
def test_a_damaged_meta_json_is_refused(folder, content):
    (folder / 'meta.json').write_bytes(content.encode('latin-1'))
    assert 'damaged' in refusal(folder)


def test_a_full_disk_leaves_the_old_shards(small_disk, characters):
    folder = str(small_disk / 'd')
    dataset.write(folder, characters, SONGS[:6], SONGS[6:])
    before = dataset.load(folder)[1]
    with pytest.raises(OSError):
        dataset.write(folder, characters, SONGS * 600, SONGS[6:])
    assert dataset.load(folder)[1] == before


def test_a_dataset_is_found_by_name_beside_the_scripts_or_by_path(tmp_path):
    from conftest import ROOT
    assert dataset.folder_of('lyric_char') == os.path.join(ROOT, 'data', 'lyric_char')
    assert dataset.folder_of('mine', str(tmp_path)) == str(tmp_path / 'mine')
    assert dataset.folder_of(str(tmp_path / 'x'), 'elsewhere') == str(tmp_path / 'x')


# --- batches ----------------------------------------------------------------------------------------------------------

DATA = np.arange(1000, dtype=np.uint16)  # each token says where it stands


def test_a_batch_is_windows_of_the_data_and_y_is_one_ahead():
    x, y = dataset.batch(DATA, 0, 5, 16, seed=1)
    assert x.shape == y.shape == (5, 16) and x.dtype == y.dtype == torch.int64
    for row, ahead in zip(x, y):
        assert torch.equal(row, torch.arange(row[0], row[0] + 16)) and torch.equal(ahead, row + 1)


def test_an_epoch_visits_each_window_once():
    """nanoGPT draws windows at random, with replacement: an epoch leaves out a third of the data."""
    windows = (len(DATA) - 1) // 16 - 1
    for epoch in range(3):
        x, _ = dataset.batch(DATA, epoch * windows, windows, 16, seed=1)
        starts = sorted(x[:, 0].tolist())
        assert starts == list(range(starts[0], starts[0] + 16 * windows, 16)), 'side by side, without a gap or a repeat'
        assert 0 <= starts[0] and starts[-1] + 16 < len(DATA)


def test_epochs_differ_in_order_and_in_cuts():
    windows = (len(DATA) - 1) // 16 - 1
    epochs = [dataset.batch(DATA, epoch * windows, windows, 16, seed=1)[0][:, 0].tolist() for epoch in range(6)]
    assert len({tuple(e) for e in epochs}) == 6
    assert len({min(e) for e in epochs}) > 2, 'windows are cut elsewhere'
    assert epochs[0] != sorted(epochs[0])


def test_a_batch_is_a_pure_function_of_seed_and_number():
    whole, _ = dataset.batch(DATA, 0, 200, 16, seed=3)
    torch.manual_seed(5)
    np.random.seed(5)
    for first, count in ((120, 10), (0, 1), (55, 70), (120, 10), (199, 1)):  # any order, over the ends of epochs
        x, _ = dataset.batch(DATA, first, count, 16, seed=3)
        assert torch.equal(x, whole[first:first + count])
    assert not torch.equal(dataset.batch(DATA, 0, 200, 16, seed=4)[0], whole)


def test_drawing_a_batch_leaves_the_random_streams_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    dataset.batch(DATA, 7, 3, 16, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('tokens', [17, 18, 32, 33, 34, 48, 49, 50])
def test_data_of_hardly_more_than_one_block_still_gives_whole_windows(tokens):
    x, y = dataset.batch(DATA[:tokens], 0, 40, 16, seed=1)
    assert x.shape == (40, 16) and int(y.max()) < tokens


def test_data_of_less_than_a_block_is_our_mistake():
    with pytest.raises(AssertionError, match='16 tokens do not fill one block of 16'):
        dataset.batch(DATA[:16], 0, 1, 16, seed=1)


def test_random_windows_are_drawn_anywhere_and_are_a_function_of_their_number():
    x, y = dataset.batch(DATA, 0, 2000, 16, seed=1, order='random')
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(dataset.batch(DATA, 1000, 5, 16, seed=1, order='random')[0], x[1000:1005])
    starts = x[:, 0].unique()
    assert len(starts) > 0.8 * (len(DATA) - 16), 'not at the multiples of a step alone'
