"""
Songs -> uint16 .bin shards -> batches.

A dataset folder holds train.bin and val.bin (raw little-endian uint16 token ids, as in nanoGPT), tokenizer.json, and
meta.json (kind, vocabulary size; songs, tokens, characters, bytes and SHA-256 of each split; SHA-256 of tokenizer.json).

The batch at step i is a pure function of (seed, i): an epoch is a permutation of windows, drawn without replacement,
so a killed and resumed run sees the batches the unbroken one would have seen.
"""
import functools
import json
import os

import numpy as np
import torch

import files

HERE = os.path.dirname(os.path.abspath(__file__))


def folder_of(dataset, data_dir=''):
    """The folder of a dataset: data/<dataset> beside the scripts, or in `data_dir`; a path is taken as it is."""
    if os.sep in dataset or '/' in dataset:
        return dataset
    return os.path.join(data_dir or os.path.join(HERE, 'data'), dataset)


def write(folder, tokenizer, train, val):
    """
    Encode the songs of both splits into `folder`. Prints and returns what meta.json says.
    Ends in SystemExit, before anything is written, when the vocabulary does not fit uint16.
    """
    def coded(songs):
        for start in range(0, len(songs), 4096):  # some at once: the Rust library encodes a batch in parallel
            part = songs[start:start + 4096]
            yield part, tokenizer.encode_songs(part)
    return _write(folder, tokenizer, {'train': coded(train), 'val': coded(val)})


def write_mapped(folder, tokenizer, train, val, processes):
    """
    The same for two Hugging Face datasets with a field text, encoded by several processes. Their library keeps what is
    done in its cache, so an interrupted run is taken up where it stopped.
    """
    def encode(rows):
        return {'ids': tokenizer.encode_songs(rows['text'])}
    _check_size(tokenizer)
    coded = {name: rows.map(encode, batched=True, num_proc=processes, desc=f'encoding {name}')
             for name, rows in (('train', train), ('val', val))}
    return _write(folder, tokenizer, {name: (([row['text']], [row['ids']]) for row in rows) for name, rows in coded.items()})


def _check_size(tokenizer):
    if tokenizer.vocab_size > 65536:
        raise SystemExit(f'A vocabulary of {tokenizer.vocab_size:,} does not fit the uint16 of .bin files (65,536 at most).')


def _write(folder, tokenizer, splits):
    """Write the folder from {split: iterator of (texts, ids of each)}."""
    _check_size(tokenizer)
    os.makedirs(folder, exist_ok=True)
    meta = {'kind': tokenizer.kind, 'vocab_size': tokenizer.vocab_size}
    for name, songs in splits.items():
        path, count = os.path.join(folder, f'{name}.bin'), {'songs': 0, 'tokens': 0, 'characters': 0, 'unknown': 0}
        with files.atomic(path, 'wb') as f:
            for texts, coded in songs:
                ids = np.concatenate(coded, dtype='<u2', casting='unsafe')
                f.write(ids.tobytes())
                count['songs'] += len(texts)
                count['tokens'] += len(ids)
                count['characters'] += sum(map(len, texts))
                count['unknown'] += int(np.count_nonzero(ids == tokenizer.unk_id)) if tokenizer.unk_id is not None else 0
        meta[name] = {**count, 'bytes': os.path.getsize(path), 'sha256': files.sha256(path)}
        print(f'{path}: {count["songs"]:,} songs, {count["characters"]:,} characters, {count["tokens"]:,} tokens'
              + (f', {count["unknown"]:,} of them unknown' if count['unknown'] else ''))
    tokenizer.save(path := os.path.join(folder, 'tokenizer.json'))
    meta['tokenizer'] = {'bytes': os.path.getsize(path), 'sha256': files.sha256(path)}
    with files.atomic(os.path.join(folder, 'meta.json')) as f:
        json.dump(meta, f, indent=1)
    return meta


def load(folder):
    """
    ({'train': ids, 'val': ids} as read-only uint16 memmaps, meta). Ends in SystemExit with one line when the folder is
    missing or damaged: a wrong size or hash, or ids beyond the vocabulary.
    """
    name = os.path.basename(os.path.normpath(folder))
    missing = [f for f in ('meta.json', 'tokenizer.json', 'train.bin', 'val.bin') if not os.path.exists(os.path.join(folder, f))]
    if missing:
        raise SystemExit(f'{folder} lacks {", ".join(missing)}: run `python data/{name}/prepare.py` first.')
    try:
        with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as f:
            meta = json.load(f)
        data = {}
        described = {'train.bin': meta['train'], 'val.bin': meta['val']}
        if 'tokenizer' in meta:  # earlier versions did not describe it
            described['tokenizer.json'] = meta['tokenizer']
        for file, told in described.items():
            path = os.path.join(folder, file)
            if os.path.getsize(path) != told['bytes'] or files.sha256(path) != told['sha256']:
                raise ValueError(f'{file} is not the file that meta.json describes')
        for split in ('train', 'val'):
            path = os.path.join(folder, f'{split}.bin')
            data[split] = np.memmap(path, dtype='<u2', mode='r')
            if (top := int(data[split].max())) >= meta['vocab_size']:
                raise ValueError(f'{split}.bin holds the id {top}, beyond the vocabulary of {meta["vocab_size"]}')
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f'{folder} is damaged: {error}. Run its prepare.py again.') from error
    return data, meta


@functools.lru_cache(maxsize=2)  # this epoch's order, and the next one's for the step that spans both
def _order(windows, seed, epoch):
    """The epoch's window numbers in random order, (windows,)."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def batch(data, first, count, block_size, seed, order='epochs'):
    """
    Sequences number first .. first+count-1 of the endless training order: x and y, int64 (count, block_size), y one
    token ahead of x. An epoch cuts the data into windows side by side, at an offset of its own, so that every epoch
    sees other cuts; each window comes once. With order 'random', nanoGPT's, every window lies anywhere.
    """
    windows = max(1, (len(data) - 1) // block_size - 1)  # one less than fits, to leave room for the offset
    spare = len(data) - 1 - windows * block_size
    assert spare >= 0, f'{len(data)} tokens do not fill one block of {block_size}'
    rows = []
    for n in range(first, first + count):
        if order == 'random':
            start = np.random.default_rng([seed, n, 2]).integers(len(data) - block_size)
        else:
            epoch, place = divmod(n, windows)
            offset = np.random.default_rng([seed, epoch, 1]).integers(min(spare, block_size - 1) + 1)
            start = offset + block_size * _order(windows, seed, epoch)[place]
        rows.append(data[start:start + block_size + 1])
    rows = torch.from_numpy(np.stack(rows).astype(np.int64))
    return rows[:, :-1], rows[:, 1:]
