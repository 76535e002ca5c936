"""
The one place that saves and loads models. A model folder (out-*) *is* a Hugging Face model folder:

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json

so transformers opens it with no export step; sha256.json tells damage. Beside them train.py keeps train_state.pt (what
resuming needs), run.json, log.jsonl and loss.png. Nothing here unpickles code: weights are safetensors, .pt files load
with weights_only=True.
"""
import json
import os
import pickle
import zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import files
import nanogpt
import tokenizer as tokenizers
import vocabulary
from kernels import for_generating
from model import GPT, GPTConfig

# transformers keeps the weights of these four layers transposed (Conv1D instead of Linear)
TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')


# --- saving -----------------------------------------------------------------------------------------------------------

def save_model(folder, model, tokenizer, state=None):
    """
    Write a GPT (its weights from `state`, where its own state_dict is not whole) and its Tokenizer as a Hugging Face model
    folder. The files change as one.
    """
    c = model.config
    os.makedirs(folder, exist_ok=True)
    config = {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'activation_function': 'gelu_new',
              'vocab_size': c.vocab_size, 'n_positions': c.block_size, 'n_ctx': c.block_size, 'n_embd': c.n_embd,
              'n_layer': c.n_layer, 'n_head': c.n_head, 'layer_norm_epsilon': 1e-5, 'embd_pdrop': c.dropout,
              'resid_pdrop': c.dropout, 'attn_pdrop': c.attn_dropout, 'tie_word_embeddings': c.tied, 'bias': c.bias,
              'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eot_id, 'torch_dtype': 'float32'}
    words = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': c.block_size,
             'clean_up_tokenization_spaces': False, 'eos_token': tokenizer.hf.id_to_token(tokenizer.eot_id),
             'bos_token': tokenizer.hf.id_to_token(tokenizer.bos_id)}
    if tokenizer.unk_id is not None:
        words['unk_token'] = tokenizer.hf.id_to_token(tokenizer.unk_id)
    generation = {'do_sample': True, 'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eot_id}
    if tokenizer.banned_ids:
        generation['suppress_tokens'] = tokenizer.banned_ids
    with files.together(folder) as beside:
        for name, content in (('config', config), ('tokenizer_config', words), ('generation_config', generation)):
            with files.atomic(os.path.join(beside if name == 'config' else folder, name + '.json')) as f:
                json.dump(content, f, indent=2, ensure_ascii=False)
        tokenizer.save(os.path.join(beside, 'tokenizer.json'))
        save_weights(os.path.join(beside, 'model.safetensors'), model, state)


def save_weights(path, model, state=None):
    """Write model.safetensors in transformers' layout, float32; a model without biases gets zero biases."""
    weights = {}
    for name, w in (state or model.state_dict()).items():
        if name == 'lm_head.weight' and model.config.tied:
            continue
        w = w.detach().float().cpu()
        weights[name] = w.t().contiguous() if name.endswith(TRANSPOSED) else w.contiguous()
        if not model.config.bias and name.endswith('.weight') and name.startswith('transformer.') and \
                not name.endswith(('wte.weight', 'wpe.weight')):
            weights[name[:-6] + 'bias'] = torch.zeros(weights[name].shape[-1])
    beside = path + '.tmp'
    try:
        save_file(weights, beside, metadata={'format': 'pt'})
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # safetensors would keep it from all others on this machine
        with open(beside, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(beside, path)
    except SafetensorError as error:  # a full disk, most often
        raise OSError(f'{path} could not be written ({error}); the file that stood there is untouched') from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def save_state(folder, state):
    """Write train_state.pt, what resuming needs: a dict of tensors, numbers and texts. Ruined weights do not replace good ones."""
    path = os.path.join(folder, 'train_state.pt')
    if not all(w.isfinite().all() for w in state.get('model', {}).values()):
        raise SystemExit(f'Step {state["step"]}: some weights are no longer finite. Training stops; what {folder} holds is intact. '
                         'A lower learning_rate or more warmup_iters may help.')
    try:
        with files.atomic(path, 'wb') as f:
            torch.save(state, f)
    except RuntimeError as error:  # torch's writer reports a full disk so
        raise OSError(f'{path} could not be written ({error}); the file that stood there is untouched') from error


def load_state(folder):
    """What save_state wrote; SystemExit with one line where it is missing or damaged."""
    path = os.path.join(folder, 'train_state.pt')
    if not os.path.exists(path):
        raise SystemExit(f'{path} does not exist: there is no run to resume. Train with --init_from=scratch.')
    return _load_pt(path)


def _load_pt(path):
    try:
        with open(path, 'rb') as f:
            if f.read(2) == b'PK':  # torch does not look at the checksums of the zip file it writes
                with zipfile.ZipFile(f) as z:
                    if z.testzip():
                        raise ValueError('a checksum differs')
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise SystemExit(f'{path} holds more than tensors and plain values, and is not opened: it could run code.') from error
    except FileNotFoundError:
        raise
    except Exception as error:  # of zipfile, pickle and torch, each of its own kind
        raise SystemExit(f'{path} is damaged or cut off ({type(error).__name__}).') from error


# --- loading ----------------------------------------------------------------------------------------------------------

def load_model(name, device='cpu', dtype=torch.float32, generating=False, **overrides):
    """
    (GPT in eval mode, Tokenizer) of a model folder or a hub id. `overrides` replace fields of GPTConfig: dropout,
    attn_dropout, or a smaller block_size. With `generating` the model is prepared for that alone (kernels.for_generating), and
    dtype may be torch.int8. SystemExit with one line on anything that is missing, damaged or no GPT-2.
    """
    folder = folder_of(name)
    path, old = os.path.join(folder, 'config.json'), os.path.join(folder, 'ckpt.pt')
    if not os.path.exists(path) and not os.path.exists(old):
        raise SystemExit(f'{folder} holds no model (no config.json).')
    try:
        if os.path.exists(path):
            with open(path, encoding='utf-8') as f:
                config = gpt_config(json.load(f), path)
            files.check_together(folder)
            tokenizer, weights = load_tokenizer(folder), read_weights(folder)
        else:
            saved = _load_pt(old)
            tokenizer = nanogpt.tokenizer_of(folder, saved, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data'))
            weights, config = nanogpt.read(saved, tokenizer)
        model = model_from(weights, config, folder, **overrides)
        if tokenizer.vocab_size > config.vocab_size:
            raise SystemExit(f'{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {config.vocab_size:,} rows.')
        if os.path.exists(os.path.join(folder, 'vocab.txt')):
            vocabulary.seat(model, tokenizer)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        first = (str(error).splitlines() or [''])[0]
        raise SystemExit(f'{folder} is damaged, or no GPT-2: {type(error).__name__}: {first}') from error
    tokenizer.banned_ids += range(tokenizer.vocab_size, config.vocab_size)  # padding rows stand for nothing
    model = model.to(device)
    return (for_generating(model, dtype) if generating else model.to(dtype)).eval(), tokenizer


def gpt_config(c, path):
    """A GPTConfig from the dict in config.json. Raises ValueError, by name, for what this GPT-2 cannot represent."""
    if not isinstance(c, dict) or c.get('model_type') != 'gpt2':
        raise ValueError(f'{path}: model_type is {c.get("model_type") if isinstance(c, dict) else c!r}, not gpt2')
    if c['n_head'] < 1 or c['n_embd'] % c['n_head']:
        raise ValueError(f'{path}: n_embd {c["n_embd"]} is no multiple of n_head {c["n_head"]}')
    for key, allowed in (('activation_function', ('gelu_new', 'gelu_pytorch_tanh')), ('n_inner', (None, 4 * c['n_embd'])),
                         ('layer_norm_epsilon', (1e-5,)), ('scale_attn_weights', (True,)), ('add_cross_attention', (False,)),
                         ('scale_attn_by_inverse_layer_idx', (False,))):
        if c.get(key, allowed[0]) not in allowed:
            raise ValueError(f'{path}: {key} = {c[key]!r}; this model knows {" or ".join(map(str, allowed))} only')
    return GPTConfig(block_size=c.get('n_positions', 1024), vocab_size=c['vocab_size'], n_layer=c['n_layer'],
                     n_head=c['n_head'], n_embd=c['n_embd'], dropout=c.get('resid_pdrop', 0.1),
                     attn_dropout=c.get('attn_pdrop', 0.0), bias=c.get('bias', True), tied=c.get('tie_word_embeddings', True))


def read_weights(folder):
    """{name: tensor} of model.safetensors or pytorch_model.bin, whole or in shards, under the names this model uses."""
    for whole, index in (('model.safetensors', 'model.safetensors.index.json'),
                         ('pytorch_model.bin', 'pytorch_model.bin.index.json')):
        names = [whole] if os.path.exists(os.path.join(folder, whole)) else []
        if not names and os.path.exists(os.path.join(folder, index)):
            with open(os.path.join(folder, index), encoding='utf-8') as f:
                names = sorted(set(json.load(f)['weight_map'].values()))
        weights = {}
        for name in names:
            if os.path.basename(name) != name:
                raise ValueError(f'{index} points outside the folder: {name!r}')
            path = os.path.join(folder, name)
            weights.update(load_file(path) if name.endswith('.safetensors') else _load_pt(path))
        if weights:
            break
    else:
        raise ValueError('neither model.safetensors nor pytorch_model.bin is there')
    named = {k if k.startswith(('transformer.', 'lm_head.')) else 'transformer.' + k: w for k, w in weights.items()}
    return {k: w.t() if k.endswith(TRANSPOSED) else w for k, w in named.items()
            if not k.endswith(('.attn.bias', '.attn.masked_bias'))}  # old files store the causal mask


def model_from(weights, config, folder, **overrides):
    """A GPT with these weights (Linear layout). Raises ValueError where they do not fit."""
    if not config.bias:
        biases = {k: w for k, w in weights.items() if k.endswith('.bias')}
        if any(w.any() for w in biases.values()):
            raise ValueError('config.json says bias is false, yet some bias is not zero')
        weights = {k: w for k, w in weights.items() if k not in biases}
    if f'transformer.h.{config.n_layer - 1}.ln_1.weight' not in weights:  # before a billion layers are made
        raise ValueError(f'config.json says {config.n_layer} layers, the weights have others')
    output, table = weights.get('lm_head.weight'), weights['transformer.wte.weight']
    if config.tied and output is not None and not torch.equal(output, table):
        raise ValueError('the config ties input and output embedding, the weights differ')
    if config.tied:
        weights['lm_head.weight'] = table
    if (asked := overrides.get('block_size', config.block_size)) > config.block_size:
        raise SystemExit(f'{folder} has a context of {config.block_size} tokens; block_size={asked} is more.')
    if len(weights['transformer.wpe.weight']) != config.block_size:
        raise ValueError(f'the weights know {len(weights["transformer.wpe.weight"])} positions, the config {config.block_size}')
    weights['transformer.wpe.weight'] = weights['transformer.wpe.weight'][:asked]
    for key, value in overrides.items():
        setattr(config, key, value)
    with torch.device('meta'):  # no time is lost on random weights
        model = GPT(config)
    model.to_empty(device='cpu')
    if config.tied:  # to_empty parts what was tied
        model.lm_head.weight = model.transformer.wte.weight
    model.load_state_dict({k: w.float() for k, w in weights.items()})
    return model


def load_tokenizer(folder):
    """The Tokenizer of a model folder: its tokenizer.json, or one converted from vocab.txt, or vocab.json and merges.txt."""
    at = {n: os.path.join(folder, n) for n in ('tokenizer.json', 'vocab.txt', 'vocab.json', 'merges.txt')}
    if os.path.exists(at['vocab.txt']):
        return tokenizers.from_wordpiece(at['vocab.txt'])
    if os.path.exists(at['tokenizer.json']):
        return tokenizers.load(at['tokenizer.json'])
    if os.path.exists(at['vocab.json']) and os.path.exists(at['merges.txt']):
        return tokenizers.from_gpt2(at['vocab.json'], at['merges.txt'])
    raise ValueError('no tokenizer.json, vocab.txt or vocab.json is there')


def folder_of(name, weights=True):
    """
    The local folder of a model: `name` itself, or the cache of what the Hugging Face hub has under that name, downloaded
    where it is not there yet (without `weights`, its config and tokenizer alone). SystemExit where there is neither.
    """
    if os.path.isdir(name):
        return name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HfHubHTTPError, LocalEntryNotFoundError
    if name.startswith(('.', '/', '~', 'out-')) or name.count('/') > 1:
        raise SystemExit(f'{name}: no such model folder.')
    wanted = ['config.json', 'vocab.*', 'merges.txt', 'tokenizer.json']
    try:
        folder = snapshot_download(name, allow_patterns=wanted + ['model*.safetensors*'] * weights)
        if weights and not any(f.endswith('.safetensors') for f in os.listdir(folder)):
            snapshot_download(name, allow_patterns=['pytorch_model*.bin*'])
        return folder
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise SystemExit(f'{name}: no such folder here, and the Hugging Face hub did not give it: '
                         f'{str(error).splitlines()[0]}') from error
