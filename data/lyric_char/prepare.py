"""
Prepares the lyrics for the character model: train.bin, val.bin, tokenizer.json and meta.json beside this script.

    python data/lyric_char/prepare.py                      # the three files in data/lyric, or else the embedded songs
    python data/lyric_char/prepare.py --source=my_songs/   # your own: a folder, .txt, .jsonl, .json, .csv, .zip or .tgz
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
import corpus
import dataset
import tokenizer
from configurator import configure

source = ''  # path of your lyrics, or embedded, songci, thuclgpt; '' = what data/lyric holds, else embedded
mirror = ''  # address that replaces https://raw.githubusercontent.com in downloads; '' = none
data_dir = ''  # folder of all datasets; '' = data/ of this project
configure(globals())

splits = corpus.prepare(source, dataset.folder_of('lyric', data_dir), mirror)
characters = tokenizer.build_characters(splits['train'])
print(f'vocabulary: {characters.vocab_size:,} characters')
dataset.write(dataset.folder_of('lyric_char', data_dir), characters, splits['train'], splits['valid'])
