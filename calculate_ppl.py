"""
Perplexity of one model or of all out-* folders on the same raw test text, as a table.

    python calculate_ppl.py                              # every out-* folder that holds a model
    python calculate_ppl.py --out_dir=out-lyric-char --text=my_lyrics.txt --json=ppl.json

A token's surprise depends on the tokenizer, so perplexities of different tokenizers do not compare. Bits per character
do: the same text, its line breaks and the end of each song included, counted in characters. There an unknown character
costs what its <unk> token costs and 20.1 bits more: which of the 1,114,112 Unicode code points it is.
"""
import glob
import json as jsonlib
import os
from contextlib import nullcontext

# before torch: on a busy machine, threads that spin while they wait make small operations 40 times slower
os.environ.setdefault('GOMP_SPINCOUNT', '2000')
import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import corpus
import dataset
import files
import machine
from configurator import at_least, configure
from inference import score

out_dir = ''  # a model folder, or any GPT-2 on the Hugging Face hub; '' = every out-* folder that holds a model
text = ''  # file of raw lyrics, a blank line between songs; '' = data/lyric/lyric_test.txt
data_dir = ''  # folder of all datasets; '' = data/ of this project
stride = 0  # new tokens a window; the rest of the block is context they see; 0 = half a block
batch_size = 8  # windows of a full block at once
json = ''  # file to write the table to; '' = none
bootstrap = 1000  # resamplings of the songs behind the 95% interval
seed = 1337  # of the resampling
device = 'auto'  # auto, cpu, cuda, mps
dtype = 'auto'  # of matrix products: auto, float32, bfloat16, float16
settings = configure(globals())
at_least(1, settings, 'batch_size', 'bootstrap')


def measure(name, songs):
    """One row of the table: a dict of the figures for the model in folder `name`."""
    model, tokenizer = checkpoint.load_model(name, place)
    if not 0 <= stride <= model.config.block_size:
        raise SystemExit(f'--stride={stride}: {name} has a block of {model.config.block_size} tokens; 0 means half of it.')
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(song), tokenizer.eot_id]) for song in songs]  # bos: context alone
    step = stride or model.config.block_size // 2
    number = machine.pick_dtype(dtype, place)
    with tqdm(total=sum(map(len, ids)) - len(ids), desc=name, unit='token', unit_scale=True, leave=False) as bar, \
            nullcontext() if number == torch.float32 else torch.autocast(place.split(':')[0], dtype=number):
        nll = score(model, ids, step, batch_size, progress=bar.update)
    if len(nll) > 1:
        parts = nll
    else:  # no songs in the text: windows of block_size stand for them
        parts = [nll[0][i:i + model.config.block_size] for i in range(0, len(nll[0]), model.config.block_size)]
    total, tokens = sum(map(np.sum, nll)), sum(map(len, nll))
    characters = sum(len(song) + 1 for song in songs)  # a song's end counts as one character, like each line's
    means = np.array([part.mean() for part in parts])
    sums, counts = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
    draws = np.random.default_rng(seed).integers(len(parts), size=(bootstrap, len(parts)))
    low, high = np.percentile(np.exp(sums[draws].sum(1) / counts[draws].sum(1)), [2.5, 97.5])
    unknown = sum(len(piece) for song in songs for piece in tokenizer.unknown(song))
    nats_per_character = (total + unknown * np.log(0x110000)) / characters
    return {'model': name, 'kind': tokenizer.kind, 'parameters': model.count_parameters(), 'tokens': tokens,
            'loss_mean': means.mean(), 'loss_std': means.std(), 'perplexity': np.exp(total / tokens),
            'perplexity_95_low': low, 'perplexity_95_high': high,
            'mean_exp_loss': np.exp(means).mean(), 'std_exp_loss': np.exp(means).std(),
            'bits_per_character': nats_per_character / np.log(2), 'character_perplexity': np.exp(nats_per_character),
            'unknown_share': unknown / characters}


def show(rows):
    """Print the rows, numbers right-aligned under two-line headings."""
    heads = ['|model', '|kind', 'tokens|', 'loss|mean', 'loss|std', 'perplexity|', '95%|interval', 'mean of|exp(loss)',
             'std of|exp(loss)', 'bits per|character', 'perplexity|per char.', 'unknown|characters']
    cells = [[r['model'], r['kind'], f'{r["tokens"]:,}', f'{r["loss_mean"]:.3f}', f'{r["loss_std"]:.3f}', f'{r["perplexity"]:,.2f}',
              f'{r["perplexity_95_low"]:,.1f} - {r["perplexity_95_high"]:,.1f}', f'{r["mean_exp_loss"]:,.2f}',
              f'{r["std_exp_loss"]:,.2f}', f'{r["bits_per_character"]:.3f}', f'{r["character_perplexity"]:,.2f}',
              f'{r["unknown_share"]:.2%}'] for r in rows]
    table = [[h.split('|')[0] for h in heads], [h.split('|')[1] for h in heads], *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        print('  '.join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


names = [out_dir] if out_dir else sorted(map(os.path.dirname, glob.glob(os.path.join('out*', 'model.safetensors'))))
if not names:
    raise SystemExit('There is no out-* folder with a model here. Train one first: python train.py config/quickstart.py')
path = text or os.path.join(dataset.folder_of('lyric', data_dir), 'lyric_test.txt')
try:
    songs = corpus.read_text(path)
except (OSError, ValueError) as error:
    raise SystemExit(f'The test text {path} cannot be read ({error}). Prepare a dataset, or name one with --text=.') from error
if not songs:
    raise SystemExit(f'The test text {path} is empty.')
place = machine.pick_device(device)
machine.keep_freed_memory()
rows = [measure(name, songs) for name in names]
print(f'{path}: {len(songs):,} songs, {sum(len(s) + 1 for s in songs):,} characters')
show(rows)
if json:
    with files.atomic(json) as f:
        jsonlib.dump({'text': path, 'songs': len(songs), 'models': rows}, f, indent=1, default=float)
