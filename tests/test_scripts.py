"""The scripts as a user runs them: help, mistakes, completions, perplexities; and who imports whom."""
import ast
import glob
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import checkpoint
import configurator
import corpus
import dataset
import inference
import tokenizer
from conftest import ROOT, SONGS

SCRIPTS = ['train.py', 'completion.py', 'calculate_ppl.py', 'data/lyric_char/prepare.py']
MODULES = sorted(os.path.basename(p)[:-3] for p in glob.glob(os.path.join(ROOT, '*.py')))
ALONE = {'train', 'completion', 'calculate_ppl', 'web_demo', 'bench'}  # the scripts at the root


@pytest.fixture
def model_folder(tmp_path, tiny, characters):
    """out-a, a model folder of a tiny random model, in the folder where the scripts run."""
    checkpoint.save_model(str(tmp_path / 'out-a'), tiny(vocab_size=characters.vocab_size), characters)
    return tmp_path / 'out-a'


# --- help and mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script', SCRIPTS)
def test_help_prints_the_launch_commands_and_every_setting_with_its_meaning(run, script):
    result = run(script, '--help')
    assert result.code == 0 and f'python {script}' in result.out
    defined = configurator.defined_settings(os.path.join(ROOT, script))
    assert len(defined) >= 3
    for name, comment in defined.items():
        assert comment, f'{script}: {name} has no comment'
        assert f'--{name}=' in result.out and comment in result.out


def test_help_answers_from_any_folder_and_loads_no_heavy_library(tmp_path):
    code = ('import runpy, sys\nsys.argv = ["completion.py", "--help"]\ntry:\n    runpy.run_path(sys.argv.pop(0) and %r, '
            'run_name="__main__")\nfinally:\n    heavy = {"transformers", "datasets", "sentencepiece", "gradio", "wandb", "matplotlib"}'
            '\n    print(sorted(heavy & sys.modules.keys()), file=sys.stderr)')
    code = code.replace('sys.argv.pop(0) and ', '') % os.path.join(ROOT, 'completion.py')
    process = subprocess.run([sys.executable, '-c', 'import sys\nsys.path.insert(0, %r)\n' % ROOT + code], cwd=tmp_path,
                             capture_output=True, text=True, encoding='utf-8')
    assert process.returncode == 0 and '--temperature=0.8' in process.stdout
    assert process.stderr == '[]\n'


@pytest.mark.parametrize('script', SCRIPTS)
def test_an_unknown_flag_ends_in_one_line(fails, script):
    fails(script, '--devise=cpu' if script != SCRIPTS[3] else '--sauce=x', says='unknown setting.*Did you mean (device|source)')


def test_a_typo_in_a_config_file_ends_in_one_line(fails, tmp_path):
    (tmp_path / 'mine.py').write_text('learning_rat = 1e-3\n', encoding='utf-8')
    fails('train.py', 'mine.py', says="mine.py: unknown setting 'learning_rat'.*learning_rate")


def test_a_training_config_given_to_completion_says_whose_settings_it_holds(fails):
    fails('completion.py', 'config/quickstart.py', says='unknown setting.*It is a setting of train.py')


@pytest.mark.parametrize('path', sorted(glob.glob(os.path.join(ROOT, 'config', '*.py'))), ids=os.path.basename)
def test_every_config_file_is_one_that_train_or_another_script_understands(path):
    with open(path, encoding='utf-8') as f:
        source = f.read()
    names = {node.targets[0].id for node in ast.parse(source).body if isinstance(node, ast.Assign)}
    assert names <= set(configurator.defined_settings(os.path.join(ROOT, 'train.py')))
    assert source.startswith('# ') and 'train.py' in source[:400], 'its first comment gives the command'


def test_a_missing_dataset_ends_in_one_line_that_names_the_command(fails, tmp_path):
    fails('train.py', f'--data_dir={tmp_path}', says='python data/lyric_char/prepare.py')


@pytest.mark.parametrize('script', ['completion.py', 'calculate_ppl.py'])
def test_no_model_at_all_ends_in_one_line_that_says_how_to_make_one(fails, script):
    fails(script, '--device=cpu', says='no out-. folder with a model.*train.py config/quickstart.py')


@pytest.mark.parametrize('script', ['completion.py', 'calculate_ppl.py'])
@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'model.safetensors'])
def test_a_missing_or_cut_off_model_file_ends_in_one_line(fails, model_folder, data_dir, script, name):
    args = ['--device=cpu', '--out_dir=out-a'] + ([f'--data_dir={data_dir}'] if script == 'calculate_ppl.py' else [])
    whole = (model_folder / name).read_bytes()
    for hashes in (True, False):  # a folder of ours, and one from elsewhere
        (model_folder / name).write_bytes(whole[:len(whole) // 2])
        fails(script, *args, says='out-a')
        os.remove(model_folder / name)
        fails(script, *args, says='out-a')
        if hashes:
            os.remove(model_folder / 'sha256.json')


def test_a_model_folder_that_is_not_there_ends_in_one_line(fails):
    fails('completion.py', '--out_dir=out-nothing', says='out-nothing')


# --- prepare ----------------------------------------------------------------------------------------------------------

def test_prepare_makes_a_dataset_of_the_users_songs_that_train_takes(run, tmp_path):
    rng = np.random.default_rng(0)
    letters = sorted(set(''.join(SONGS)) - {'\n'})
    (tmp_path / 'mine.txt').write_text('\n\n'.join('\n'.join(''.join(rng.choice(letters, 7)) for _ in range(5)) for _ in range(40)),
                                       encoding='utf-8')
    args = ('data/lyric_char/prepare.py', '--source=mine.txt', f'--data_dir={tmp_path / "data"}')
    result = run(*args)
    assert result.code == 0 and 'vocabulary' in result.out, result
    first = {p: p.read_bytes() for p in (tmp_path / 'data').rglob('*') if p.is_file()}
    data, meta = dataset.load(str(tmp_path / 'data' / 'lyric_char'))
    t = tokenizer.load(str(tmp_path / 'data' / 'lyric_char' / 'tokenizer.json'))
    songs = corpus.read_text(str(tmp_path / 'data' / 'lyric' / 'lyric_train.txt'))
    assert t.decode(data['train'][:len(songs[0])]) == songs[0] and meta['train']['songs'] == len(songs)
    assert run(*args).code == 0
    assert {p: p.read_bytes() for p in (tmp_path / 'data').rglob('*') if p.is_file()} == first, 'twice gives the same bytes'
    assert run('train.py', f'--data_dir={tmp_path / "data"}', '--eval_only', '--device=cpu', '--block_size=16', '--n_layer=1',
               '--n_embd=16', '--n_head=2').code == 0


@pytest.mark.parametrize('source, says', [('nowhere/', 'no such file or folder'), ('bad.json', 'bad.json is no valid json'),
                                          ('short.txt', 'three lines'), ('.', 'holds no lyrics|no field')])
def test_prepare_without_songs_ends_in_one_line_and_writes_nothing(fails, tmp_path, source, says):
    (tmp_path / 'bad.json').write_text('{', encoding='utf-8')
    (tmp_path / 'short.txt').write_text('风\n雨', encoding='utf-8')
    if source == '.':
        os.remove(tmp_path / 'bad.json')
        os.remove(tmp_path / 'short.txt')
    fails('data/lyric_char/prepare.py', f'--source={source}', f'--data_dir={tmp_path / "data"}', says=says)
    assert not list(tmp_path.rglob('*.bin')) + list(tmp_path.rglob('lyric_*.txt'))


def test_prepare_on_a_full_disk_ends_in_one_line_and_train_sees_no_half_dataset(fails, small_disk):
    args = ('data/lyric_char/prepare.py', '--source=embedded', f'--data_dir={small_disk}')
    fails(*args, says='No space left')
    assert not list(small_disk.rglob('*.tmp'))
    fails('train.py', f'--data_dir={small_disk}', says='lacks|damaged')


# --- completion -------------------------------------------------------------------------------------------------------

def test_a_greedy_completion_is_what_the_model_finds_likeliest(run, model_folder):
    model, t = checkpoint.load_model(str(model_folder))
    result = run('completion.py', '--device=cpu', '--dtype=float32', '--start=纸鹤停', '--temperature=0', '--max_new_tokens=40')
    ids = inference.generate(model, [[t.bos_id, *t.encode('纸鹤停')]], 40, temperature=0, stop_id=t.eot_id, banned_ids=t.banned_ids)
    assert result.code == 0 and result.out == '纸鹤停' + t.decode(ids[0]).rstrip() + '\n' + '-' * 30 + '\n'
    assert 'model: out-a' in result.err, 'it says which model it took'


def test_streamed_and_plain_greedy_completions_are_the_same(run, model_folder):
    args = ('completion.py', '--device=cpu', '--dtype=float32', '--start=纸鹤停', '--temperature=0', '--max_new_tokens=30')
    plain, streamed = run(*args), run(*args, '--stream')
    assert streamed.code == 0 and streamed.out.rstrip() == plain.out.split('\n' + '-' * 30)[0].rstrip()


def test_every_line_of_a_prompt_file_is_completed_num_samples_times(run, model_folder, tmp_path):
    (tmp_path / 'p.txt').write_text('\ufeff纸鹤\n\n  钟摆数到第九下  \r\n风\n', encoding='utf-8')
    result = run('completion.py', '--device=cpu', '--start=FILE:p.txt', '--num_samples=2', '--max_new_tokens=8')
    parts = result.out.split('-' * 30 + '\n')[:-1]
    assert [next(p for p in ('纸鹤', '钟摆数到第九下', '风') if part.startswith(p)) for part in parts] == \
        ['纸鹤', '纸鹤', '钟摆数到第九下', '钟摆数到第九下', '风', '风']


def test_the_same_seed_gives_the_same_completion(run, model_folder):
    a, b, c = (run('completion.py', '--device=cpu', '--start=纸鹤停', f'--seed={seed}').out for seed in (1, 1, 2))
    assert a == b != c


def test_unknown_characters_are_reported_and_not_fatal(run, model_folder):
    """The predecessor's completion.py died with KeyError on a character that training never saw."""
    result = run('completion.py', '--device=cpu', '--start=鼎纸👧', '--max_new_tokens=5')
    assert result.code == 0 and '鼎' in result.err and '👧' in result.err and result.out.startswith('鼎纸👧')

def test_unk_is_never_printed_however_wild_the_sampling(run, model_folder):
    result = run('completion.py', '--device=cpu', '--start=鼎纸', '--temperature=9', '--top_p=1', '--num_samples=8')
    assert result.code == 0 and len(result.out) > 700 and '<unk>' not in result.out


def test_bytes_on_the_command_line_that_are_no_text_are_no_traceback(run, model_folder):
    """A GBK terminal hands over bytes that Python keeps as lone surrogates; printing them raised UnicodeEncodeError."""
    result = run('completion.py', '--device=cpu', '--start=纸\udcff鹤', '--max_new_tokens=3')
    assert result.code == 0 and result.out.startswith('纸?鹤')


def test_the_newest_model_is_taken(run, model_folder, tmp_path, tiny, characters):
    checkpoint.save_model(str(tmp_path / 'out-b'), tiny(vocab_size=characters.vocab_size), characters)
    os.utime(tmp_path / 'out-b' / 'model.safetensors', (1, 1))
    assert 'model: out-a' in run('completion.py', '--device=cpu', '--start=风', '--max_new_tokens=2').err


def test_the_prompt_file_of_the_project_is_the_default(run, model_folder):
    result = run('completion.py', '--device=cpu', '--max_new_tokens=2')
    with open(os.path.join(ROOT, 'prompt.txt'), encoding='utf-8') as f:
        prompts = f.read().split()
    assert result.code == 0 and all(p in result.out for p in prompts)


@pytest.mark.parametrize('args, says', [
    (['--start='], 'no text to continue'), (['--start=  \n '], 'no text to continue'),
    (['--start=FILE:missing.txt'], 'missing.txt'), (['--start=FILE:empty.txt'], 'no text to continue'),
    (['--start=FILE:binary.txt'], 'cannot be read'), (['--start=FILE:.'], 'cannot be read'),
    (['--stream'], 'one completion'), (['--start=风', '--stream', '--num_samples=2'], 'one completion'),
    (['--num_samples=0'], '--num_samples=0'), (['--max_new_tokens=0'], '--max_new_tokens=0'),
    (['--temperature=-1'], '--temperature=-1'), (['--top_k=-1'], '--top_k=-1'), (['--top_p=0'], '--top_p=0'),
    (['--repetition_penalty=0'], '--repetition_penalty=0'), (['--device=quantum'], '--device=quantum')])
def test_a_mistaken_completion_ends_in_one_line(fails, model_folder, tmp_path, args, says):
    (tmp_path / 'empty.txt').write_text('\n\n', encoding='utf-8')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\xff\x00')
    fails('completion.py', *args, says=says)


# --- perplexity -------------------------------------------------------------------------------------------------------

@torch.no_grad()
def by_hand(folder, songs):
    """Total nll in float64, a list for each song, every song within one block or scored with half a block of context."""
    model, t = checkpoint.load_model(str(folder))
    model, block, losses = model.double(), model.config.block_size, []
    for song in songs:
        ids = [t.bos_id, *t.encode(song), t.eot_id]
        losses.append([])
        for target in range(1, len(ids)):
            step = block // 2
            end = block + 1 if target <= block else min(len(ids), block + 1 + step * math.ceil((target - block) / step))
            begin = max(0, min(end, len(ids)) - 1 - block)
            logits = model(torch.tensor([ids[begin:target]]))[0, -1]
            losses[-1].append(-logits.log_softmax(-1)[ids[target]].item())
    return losses


def test_the_perplexity_table_is_what_one_computes_by_hand(run, model_folder, tmp_path):
    songs = [SONGS[0], SONGS[1] + '\n鼎👧', SONGS[2]]  # two characters that the model does not know
    (tmp_path / 'text.txt').write_text('\n\n'.join(songs), encoding='utf-8')
    result = run('calculate_ppl.py', '--device=cpu', '--dtype=float32', '--text=text.txt', '--json=ppl.json')
    assert result.code == 0, result
    row = json.loads((tmp_path / 'ppl.json').read_text())['models'][0]
    losses = by_hand(model_folder, songs)
    total, tokens = sum(map(sum, losses)), sum(map(len, losses))
    means = [sum(x) / len(x) for x in losses]
    characters = sum(map(len, songs)) + len(songs)  # each song's end counts as one
    assert tokens == characters, 'a character model'
    bits = (total + 2 * math.log(0x110000)) / characters / math.log(2)
    expected = {'tokens': tokens, 'loss_mean': np.mean(means), 'loss_std': np.std(means), 'perplexity': math.exp(total / tokens),
                'mean_exp_loss': np.mean(np.exp(means)), 'std_exp_loss': np.std(np.exp(means)), 'bits_per_character': bits,
                'character_perplexity': 2 ** bits, 'unknown_share': 2 / characters}
    assert {k: row[k] for k in expected} == pytest.approx(expected, rel=1e-4)
    assert row['perplexity_95_low'] < row['perplexity'] < row['perplexity_95_high']
    assert f'{row["perplexity"]:,.2f}' in result.out and f'{bits:.3f}' in result.out and 'out-a' in result.out


def test_the_stride_changes_the_context_and_not_the_number_of_tokens(run, model_folder, tmp_path, data_dir):
    rows = []
    for stride in (0, 8, 1, 16):
        assert run('calculate_ppl.py', '--device=cpu', '--dtype=float32', f'--data_dir={data_dir}', f'--stride={stride}',
                   '--json=ppl.json').code == 0
        rows.append(json.loads((tmp_path / 'ppl.json').read_text())['models'][0])
    assert rows[0] == rows[1] and len({row['tokens'] for row in rows}) == 1
    assert len({row['perplexity'] for row in rows}) == 3


def test_a_text_without_songs_is_counted_in_windows(run, model_folder, tmp_path):
    (tmp_path / 'text.txt').write_text('\n'.join(SONGS), encoding='utf-8')
    result = run('calculate_ppl.py', '--device=cpu', '--text=text.txt', '--json=ppl.json')
    assert result.code == 0 and json.loads((tmp_path / 'ppl.json').read_text())['models'][0]['loss_std'] > 0


def test_without_out_dir_every_model_stands_in_the_table(run, model_folder, tmp_path, tiny, characters, data_dir):
    checkpoint.save_model(str(tmp_path / 'out-b'), tiny(seed=3, vocab_size=characters.vocab_size), characters)
    (tmp_path / 'out-empty').mkdir()
    result = run('calculate_ppl.py', '--device=cpu', f'--data_dir={data_dir}', '--json=ppl.json')
    assert result.code == 0 and [r['model'] for r in json.loads((tmp_path / 'ppl.json').read_text())['models']] == ['out-a', 'out-b']
    assert 'out-a' in result.out and 'out-b' in result.out


@pytest.mark.parametrize('args, says', [
    (['--text=missing.txt'], 'missing.txt'), (['--text=empty.txt'], 'empty.txt is empty'), (['--text=.'], 'cannot be read'),
    (['--text=binary.txt'], 'neither UTF-8'), (['--stride=-1'], '--stride=-1'), (['--stride=17'], '--stride=17'),
    (['--batch_size=0'], '--batch_size=0'), (['--bootstrap=0'], '--bootstrap=0'), (['--json=nowhere/ppl.json'], 'nowhere')])
def test_a_mistaken_perplexity_ends_in_one_line(fails, model_folder, data_dir, tmp_path, args, says):
    """A stride below 0 ran for ever, one above the block ended in a traceback."""
    (tmp_path / 'empty.txt').write_text('', encoding='utf-8')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xff\xff\xff')
    fails('calculate_ppl.py', '--device=cpu', f'--data_dir={data_dir}', *args, says=says)


# --- who imports whom -------------------------------------------------------------------------------------------------

def imports(module):
    """Names of our modules that a module imports, anywhere in it; and those at its top level."""
    with open(os.path.join(ROOT, module + '.py'), encoding='utf-8') as f:
        tree = ast.parse(f.read())

    def named(nodes):
        return {name.split('.')[0] for node in nodes for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom)
            else [])}
    return named(ast.walk(tree)) & set(MODULES), named(tree.body)


def test_imports_point_downwards_only():
    floors, graph = {}, {m: imports(m)[0] for m in MODULES}
    while graph:
        free = [m for m, below in graph.items() if not below & graph.keys()]
        assert free, f'a circle of imports among {sorted(graph)}'
        for m in free:
            floors[m] = 1 + max((floors[b] for b in graph.pop(m)), default=-1)
    for m in ('configurator', 'files', 'model', 'tokenizer'):
        assert floors[m] <= 1, f'{m} stands on the ground: it imports no more than files'
    assert floors['checkpoint'] > floors['model'] and floors['inference'] > floors['model']


def test_scripts_import_no_script_and_there_is_no_utils():
    for m in MODULES:
        assert not imports(m)[0] & ALONE, f'{m} imports a script'
    assert not {'utils', 'common', 'helpers', 'misc'} & set(MODULES)
    for path in glob.glob(os.path.join(ROOT, 'data', '*', 'prepare.py')):
        with open(path, encoding='utf-8') as f:
            assert not any(f'import {name}' in f.read() for name in ALONE)


def test_heavy_optional_libraries_are_imported_where_they_are_used():
    heavy = {'transformers', 'sentencepiece', 'datasets', 'gradio', 'wandb', 'matplotlib', 'tiktoken', 'huggingface_hub'}
    assert {m: imports(m)[1] & heavy for m in MODULES if imports(m)[1] & heavy and m not in ('web_demo', 'serving')} == {}


def test_modules_do_nothing_on_import(tmp_path):
    modules = [m for m in MODULES if m not in ALONE and m != 'serving']
    code = ('import random, sys\nimport numpy, torch, logging\n'
            f'sys.path.insert(0, {ROOT!r})\nbefore = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()\n'
            f'for name in {modules!r}:\n    __import__(name)\n'
            'assert torch.equal(before[0], torch.get_rng_state()), "torch was seeded"\n'
            'assert before[1:] == (numpy.random.get_state()[1].tolist(), random.getstate()), "something was seeded"\n'
            'assert not logging.getLogger().handlers, "logging was set up"\n'
            'assert sys.excepthook is sys.__excepthook__')
    process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, '', '')
    assert os.listdir(tmp_path) == []
