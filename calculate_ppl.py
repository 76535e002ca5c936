"""
Perplexity of one model or of all out-* folders on the same raw test text, as a table; and how their lyrics read.

    python calculate_ppl.py                              # every out-* folder that holds a model
    python calculate_ppl.py --out_dir=out-lyric-char --text=my_lyrics.txt --json=ppl.json
    python calculate_ppl.py --samples=50                 # and a table of 50 completions each, beside the real songs

A token's surprise depends on the tokenizer, so perplexities of different tokenizers do not compare. Bits per character
do: the same text, its line breaks and the end of each song included, counted in characters. There an unknown character
costs what its <unk> token costs and 20.1 bits more: which of the 1,114,112 Unicode code points it is.
"""
import glob
import json as jsonlib
import os
from contextlib import nullcontext
from importlib.util import find_spec

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
import quality
from configurator import at_least, configure
from inference import generate, score

out_dir = ''  # a model folder, or any GPT-2 on the Hugging Face hub; '' = every out-* folder that holds a model
text = ''  # file of raw lyrics, a blank line between songs; '' = data/lyric/lyric_test.txt
data_dir = ''  # folder of all datasets; '' = data/ of this project
stride = 0  # new tokens a window; the rest of the block is context they see; 0 = half a block
batch_size = 8  # windows of a full block at once
samples = 0  # completions of first lines of the text, to be measured against how its songs go on; 0 = off (needs pypinyin)
max_new_tokens = 120  # tokens of such a completion at most
temperature = 0.8  # of its sampling
top_p = 0.9  # of its sampling; 1.0 = off
json = ''  # file to write the table to; '' = none
bootstrap = 1000  # resamplings of the songs behind the 95% interval
seed = 1337  # of the resampling
device = 'auto'  # auto, cpu, cuda, mps
dtype = 'auto'  # of matrix products: auto, float32, bfloat16, float16
settings = configure(globals())
at_least(1, settings, 'batch_size', 'bootstrap', 'max_new_tokens')
at_least(0, settings, 'samples', 'temperature')
if not 0 < top_p <= 1:
    raise SystemExit(f'--top_p={top_p}: must be above 0 and at most 1.')
if samples and not find_spec('pypinyin'):
    raise SystemExit('--samples looks for rhymes by pypinyin, which is not installed: pip install pypinyin')


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


def completions(name, starts):
    """How the model in folder `name` goes on from each first line, as texts."""
    model, tokenizer = checkpoint.load_model(name, place, machine.pick_dtype(dtype, place), generating=True)
    dice, texts = torch.Generator(place).manual_seed(seed), []
    for i in tqdm(range(0, len(starts), 16), desc=name, unit='batch', leave=False):
        ids = [[tokenizer.bos_id, *tokenizer.encode(line + '\n')] for line in starts[i:i + 16]]
        new = generate(model, ids, max_new_tokens, generator=dice, stop_id=tokenizer.eot_id, banned_ids=tokenizer.banned_ids,
                       temperature=temperature, top_p=top_p)
        texts += [tokenizer.decode(row).strip('\n') for row in new]
    return texts


def show_lyrics(songs, chosen, source):
    """Print the table of how completions of the chosen songs' first lines read, and those songs beside them; returns its rows."""
    starts, rests = zip(*(song.split('\n', 1) for song in chosen))
    rows = [{'lyrics': 'the real songs', **quality.figures([rest[:max_new_tokens] for rest in rests], songs, source)}]
    rows += [{'lyrics': name, **quality.figures(completions(name, starts), songs, source)} for name in names]
    print(f'\n{len(chosen)} first lines, and up to {max_new_tokens} tokens after each; copies are looked for in {source_path}')
    heads = ['|lyrics', 'distinct|2-grams', 'distinct|4-grams', 'repeated|lines', 'line length|distance', 'lines|that rhyme',
             'copied run|median', 'copied run|longest']
    print_table(heads, [[r['lyrics'], f'{r["distinct_2"]:.3f}', f'{r["distinct_4"]:.3f}', f'{r["repeated_lines"]:.1%}',
                         f'{r["line_length_distance"]:.2f}', f'{r["rhyme_rate"]:.1%}', f'{r["copied_median"]}', f'{r["copied_longest"]}']
                        for r in rows], 1)
    for r in rows[1:]:
        if r['copied_longest'] > 12:
            print(f'{r["lyrics"]} recites {r["copied_longest"]} characters of its training text: {" / ".join(r["copied"].split(chr(10)))}')
    return rows


def print_table(heads, cells, names):
    """Print rows of cells under two-line headings, numbers right-aligned, the first `names` columns left-aligned."""
    table = [[h.split('|')[0] for h in heads], [h.split('|')[1] for h in heads], *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        print('  '.join(cell.ljust(w) if i < names else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def show(rows):
    """Print the table of perplexities."""
    heads = ['|model', '|kind', 'tokens|', 'loss|mean', 'loss|std', 'perplexity|', '95%|interval', 'mean of|exp(loss)',
             'std of|exp(loss)', 'bits per|character', 'perplexity|per char.', 'unknown|characters']
    cells = [[r['model'], r['kind'], f'{r["tokens"]:,}', f'{r["loss_mean"]:.3f}', f'{r["loss_std"]:.3f}', f'{r["perplexity"]:,.2f}',
              f'{r["perplexity_95_low"]:,.1f} - {r["perplexity_95_high"]:,.1f}', f'{r["mean_exp_loss"]:,.2f}',
              f'{r["std_exp_loss"]:,.2f}', f'{r["bits_per_character"]:.3f}', f'{r["character_perplexity"]:,.2f}',
              f'{r["unknown_share"]:.2%}'] for r in rows]
    print_table(heads, cells, 2)


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
chosen = [song for song in songs if '\n' in song][:samples]
if samples and not chosen:
    raise SystemExit(f'--samples completes first lines, but no song of {path} has a second one.')
source_path = os.path.join(dataset.folder_of('lyric', data_dir), 'lyric_train.txt')
source = ''
try:
    if samples:
        with open(source_path, encoding='utf-8') as f:
            source = f.read()
except OSError as error:
    raise SystemExit(f'--samples looks for copies in the training text, but {error.filename} cannot be read.') from error
place = machine.pick_device(device)
machine.keep_freed_memory()
rows = [measure(name, songs) for name in names]
print(f'{path}: {len(songs):,} songs, {sum(len(s) + 1 for s in songs):,} characters')
show(rows)
lyrics = show_lyrics(songs, chosen, source) if samples else []
if json:
    with files.atomic(json) as f:
        jsonlib.dump({'text': path, 'songs': len(songs), 'models': rows, 'lyrics': lyrics}, f, indent=1, default=float)
