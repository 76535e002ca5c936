"""
Speed and memory against nanoGPT's way of doing the same work, as ratios, on this machine.

    python bench.py                                               # all that a CPU does, half an hour on two cores
    python bench.py --only=train-256,stream --repeats=5 --json=bench.json
    python bench.py --device=cuda --repeats=1                     # a GPU's workloads, the 1.5 B fine-tune among them

The work is in workloads.py. Each measurement is a process of its own, the two ways in turn, A B A B. Printed are medians, how
far the ratio strays, what share of the machine's own matrix products (%F) or memory bandwidth (%B) ours reaches, and the peak
memory of both. Nothing passes or fails here.
"""
import json as jsonlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import files
import workloads
from configurator import HERE, at_least, configure

only = ''  # workloads, separated by commas; '' = all of the device
repeats = 3  # processes for each workload and way
seconds = 4.0  # of each measurement, at least
json = ''  # file for all figures; '' = none
threads = 0  # of torch; 0 = as many as it likes
device = 'cpu'  # cpu or cuda
layers = 8  # of the character model; the predecessor's has 8 layers, 512 wide
width = 512  # a multiple of its 8 heads
vocabulary = 4210  # characters; the predecessor's corpus has 4,206
characters = 34_000_000  # of text in the prepare workloads
worker = ''  # used by this script itself: the workload and way to measure here
settings = configure(globals())
at_least(1, settings, 'repeats', 'layers', 'width', 'vocabulary', 'characters')
at_least(0, settings, 'threads', 'seconds')

WORKLOADS = {  # name: (devices, function, its arguments)
    'train-1024': ('cpu cuda', workloads.training, dict(block=1024, dropout=0.2, micro=4 if device == 'cpu' else 8)),
    'train-256': ('cpu cuda', workloads.training, dict(block=256, dropout=0.0, micro=16 if device == 'cpu' else 64)),
    'fine-tune': ('cuda', workloads.fine_tuning, {}),
    'complete-10': ('cpu cuda', workloads.generating, dict(prompts=10, tokens=30)),
    'stream': ('cpu cuda', workloads.generating, dict(prompts=1, tokens=200)),
    'stream-int8': ('cpu', workloads.generating, dict(prompts=1, tokens=200, int8=True)),
    'first-text': ('cpu cuda', workloads.first_text, {}),
    'perplexity': ('cpu cuda', workloads.perplexity, {}),
    'prepare-characters': ('cpu', workloads.preparing, dict(kind='characters')),
    'prepare-words': ('cpu', workloads.preparing, dict(kind='words')),
    'prepare-wordpiece': ('cpu', workloads.preparing, dict(kind='wordpiece')),
}


def work(name, way):
    """Measure one workload in one way, in this process; print the figures as JSON."""
    ours, size = way == 'ours', workloads.Size(device, layers, width, vocabulary, characters, seconds)
    if ours:
        os.environ.setdefault('GOMP_SPINCOUNT', '2000')  # as the scripts set it, before torch is loaded
    import torch
    if threads:
        torch.set_num_threads(threads)
    if device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit('--device=cuda: torch finds no GPU here.')
    function, options = (workloads.ceiling, {}) if name == 'ceiling' else WORKLOADS[name][1:]
    figures = function(size, ours, **options)
    figures['memory'] = torch.cuda.max_memory_allocated() if device == 'cuda' else 1024 * resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss
    print(jsonlib.dumps(figures))


def measure(name, way):
    """The figures of one workload in one way, measured in a fresh process."""
    command = [sys.executable, os.path.join(HERE, 'bench.py'), f'--worker={name} {way}', *(
        f'--{key}={settings[key]}' for key in ('threads', 'device', 'layers', 'width', 'vocabulary', 'characters', 'seconds'))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{name} in the way of {way} ended badly: {(done.stderr.strip().splitlines() or [""])[-1]}')
    return jsonlib.loads(done.stdout.splitlines()[-1])


def others():
    """Seconds of CPU time that all but this script's processes have used, or kept from this machine, so far; 0 where unknown."""
    try:
        with open('/proc/stat', encoding='ascii') as f:
            user, nice, system, idle, wait, irq, soft, steal = map(int, f.readline().split()[1:9])
    except OSError:  # no Linux
        return 0
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (user + nice + system + irq + soft + steal) / os.sysconf('SC_CLK_TCK') - own


def compare(name, limits):
    """Both ways in turn; prints the row of the table and returns all figures."""
    found = {'nanogpt': [], 'ours': []}
    for _ in range(repeats):
        for way in found:
            found[way].append(measure(name, way))
    first = found['ours'][0]
    for key, label in (('rate', name), ('end_to_end', f'{name} + validation')):
        if key not in first:
            continue
        plain, ours = ([figures[key] for figures in found[way]] for way in ('nanogpt', 'ours'))
        ratios = [b / a for a, b in zip(plain, ours)]
        share = ''
        if key == 'rate' and 'flops' in first:
            share = f'{statistics.median(f["flops"] for f in found["ours"]) / limits["ours"]["rate"]:.0%}F'
        elif key == 'rate' and 'bytes' in first:
            share = f'{statistics.median(f["bytes"] for f in found["ours"]) / limits["ours"]["bandwidth"]:.0%}B'
        memory = [max(f['memory'] for f in found[way]) / 1e6 for way in found]
        ratio = statistics.median(ours) / statistics.median(plain)
        print(f'{label:26}{statistics.median(plain):>14,.4g}{statistics.median(ours):>14,.4g} {first["unit"]:13}{ratio:7.2f}x '
              f'({min(ratios):.2f} - {max(ratios):.2f}){share:>6}{memory[0]:>9,.0f}{memory[1]:>8,.0f}', flush=True)
    return found


if worker:
    work(*worker.split())
    raise SystemExit(0)
names = only.split(',') if only else [name for name, row in WORKLOADS.items() if device in row[0].split()]
for name in names:
    if name not in WORKLOADS or device not in WORKLOADS[name][0].split():
        raise SystemExit(f'--only={name}: on {device} there are {", ".join(n for n, r in WORKLOADS.items() if device in r[0].split())}.')
if os.getloadavg()[0] > 0.5:
    print(f'This machine is busy (load {os.getloadavg()[0]:.1f}): small operations may be many times slower, and the figures wrong.')
began, busy = time.time(), others()
tries = {way: [measure('ceiling', way) for _ in range(repeats)] for way in ('nanogpt', 'ours')}
limits = {way: {key: max(found[key] for found in tries[way]) for key in ('rate', 'bandwidth')} for way in tries}  # a machine at rest
print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {device}; matrix products: '
      f'{limits["nanogpt"]["rate"] / 1e9:,.0f} GFLOP/s in nanoGPT\'s number type, {limits["ours"]["rate"] / 1e9:,.0f} in ours; '
      f'memory {limits["ours"]["bandwidth"] / 1e9:,.1f} GB/s')
print(f'{"":26}{"nanoGPT":>14}{"ours":>14} {"":13}{"ratio":>8} {"(spread)":15}{"share":>5}{"MB":>8}{"MB":>8}')
found = {'ceiling': limits}
for name in names:
    found[name] = compare(name, limits)
    if json:  # after each: a run that is cut off loses nothing
        with files.atomic(json) as f:
            jsonlib.dump({'settings': settings, 'workloads': found}, f, indent=1)
lost = (others() - busy) / (time.time() - began)
if lost > 0.1:
    print(f'Other programs took {lost:.1f} CPUs meanwhile: run again on a quiet machine.')
