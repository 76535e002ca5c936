"""
Draws docs/recipes.png from dev/results.jsonl: validation loss against tokens and against time, a colour for each recipe, a thin
line for each seed, a thick one for their mean; and prints the table of final losses with standard errors.

    python dev/plot.py --corpus=songci --tokens=1_024_000
"""
import collections
import json
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import files
from configurator import configure

corpus = 'songci'  # whose runs to draw
recipes = 'nanogpt,ours'  # which, separated by commas
tokens = 2_048_000  # the budget of the runs to draw
results = os.path.join(HERE, 'results.jsonl')  # what arena.py wrote
picture = os.path.join(HERE, '..', 'docs', 'recipes.png')  # where to draw; '' = nowhere
configure(globals())

runs = collections.defaultdict(list)  # (corpus, recipe, tokens): curves
with open(results, encoding='utf-8') as f:
    for line in map(json.loads, f):
        runs[line['corpus'], line['recipe'], line['curve'][-1]['tokens']].append(line['curve'])

print(f'{"corpus":10}{"recipe":60}{"tokens":>11}{"seeds":>7}{"bits a character":>19}{"nats":>8}')
for (name, recipe, budget), curves in sorted(runs.items()):
    last = [curve[-1]['bits_per_character'] for curve in curves]
    error = f' ± {statistics.stdev(last) / len(last) ** 0.5:.4f}' if len(last) > 1 else ''
    nats = statistics.mean(curve[-1]['nats'] for curve in curves)
    print(f'{name:10}{recipe:60}{budget:>11,}{len(last):>7}{f"{statistics.mean(last):.4f}" + error:>19}{nats:>8.3f}')

if picture:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    for recipe, color in zip(recipes.split(','), ('#8aa4b8', '#c2553d', '#7a8f4b', '#8a6bb1')):
        curves = [c for (name, r, budget), found in runs.items() if (name, r) == (corpus, recipe) and abs(budget - tokens) < 0.01 * tokens
                  for c in found]
        if not curves:
            raise SystemExit(f'{results} has no run of {recipe} on {corpus} with {tokens:,} tokens.')
        for axis, key, unit in zip(axes, ('tokens', 'seconds'), (1e6, 60)):
            for curve in curves:
                axis.plot([p[key] / unit for p in curve], [p['bits_per_character'] for p in curve], color=color, linewidth=0.7, alpha=0.6)
            points = [[p[key] / unit for p in column] for column in zip(*curves)]
            means = [statistics.mean(p['bits_per_character'] for p in column) for column in zip(*curves)]
            axis.plot(list(map(statistics.mean, points)), means, color=color, linewidth=2, marker='.', label=recipe)
    axes[0].set(xlabel='million training tokens', ylabel='validation loss, bits a character', title=corpus)
    axes[1].set(xlabel='minutes, one thread, bfloat16', title='the same against time')
    for axis in axes:
        axis.grid(alpha=.3)
        axis.legend()
    with files.atomic(picture, 'wb') as f:
        figure.savefig(f, format='png', dpi=110)
