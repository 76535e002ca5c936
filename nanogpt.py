"""
Opens a folder that nanoGPT or the predecessor wrote: ckpt.pt (weights) and meta.pkl (its character tokenizer).

Both are pickles, and a pickle can run code. ckpt.pt is loaded with weights_only=True; meta.pkl by an unpickler that
admits dicts, strings and numbers alone.
"""
import os
import pickle

import torch

import tokenizer as tokenizers
from model import GPTConfig


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):  # called for anything that is no dict, list, str, int ...
        raise pickle.UnpicklingError(f'it asks for {module}.{name}')


def read(checkpoint, tokenizer):
    """
    (weights, GPTConfig) of the dict in a ckpt.pt, under the names this project's model uses. Input and output
    embedding that differ (the predecessor's word fine-tuning stored such) stay apart: tied is False then. The rows are
    made the tokenizer's: padding rows go; end of text and <unk>, which nanoGPT's character models do not have, start
    as the mean of all rows.
    """
    args, weights = checkpoint['model_args'], checkpoint['model']
    weights = {k.removeprefix('_orig_mod.'): w for k, w in weights.items()}  # torch.compile's prefix
    weights = {k: w for k, w in weights.items() if not k.endswith(('.attn.bias', '.attn.masked_bias'))}  # causal masks
    table, output = weights['transformer.wte.weight'], weights.get('lm_head.weight')
    tied = output is None or torch.equal(output, table)
    for name in ('transformer.wte.weight', 'lm_head.weight'):
        if name in weights:
            rows = weights[name][:tokenizer.vocab_size]
            weights[name] = torch.cat([rows, rows.mean(0, keepdim=True).expand(tokenizer.vocab_size - len(rows), -1)])
    return weights, GPTConfig(block_size=args['block_size'], vocab_size=tokenizer.vocab_size, n_layer=args['n_layer'],
                              n_head=args['n_head'], n_embd=args['n_embd'], dropout=args.get('dropout', 0.0),
                              bias=args.get('bias', True), tied=tied)


def tokenizer_of(folder, checkpoint, data_dir):
    """
    The Tokenizer of such a folder: its tokenizer.json, its meta.pkl, or the meta.pkl of the dataset it was trained on;
    for GPT-2's vocabulary (50,257, or nanoGPT's padded 50,304) tiktoken's. Raises ValueError where there is none.
    """
    dataset = str(checkpoint.get('config', {}).get('dataset', ''))
    places = [folder, os.path.join(data_dir, os.path.basename(dataset))]
    if os.path.exists(os.path.join(folder, 'tokenizer.json')):
        return tokenizers.load(os.path.join(folder, 'tokenizer.json'))
    for path in (os.path.join(place, 'meta.pkl') for place in places):
        if os.path.exists(path):
            with open(path, 'rb') as f:
                try:
                    meta = _PlainUnpickler(f).load()
                except Exception as error:  # a damaged pickle may raise any
                    raise ValueError(f'{path} is not opened: {error or type(error).__name__}') from error
            return tokenizers.from_characters(meta['stoi'])
    if checkpoint['model_args']['vocab_size'] in (50257, 50304):
        import tiktoken
        return tokenizers.from_tiktoken(tiktoken.get_encoding('gpt2'))
    raise ValueError(f'ckpt.pt says nothing of its characters: put the meta.pkl of its dataset ({dataset}) beside it')
