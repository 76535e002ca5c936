"""
Prepares the lyrics for the word model: a SentencePiece BPE learned on the training split, then the shards.

    python data/lyric_word/prepare.py                          # the three files in data/lyric, or the embedded songs
    python data/lyric_word/prepare.py --vocab_size=8000
    python data/lyric_word/prepare.py --model=my.model         # an existing SentencePiece model of yours
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
import corpus
import dataset
import files
import tokenizer
from configurator import configure

source = ''  # path of your lyrics, or embedded, songci, thuclgpt; '' = what data/lyric holds, else embedded
mirror = ''  # address that replaces https://raw.githubusercontent.com in downloads; '' = none
data_dir = ''  # folder of all datasets; '' = data/ of this project
vocab_size = 30000  # pieces; fewer where the corpus is too small for so many
model = ''  # an existing SentencePiece .model file; '' = train one
configure(globals())

splits = corpus.prepare(source, dataset.folder_of('lyric', data_dir), mirror)
folder = dataset.folder_of('lyric_word', data_dir)
if model:
    try:
        words = tokenizer.from_sentencepiece(model)
    except ValueError as error:
        raise SystemExit(f'--model: {error}') from error
else:
    words, trained = tokenizer.build_words(splits['train'], vocab_size)
    os.makedirs(folder, exist_ok=True)
    with files.atomic(os.path.join(folder, 'words.model'), 'wb') as f:
        f.write(trained)
print(f'vocabulary: {words.vocab_size:,} pieces')
dataset.write(folder, words, splits['train'], splits['valid'])
