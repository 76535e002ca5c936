"""A model folder is a Hugging Face model folder; what is damaged or foreign ends in one line and runs no code."""
import json
import os
import pickle
import shutil

import pytest
import torch

import checkpoint
import machine
from conftest import SONGS

TEXT = '纸鹤停在窗台上\n等一阵 鼎<|endoftext|>'


@pytest.fixture
def folder(tmp_path, tiny, characters):
    """A model folder of a tiny random model."""
    checkpoint.save_model(str(tmp_path / 'out-a'), tiny(vocab_size=characters.vocab_size), characters)
    os.remove(tmp_path / 'out-a' / 'sha256.json')  # a folder from elsewhere: each damage must be seen by what it breaks
    return tmp_path / 'out-a'


def refusal(name):
    """The line that opening a bad folder ends in."""
    with pytest.raises(SystemExit) as end:
        checkpoint.load_model(str(name))
    assert isinstance(end.value.code, str) and '\n' not in end.value.code, end.value.code
    return end.value.code


# --- saved and loaded -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fields', [{}, {'bias': False}, {'tied': False}, {'dropout': 0.3, 'attn_dropout': 0.1}])
def test_a_saved_model_loads_as_the_same(tmp_path, tiny, characters, fields):
    model = tiny(vocab_size=characters.vocab_size, **fields)
    checkpoint.save_model(str(tmp_path / 'm'), model, characters)
    loaded, t = checkpoint.load_model(str(tmp_path / 'm'))
    assert vars(loaded.config) == vars(model.config) and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == model.config.tied
    assert t.hf.to_str() == characters.hf.to_str() and t.banned_ids == characters.banned_ids


def test_transformers_opens_the_folder_with_the_same_ids_and_logits(folder):
    import transformers
    ours, t = checkpoint.load_model(str(folder))
    theirs, words = transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = words(SONGS[0])['input_ids']
    assert ids == t.encode(SONGS[0])
    assert words.decode(ids) == SONGS[0], 'no spaces between characters, every line break in its place'
    assert (words.eos_token_id, words.bos_token_id, words.unk_token_id) == (t.eot_id, t.bos_id, t.unk_id)
    assert (theirs.config.eos_token_id, theirs.generation_config.eos_token_id) == (t.eot_id, t.eot_id)
    assert theirs.generation_config.suppress_tokens == t.banned_ids, '<unk> is not sampled there either'
    x = torch.tensor([ids[:16]])
    with torch.no_grad():
        assert (theirs(x).logits - ours(x)).abs().max() < 1e-4


def test_transformers_says_the_same_of_unknown_characters_and_special_tokens_in_a_lyric(folder):
    import transformers
    _, t = checkpoint.load_model(str(folder))
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert words('鼎纸👧', add_special_tokens=False)['input_ids'] == t.encode('鼎纸👧')


def test_the_folder_holds_all_that_inference_needs(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / 'elsewhere')
    shutil.rmtree(folder)
    model, t = checkpoint.load_model(str(moved))
    assert t.decode(t.encode(SONGS[0])) == SONGS[0]
    assert sorted({*os.listdir(moved)} - {'sha256.json'}) == ['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json',
                                         'tokenizer_config.json']


def test_dropout_and_a_shorter_block_can_be_asked_for_and_a_longer_cannot(folder):
    model, _ = checkpoint.load_model(str(folder), block_size=8, dropout=0.4)
    assert model.config.block_size == 8 and model.transformer.wpe.weight.shape == (8, 16)
    assert model.transformer.drop.p == 0.4
    with pytest.raises(SystemExit, match='context of 16 tokens; block_size=17'):
        checkpoint.load_model(str(folder), block_size=17)


def test_a_bfloat16_folder_loads_as_float32(folder, tmp_path):
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / 'half')
    shutil.copy(folder / 'tokenizer.json', tmp_path / 'half')
    loaded, _ = checkpoint.load_model(str(tmp_path / 'half'))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_weights_in_shards_and_in_a_pytorch_model_bin_load_alike(folder, tmp_path):
    import transformers
    ours, _ = checkpoint.load_model(str(folder))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / 'shards', max_shard_size='10KB')
    assert len(list((tmp_path / 'shards').glob('*.safetensors'))) > 1
    (tmp_path / 'bin').mkdir()
    torch.save(theirs.state_dict(), tmp_path / 'bin' / 'pytorch_model.bin')
    shutil.copy(folder / 'config.json', tmp_path / 'bin')
    for name in ('shards', 'bin'):
        shutil.copy(folder / 'tokenizer.json', tmp_path / name)
        loaded, _ = checkpoint.load_model(str(tmp_path / name))
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_train_state_comes_back_as_it_was(tmp_path):
    state = {'step': 3, 'best': 1.5, 'name': 'x', 'optimizers': [1, None, True], 'model': {'w': torch.arange(3.0)}}
    checkpoint.save_state(str(tmp_path), state)
    loaded = checkpoint.load_state(str(tmp_path))
    assert torch.equal(loaded.pop('model')['w'], state.pop('model')['w']) and loaded == state
    assert os.listdir(tmp_path) == ['train_state.pt']


# --- what is refused --------------------------------------------------------------------------------------------------

def test_a_folder_that_is_missing_or_empty_is_named(tmp_path):
    assert 'out-nothing' in refusal('out-nothing')
    assert 'missing' in refusal(tmp_path / 'missing')
    (tmp_path / 'empty').mkdir()
    assert 'empty holds no model' in refusal(tmp_path / 'empty')


def test_a_hub_name_without_a_network_ends_in_one_line():
    assert 'nobody/nothing' in refusal('nobody/nothing')


@pytest.mark.parametrize('name', ['model.safetensors', 'tokenizer.json'])
def test_a_missing_file_of_a_model_folder_is_named(folder, name):
    os.remove(folder / name)
    assert name in refusal(folder)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'model.safetensors'])
def test_a_file_cut_off_anywhere_ends_in_one_line(folder, name):
    whole = (folder / name).read_bytes()
    for at in sorted({0, 1, 7, 8, 9, 20, 100, len(whole) // 2, len(whole) - 3}):
        (folder / name).write_bytes(whole[:at])
        assert 'out-a' in refusal(folder)


@pytest.mark.parametrize('content', ['[]', 'null', '3', '"gpt2"', '{}', '{"model_type": "gpt2"}', '\xff\xfe'])
def test_a_config_json_that_is_no_config_ends_in_one_line(folder, content):
    (folder / 'config.json').write_bytes(content.encode('latin-1'))
    assert 'out-a' in refusal(folder)


@pytest.mark.parametrize('key, value', [('model_type', 'llama'), ('model_type', 'bert'), ('activation_function', 'relu'),
                                        ('n_inner', 100), ('layer_norm_epsilon', 1e-12), ('scale_attn_weights', False),
                                        ('add_cross_attention', True), ('scale_attn_by_inverse_layer_idx', True)])
def test_what_this_gpt2_cannot_represent_is_refused_by_name(folder, key, value):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, key: value}))
    line = refusal(folder)
    assert key in line and repr(value) in line


@pytest.mark.parametrize('key, value', [('n_layer', 3), ('n_embd', 32), ('n_head', 3), ('n_head', 0), ('vocab_size', 7), ('n_positions', 32),
                                        ('n_layer', 'two'), ('n_embd', None), ('tie_word_embeddings', False)])
def test_a_config_that_does_not_fit_the_weights_ends_in_one_line(folder, key, value):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, key: value}))
    assert 'out-a' in refusal(folder)


def test_a_real_foreign_model_is_refused_by_name(folder):
    import transformers
    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).save_pretrained(folder)
    assert 'gpt_neox' in refusal(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder, characters):
    import tokenizer
    tokenizer.build_characters([''.join(SONGS) + '鼎']).save(str(folder / 'tokenizer.json'))
    assert f'the tokenizer has {characters.vocab_size + 1} tokens, the model {characters.vocab_size}' in refusal(folder)


def test_rows_beyond_the_tokenizer_stand_for_nothing_and_are_never_sampled(tmp_path, tiny, characters):
    checkpoint.save_model(str(tmp_path), tiny(vocab_size=characters.vocab_size + 3), characters)
    _, t = checkpoint.load_model(str(tmp_path))
    assert set(range(t.vocab_size, t.vocab_size + 3)) <= set(t.banned_ids)


def test_weights_that_differ_where_the_config_ties_them_are_refused(tmp_path, tiny, characters):
    """The predecessor trained them apart and tied them on loading: perplexity 10,228.98."""
    checkpoint.save_model(str(tmp_path), tiny(vocab_size=characters.vocab_size, tied=False), characters)
    os.remove(tmp_path / 'sha256.json')
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'tie_word_embeddings': True}))
    assert 'the weights differ' in refusal(tmp_path)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'model.safetensors'])
def test_a_change_that_no_format_would_notice_is_told_by_the_hashes(tmp_path, tiny, characters, name):
    """A flipped bit in the weights loads as a slightly different model; a tokenizer of another run as nonsense."""
    checkpoint.save_model(str(tmp_path), tiny(vocab_size=characters.vocab_size), characters)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1 if name == 'model.safetensors' else data.index(b'\n')] ^= 0x2a  # a newline becomes a space
    (tmp_path / name).write_bytes(data)
    assert name in refusal(tmp_path)


def test_an_index_that_points_outside_the_folder_is_refused(folder):
    os.rename(folder / 'model.safetensors', folder.parent / 'elsewhere.safetensors')
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': '../elsewhere.safetensors'}}))
    assert 'points outside' in refusal(folder)


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', ['pytorch_model.bin', 'ckpt.pt', 'train_state.pt'])
def test_a_pickle_that_would_run_code_does_nothing(folder, tmp_path, name, zipped):
    trace, bomb = tmp_path / 'ran', {'model_args': Bomb(str(tmp_path / 'ran'))}
    if zipped:
        torch.save(bomb, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(bomb, protocol=2))
    os.remove(folder / 'model.safetensors')
    if name == 'ckpt.pt':
        os.remove(folder / 'config.json')
    if name == 'train_state.pt':
        with pytest.raises(SystemExit) as end:
            checkpoint.load_state(str(folder))
        line = end.value.code
    else:
        line = refusal(folder)
    assert not trace.exists(), 'the pickle ran'
    assert name in line and ('could run code' in line or 'damaged' in line) and '\n' not in line


def test_a_cut_off_train_state_ends_in_one_line_wherever_it_is_cut(tmp_path):
    checkpoint.save_state(str(tmp_path), {'model': {'w': torch.arange(300.0)}, 'optimizers': [], 'step': 3})
    path = tmp_path / 'train_state.pt'
    whole = path.read_bytes()
    for at in (0, 1, 2, 10, 60, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at])
        with pytest.raises(SystemExit) as end:
            checkpoint.load_state(str(tmp_path))
        assert 'train_state.pt' in end.value.code and '\n' not in end.value.code


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path):
    with pytest.raises(SystemExit, match='no run to resume'):
        checkpoint.load_state(str(tmp_path))


# --- a full disk, a kill ----------------------------------------------------------------------------------------------

def test_a_full_disk_leaves_the_old_model_and_the_old_state(small_disk, tiny, characters):
    model = tiny(vocab_size=characters.vocab_size, n_embd=8, n_layer=1)
    checkpoint.save_model(str(small_disk), model, characters)
    checkpoint.save_state(str(small_disk), {'model': {}, 'optimizers': [], 'step': 1})
    with pytest.raises(OSError, match='model.safetensors'):
        checkpoint.save_weights(str(small_disk / 'model.safetensors'), tiny(n_embd=64))
    with pytest.raises(OSError, match='train_state.pt|No space'):
        checkpoint.save_state(str(small_disk), {'model': {'w': torch.zeros(1 << 16)}, 'optimizers': []})
    loaded, _ = checkpoint.load_model(str(small_disk))
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    assert checkpoint.load_state(str(small_disk))['step'] == 1
    assert not list(small_disk.glob('*.tmp')), 'what could not be written is cleared away'


def test_a_save_that_breaks_off_leaves_a_folder_that_opens(folder, tiny, characters, monkeypatch):
    before = checkpoint.load_model(str(folder))[0].state_dict()
    monkeypatch.setattr(checkpoint, 'save_file', lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_model(str(folder), tiny(seed=5, vocab_size=characters.vocab_size), characters)
    after = checkpoint.load_model(str(folder))[0].state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


# --- machines ---------------------------------------------------------------------------------------------------------

def test_devices_and_dtypes_are_picked_by_name_or_by_what_is_there():
    assert machine.pick_device('cpu') == 'cpu' and machine.pick_device() in ('cuda', 'mps', 'cpu')
    assert machine.pick_dtype('bfloat16') is torch.bfloat16
    assert machine.pick_dtype('auto', 'cpu') in (torch.bfloat16, torch.float32)
    with pytest.raises(SystemExit, match='dtype=float8.*auto.*bfloat16'):
        machine.pick_dtype('float8')


@pytest.mark.parametrize('device', ['quantum', 'cuda:0', 'cuda', ''])
def test_a_device_that_is_not_there_ends_in_a_line_that_says_what_is(device, monkeypatch):
    """--device=cuda on a machine without a card ended in a traceback from the depths of torch."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match=f'--device={device}: this machine has cpu'):
        machine.pick_device(device)
