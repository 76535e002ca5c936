"""
The arena for training recipes: the same model, data and number of tokens for each, several seeds, exact validation.

    python dev/arena.py --data_dir=data --recipes=nanogpt,ours --seeds=1,2,3 --tokens=2_048_000
    python dev/arena.py --recipes="ours,ours dropout=0.1 learning_rate=6e-3" --minutes=5

A recipe is a name of RECIPES below, and settings of train.py that change it. Each run is `train.py` itself, in a process of
its own, and adds one line to dev/results.jsonl (or --results): validation loss in bits per character against tokens and seconds.
Choose on the validation split; the test split is for the end.
"""
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import dataset as datasets
from configurator import at_least, configure

recipes = 'nanogpt,ours'  # names of RECIPES, separated by commas, each with changes behind it: name setting=value ...
seeds = '1'  # separated by commas
tokens = 2_048_000  # budget of each run
minutes = 0.0  # the budget in minutes of training instead, at the speed of its first 20 steps; 0.0 = off
evaluations = 4  # exact passes over the validation split in a run
dataset = 'lyric_char'  # a folder in data_dir
data_dir = ''  # folder of all datasets; '' = data/ of this project
corpus = 'songci'  # what the results file calls the data
n_layer, n_embd, block_size = 4, 256, 256
results = os.path.join(HERE, 'results.jsonl')  # where a line is added for each run
settings = configure(globals())
at_least(1, settings, 'tokens', 'evaluations', 'n_layer', 'n_embd', 'block_size')
at_least(0, settings, 'minutes')

RECIPES = {
    # nanoGPT's: AdamW, cosine to a tenth, dropout everywhere, windows drawn anywhere; float32 is --dtype=float32
    'nanogpt': dict(batch_size=16, optimizer='adamw', learning_rate=1e-3, min_lr=1e-4, decay='cosine', warmup_iters=40,
                    weight_decay=0.1, beta2=0.99, dropout=0.1, attn_dropout=0.1, order='random'),
    'ours': dict(batch_size=8, optimizer='muon', learning_rate=4e-3, embedding_lr=3.0, min_lr=0.0, decay='linear', warmup_iters=30,
                 weight_decay=0.1, beta2=0.99, dropout=0.0, attn_dropout=0.0, order='epochs'),
}


def settings_of(recipe):
    """The settings of a recipe as a dict of strings: those of its name, then the changes behind it."""
    name, *changes = recipe.split()
    if name not in RECIPES:
        raise SystemExit(f'--recipes={recipe}: must begin with {" or ".join(RECIPES)}.')
    if sizes := [change for change in changes if change.split('=')[0] in ('n_layer', 'n_head', 'n_embd', 'block_size')]:
        raise SystemExit(f'--recipes={recipe}: {sizes[0]} is the same for all recipes: --{sizes[0]}')
    return {**{key: str(value) for key, value in RECIPES[name].items()}, **dict(change.split('=', 1) for change in changes)}


def train(options, out_dir, seed, iterations):
    """Run train.py; the rows of its log.jsonl."""
    shape = dict(n_layer=n_layer, n_head=4, n_embd=n_embd, block_size=block_size, dataset=dataset, data_dir=data_dir)
    options = {**shape, **options, 'out_dir': out_dir, 'seed': seed, 'max_iters': iterations, 'checkpoint_minutes': 0.0}
    options.setdefault('eval_interval', math.ceil(iterations / evaluations))
    done = subprocess.run([sys.executable, os.path.join(HERE, '..', 'train.py'), *(f'--{k}={v}' for k, v in options.items())],
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{options} ended badly: {(done.stderr or done.stdout).strip().splitlines()[-1]}')
    with open(os.path.join(out_dir, 'log.jsonl'), encoding='utf-8') as f:
        return [json.loads(line) for line in f]


def run(recipe, seed):
    """Train by a recipe and add its line to the results."""
    options, folder = settings_of(recipe), tempfile.mkdtemp()
    step_tokens = int(options['batch_size']) * int(options.get('gradient_accumulation_steps', 1)) * block_size
    iterations = tokens // step_tokens
    if minutes:
        rows = train({**options, 'eval_interval': 10 ** 6, 'log_interval': 10}, folder, seed, 20)
        iterations = int(60 * minutes * rows[1]['tokens_per_s'] / step_tokens)
        shutil.rmtree(folder)
    rows = train(options, folder, seed, iterations)
    shutil.rmtree(folder)
    _, meta = datasets.load(datasets.folder_of(dataset, data_dir))
    bits = meta['val']['tokens'] / meta['val']['characters'] / math.log(2)  # per nat a token
    curve = [{'tokens': row['step'] * step_tokens, 'seconds': row['seconds'], 'nats': round(row['val_loss'], 4),
              'bits_per_character': round(row['val_loss'] * bits, 4)} for row in rows if 'val_loss' in row]
    line = {'date': time.strftime('%Y-%m-%d'), 'corpus': corpus, 'recipe': recipe, 'seed': seed, 'settings': options,
            'size': [n_layer, n_embd, block_size], 'curve': curve}
    with open(results, 'a', encoding='utf-8') as f:
        f.write(json.dumps(line) + '\n')
    print(f'{recipe:60} seed {seed}: ' + ', '.join(f'{p["tokens"]:,} tokens {p["nats"]:.4f}' for p in curve)
          + f' nats, {curve[-1]["bits_per_character"]:.4f} bits a character, {curve[-1]["seconds"]:.0f} s', flush=True)


for recipe in recipes.split(','):
    settings_of(recipe)  # a mistake shows before the first run
for seed in map(int, seeds.split(',')):
    for recipe in recipes.split(','):
        run(recipe, seed)
