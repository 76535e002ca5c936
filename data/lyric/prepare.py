"""
Prepares the lyrics in the WordPiece vocabulary of a pretrained Chinese GPT-2, for fine-tuning it.

    python data/lyric/prepare.py                                    # uer/gpt2-xlarge-chinese-cluecorpussmall's
    python data/lyric/prepare.py --pretrained=path/to/folder        # another one's: its folder, hub id or vocab.txt
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
pretrained = 'uer/gpt2-xlarge-chinese-cluecorpussmall'  # whose vocabulary: a hub id, a model folder, or a vocab.txt
configure(globals())

try:
    if os.path.isfile(pretrained):
        pieces = tokenizer.from_wordpiece(pretrained)
    else:
        pieces = checkpoint.load_tokenizer(checkpoint.folder_of(pretrained, weights=False))
except ValueError as error:
    raise SystemExit(f'--pretrained={pretrained}: {error}') from error
splits = corpus.prepare(source, dataset.folder_of('lyric', data_dir), mirror)
print(f'vocabulary: {pieces.vocab_size:,} pieces')
dataset.write(dataset.folder_of('lyric', data_dir), pieces, splits['train'], splits['valid'])
