"""
What a run tells of itself, beside its model: run.json (settings, versions, data), log.jsonl (a line of figures at every
log step and evaluation), loss.png (both curves), and Weights & Biases for those who ask for it.
"""
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version

import files


class RunLog:
    def __init__(self, folder, step, settings, dataset):
        """Begin, or go on with, the log of a run that stands at `step`. `dataset` is what its meta.json says."""
        os.makedirs(folder, exist_ok=True)
        self.folder, self.path, self.wandb, self.settings = folder, os.path.join(folder, 'log.jsonl'), None, settings
        # what a killed run logged after its last checkpoint will be logged again
        kept = [row for row in self.rows() if row['step'] <= step] if step and os.path.exists(self.path) else []
        self.began = time.time() - next((row['seconds'] for row in kept[::-1] if isinstance(row.get('seconds'), float)), 0)  # less pauses
        with files.atomic(self.path) as f:
            f.writelines(json.dumps(row) + '\n' for row in kept)
        with files.atomic(os.path.join(folder, 'run.json')) as f:
            json.dump({'settings': settings, 'dataset': dataset, 'git_commit': git_commit(), 'python': platform.python_version(),
                       **{name: version(name) for name in ('torch', 'numpy', 'tokenizers')}}, f, indent=1)

    def to_wandb(self, project, name):
        """Send the figures to Weights & Biases too; with WANDB_MODE=offline they stay in the folder."""
        import wandb
        self.wandb = wandb.init(project=project, name=name or os.path.basename(self.folder), config=self.settings, dir=self.folder)

    def add(self, **row):
        """Append a row of figures, `step` among them, and the seconds that the run has taken."""
        row['seconds'] = round(time.time() - self.began, 2)
        with open(self.path, 'a', encoding='utf-8') as f:
            f.write(json.dumps(row) + '\n')
        if self.wandb:
            self.wandb.log(row, step=row['step'])

    def rows(self):
        """All rows so far; a line that a crash cut off or a bad disk changed is left out."""
        rows = []
        with open(self.path, encoding='utf-8', errors='replace') as f:
            for line in f:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict) and isinstance(row.get('step'), int):
                    rows.append(row)
        return rows

    def plot(self, ylabel):
        """Draw loss.png: training and validation loss over steps, the best point marked."""
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
        for key, label, color in (('loss', 'training', '#8aa4b8'), ('val_loss', 'validation', '#c2553d')):
            points = [(row['step'], row[key]) for row in self.rows() if key in row]
            if points:
                axes.plot(*zip(*points), label=label, color=color, linewidth=1.6, marker='.' if key == 'val_loss' else '')
        if points:
            step, loss = min(points, key=lambda point: point[1])
            axes.plot(step, loss, 'o', color=color)
            axes.annotate(f'{loss:.4f} at step {step:,}', (step, loss), xytext=(0, 12), textcoords='offset points', ha='right')
        axes.set(xlabel='step', ylabel=ylabel, title=os.path.basename(os.path.abspath(self.folder)))
        axes.legend()
        axes.grid(alpha=.3)
        with files.atomic(os.path.join(self.folder, 'loss.png'), 'wb') as f:
            figure.savefig(f, format='png', dpi=120)
        pyplot.close(figure)


def git_commit():
    """The project's commit, with '+' when tracked files differ from it; '' outside a git checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        commit, changed = (subprocess.run(['git', *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
                           for command in (('rev-parse', 'HEAD'), ('status', '--porcelain', '-uno')))
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no checkout
        return ''
    return commit + ('+' if changed else '')
