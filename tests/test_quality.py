"""Figures of how lyrics read, and the scripts that measure recipes, copies and speed."""
import doctest
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

import quality
from conftest import ROOT, SONGS


def test_distinct_is_the_share_of_runs_that_differ():
    assert quality.distinct(['abab'], 2) == 2 / 3 and quality.distinct(['ab', 'ab'], 2) == 1 / 2
    assert quality.distinct(['a'], 2) == 0, 'too short for a run'


def test_a_repeated_line_counts_within_its_song_alone():
    assert quality.repeated_lines([['a', 'b', 'a', 'a'], ['b']]) == 2 / 5 and quality.repeated_lines([]) == 0


@pytest.mark.parametrize('a, b, distance', [('1 333', '333 1', 0), ('1', '333', 2), ('22 22', '1 333', 1), ('1 1 1 55555', '1', 1)])
def test_line_lengths_are_as_far_apart_as_the_earth_to_be_moved(a, b, distance):
    assert quality.length_distance(a.split(), b.split()) == pytest.approx(distance)
    assert quality.length_distance(b.split(), a.split()) == pytest.approx(distance)


@given(st.text('ab\n', max_size=12), st.text('ab\n', max_size=12))
def test_the_longest_copy_is_the_longest_of_all_runs(text, source):
    runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    assert len(quality.longest_copy(text, source)) == max((len(run) for run in runs if run in source), default=0)


def test_couplets_rhyme_and_shuffled_lines_hardly_do():
    pytest.importorskip('pypinyin')
    song = '一盏灯亮在远方\n纸船漂过了池塘\n我把名字写在纸上\n风一吹全是月光'
    got = quality.figures([song], [song], song)
    assert got['rhyme_rate'] == 1 and got['line_length_distance'] == 0 and got['copied_longest'] == len(song)
    assert quality.figures(['山\n水\n火\n木'], [song], song)['rhyme_rate'] == 0
    assert quality.figures([''], [song], song)['copied_longest'] == 0, 'a model may say nothing'


def test_perplexity_shows_how_completions_read_and_warns_of_a_model_that_recites(train, run, data_dir, tmp_path, fails):
    """A model that was trained on two songs alone until it knew them by heart recites them when given their first lines."""
    pytest.importorskip('pypinyin')
    songs, folder = SONGS[:6], tmp_path / 'data'
    (folder / 'lyric').mkdir(parents=True)
    (folder / 'lyric' / 'lyric_train.txt').write_text('\n\n'.join(songs) + '\n', encoding='utf-8')
    assert train('--max_iters=200', '--n_embd=32', '--block_size=32', '--eval_interval=200', '--log_interval=100').code == 0
    args = ['calculate_ppl.py', '--device=cpu', '--dtype=float32', f'--data_dir={folder}', '--text=songs.txt', '--samples=4',
            '--max_new_tokens=20', '--temperature=0.0', '--json=ppl.json']
    (tmp_path / 'songs.txt').write_text('\n\n'.join(songs) + '\n', encoding='utf-8')
    result = run(*args)
    assert result.code == 0, result.message
    real, model = json.loads((tmp_path / 'ppl.json').read_text(encoding='utf-8'))['lyrics']
    assert real['copied_longest'] >= 12, 'these songs are the training text itself'
    assert ('recites' in result.out) == (model['copied_longest'] > 12) and model['copied_longest'] > 12, result.out
    assert 'the real songs' in result.out and f'{model["distinct_2"]:.3f}' in result.out
    (folder / 'lyric' / 'lyric_train.txt').unlink()
    fails(*args, says='lyric_train.txt cannot be read')
    (tmp_path / 'songs.txt').write_text('一首只有一行的歌\n\n又一首\n', encoding='utf-8')
    fails(*args, says='no song of songs.txt has a second one')
    fails(*args, '--top_p=0', says='--top_p=0')


def test_samples_without_pypinyin_end_in_one_line(fails, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    fails('calculate_ppl.py', '--samples=3', says='pip install pypinyin')


def in_dev(script, *args):
    """A script run as a user runs it, in a process of its own."""
    return subprocess.run([sys.executable, os.path.join(ROOT, script), *args], capture_output=True, text=True)


def test_the_arena_runs_a_recipe_and_adds_a_line_of_exact_figures(data_dir, tmp_path):
    done = in_dev('dev/arena.py', f'--data_dir={data_dir}', '--dataset=tiny', '--n_layer=1', '--n_embd=16', '--block_size=16', '--tokens=768',
                  f'--results={tmp_path}/r.jsonl', '--recipes=ours batch_size=2 device=cpu dtype=float32', '--seeds=5', '--evaluations=2')
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / 'r.jsonl').read_text(encoding='utf-8'))
    with open(os.path.join(data_dir, 'tiny', 'meta.json'), encoding='utf-8') as f:
        val = json.load(f)['val']
    assert [point['tokens'] for point in line['curve']] == [384, 768] and line['seed'] == 5
    last = line['curve'][-1]
    assert last['bits_per_character'] == pytest.approx(last['nats'] * val['tokens'] / val['characters'] / 0.693147, abs=1e-3)
    wrong = in_dev('dev/arena.py', '--recipes=mine')
    assert wrong.returncode and '--recipes=mine' in wrong.stderr and wrong.stderr.count('\n') == 1


def test_the_benchmark_measures_both_ways_and_writes_json(tmp_path):
    path = tmp_path / 'bench.json'
    done = in_dev('bench.py', '--only=train-256,prepare-characters', '--repeats=1', '--seconds=0', '--layers=1', '--width=8', '--vocabulary=20',
                  '--characters=20000', f'--json={path}')
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding='utf-8'))['workloads']
    assert {len(found[name][way]) for name in ('train-256', 'prepare-characters') for way in ('nanogpt', 'ours')} == {1}
    for name in ('train-256', 'train-256 + validation', 'prepare-characters'):
        assert any(line.startswith(name + ' ') and 'x (' in line for line in done.stdout.splitlines()), done.stdout
    wrong = in_dev('bench.py', '--only=fine-tune')
    assert wrong.returncode and '--only=fine-tune: on cpu there are train-1024' in wrong.stderr


@pytest.mark.parametrize('module', ['corpus', 'inference', 'optim', 'quality'])
def test_the_examples_in_docstrings_are_true(module):
    failed, tried = doctest.testmod(__import__(module))
    assert tried and not failed


@pytest.mark.parametrize('seed', range(3))
def test_made_up_lyrics_repeat_half_of_their_lines(seed):
    import workloads
    songs = workloads.lyrics(50_000 + seed)
    lines = [line for song in songs for line in song.split('\n')]
    assert sum(map(len, songs)) >= 50_000 and 0.4 < 1 - len(set(lines)) / len(lines) < 0.6
    assert random.Random(seed).choice(lines)
