"""
Prepares the lyrics for the character model: train.bin, val.bin, tokenizer.json and meta.json beside this script.

    python data/lyric_char/prepare.py                      # the three files in data/lyric, or else the embedded songs
    python data/lyric_char/prepare.py --source=my_songs/   # your own: a folder, .txt, .jsonl, .json, .csv, .zip or .tgz
    python data/lyric_char/prepare.py --source=my_songs/ --vocabulary=out-songci    # to train that model on
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
import checkpoint
import corpus
import dataset
import tokenizer
from configurator import configure

source = ''  # path of your lyrics, or embedded, songci, thuclgpt; '' = what data/lyric holds, else embedded
mirror = ''  # address that replaces https://raw.githubusercontent.com in downloads; '' = none
data_dir = ''  # folder of all datasets; '' = data/ of this project
vocabulary = ''  # folder of a character model whose vocabulary to take; '' = all characters of the training songs
configure(globals())

try:
    characters = checkpoint.load_tokenizer(vocabulary) if vocabulary else None
except (OSError, ValueError) as error:
    raise SystemExit(f'--vocabulary={vocabulary}: {error}') from error
if characters and characters.kind != 'characters':
    raise SystemExit(f'--vocabulary={vocabulary}: holds a model of {characters.kind}, not of characters.')
splits = corpus.prepare(source, dataset.folder_of('lyric', data_dir), mirror)
characters = characters or tokenizer.build_characters(splits['train'])
print(f'vocabulary: {characters.vocab_size:,} characters')
dataset.write(dataset.folder_of('lyric_char', data_dir), characters, splits['train'], splits['valid'])
