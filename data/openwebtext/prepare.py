"""
OpenWebText (Gokaslan and Cohen 2019) in GPT-2's BPE, for reproducing GPT-2: 8 M documents, 9 B tokens, 54 GB of cache.

    python data/openwebtext/prepare.py --processes=16     # run again after an interruption: done parts are kept
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
import dataset
import tokenizer
from configurator import configure

name = 'Skylion007/openwebtext'  # a dataset of the Hugging Face hub with a field text, or a local .jsonl file
processes = max(1, (os.cpu_count() or 2) // 2)  # that download and encode
data_dir = ''  # folder of all datasets; '' = data/ of this project
configure(globals())

if __name__ == '__main__':  # the worker processes import this file
    import datasets
    import tiktoken
    tokens = tokenizer.from_tiktoken(tiktoken.get_encoding('gpt2'))
    local = {'path': 'json', 'data_files': name} if os.path.exists(name) else {'path': name}
    whole = datasets.load_dataset(**local, split='train', num_proc=processes)
    parts = whole.train_test_split(test_size=0.0005, seed=2357, shuffle=True)  # nanoGPT's split
    dataset.write_mapped(dataset.folder_of('openwebtext', data_dir), tokens, parts['train'], parts['test'], processes)
