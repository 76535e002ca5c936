"""
Tiny Shakespeare, character by character: nanoGPT's first dataset.

    python data/shakespeare_char/prepare.py
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
import dataset
import files
import tokenizer
from configurator import configure

mirror = ''  # address that replaces https://raw.githubusercontent.com in the download; '' = none
data_dir = ''  # folder of all datasets; '' = data/ of this project
configure(globals())

folder = dataset.folder_of('shakespeare_char', data_dir)
os.makedirs(folder, exist_ok=True)
path = os.path.join(folder, 'input.txt')
files.download((mirror.rstrip('/') or 'https://raw.githubusercontent.com') +
               '/karpathy/char-rnn/master/data/tinyshakespeare/input.txt', path)
with open(path, encoding='utf-8') as f:
    text = f.read()
train, val = text[:int(.9 * len(text))], text[int(.9 * len(text)):]  # nanoGPT's split
characters = tokenizer.build_characters([train])
dataset.write(folder, characters, [train], [val])
