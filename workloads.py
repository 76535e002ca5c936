"""
The work that bench.py measures, each piece in nanoGPT's way and in ours. Every function runs in a process of its own, takes a
Size and `ours`, True or False, and returns a dict: rate (in `unit`, higher is better) and, where it makes sense, the
floating-point operations or the bytes read from memory a second that this comes to.

nanoGPT's way, after its description: float32 on a CPU, bfloat16 autocast and torch.compile on a GPU; attention dropout; AdamW
unfused on a CPU; all logits at once; validation on 200 random batches of either split; one prompt at a time, and the whole
context again for every token; text encoded in one call. Imports of torch stand in the functions: a process pays for its own.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Size:
    device: str  # cpu or cuda
    layers: int  # of the character model, with 8 heads
    width: int
    vocabulary: int
    characters: int  # of text to prepare
    seconds: float  # that a measurement takes, or more


def timed(size, work, share=1.0):
    """Median seconds of work(), repeated for this share of size.seconds and at least twice, after a first call that is not counted."""
    import torch
    wait = torch.cuda.synchronize if size.device == 'cuda' else lambda: None
    work(), wait()
    times = []
    while len(times) < 2 or sum(times) < share * size.seconds:
        start = time.perf_counter()
        work(), wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def number_type(size, ours):
    """The torch.dtype of matrix products."""
    import machine
    import torch
    return machine.pick_dtype('auto', size.device) if ours or size.device == 'cuda' else torch.float32


def character_model(size, block, dropout=0.0, attn_dropout=0.0):
    import torch
    from model import GPT, GPTConfig
    torch.manual_seed(1)
    return GPT(GPTConfig(block, size.vocabulary, size.layers, 8, size.width, dropout, attn_dropout, False)).to(size.device)


def ceiling(size, ours):
    """What this machine can do: its own matrix products in the number type of this way, and reading memory."""
    import torch
    n = 8192 if size.device == 'cuda' else 1024
    a, b = (torch.randn(n, n, device=size.device).to(number_type(size, ours)) for _ in range(2))
    large = torch.ones(1 << 28 if size.device == 'cuda' else 1 << 26, device=size.device)
    return {'rate': 2 * n ** 3 / timed(size, lambda: a @ b, 0.5), 'unit': 'FLOP/s',
            'bandwidth': large.numel() * 4 / timed(size, lambda: large.sum(), 0.5)}


# --- training ---------------------------------------------------------------------------------------------------------

def training(size, ours, block, dropout, micro):
    """
    Training tokens/s in steps of 64 sequences, accumulated in micro-batches; end_to_end: the same with the time of one
    validation after every 250 steps, on a split of 864,000 tokens.
    """
    import inference
    import machine
    import optim
    import torch
    from torch.nn import functional as F
    if ours:
        machine.keep_freed_memory()
    model = character_model(size, block, dropout, 0.0 if ours else dropout)
    number = number_type(size, ours)
    autocast = torch.autocast(size.device, dtype=number, enabled=number != torch.float32)
    optimizers = (optim.optimizers_for(model, 'adamw') if ours else
                  [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=size.device == 'cuda')])
    ids = torch.randint(size.vocabulary, (micro, block + 1), device=size.device)

    def plain(x, y):  # all logits at once, and nanoGPT compiles them with the model
        return F.cross_entropy(model(x).view(-1, size.vocabulary), y.reshape(-1))
    call = model if ours else plain
    call = torch.compile(call) if size.device == 'cuda' else call

    def loss():
        with autocast:
            return call(ids[:, :-1], ids[:, 1:])

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()

    step = 64 / micro * timed(size, lambda: loss().backward()) + timed(size, update, 0.25)
    model.eval()
    with torch.no_grad(), autocast:
        if ours:  # one exact pass
            text = [ids.flatten().cpu().numpy()]
            evaluation = 864_000 / len(text[0]) * timed(size, lambda: inference.score(model, text, batch_size=max(1, 16384 // block)), 0.5)
        else:
            evaluation = 400 * 64 / micro * timed(size, loss, 0.5)
    return {'rate': 64 * block / step, 'unit': 'tokens/s', 'end_to_end': 64 * block * 250 / (250 * step + evaluation),
            'flops': model.flops_per_token() * 64 * block / step}


def fine_tuning(size, ours, optimizer='adamw8'):
    """Training tokens/s of the 1.5 B GPT-2, random weights, one sequence of 1,024 tokens a micro-batch, 32 of them a step."""
    import optim
    import torch
    from model import GPT, GPTConfig
    with torch.device(size.device):
        model = GPT(GPTConfig(1024, 21128, 48, 25, 1600))
    model.gradient_checkpointing = True  # nanoGPT has none, and would not fit; the predecessor's 37 GB tell
    model = model.to(torch.bfloat16) if ours else model
    optimizers = (optim.optimizers_for(model, optimizer, 5e-5) if ours else
                  [torch.optim.AdamW(model.parameters(), lr=5e-5, fused=size.device == 'cuda')])
    call = torch.compile(model) if size.device == 'cuda' else model
    ids = torch.randint(21128, (1, 1025), device=size.device)

    def micro():
        with torch.autocast(size.device, dtype=torch.bfloat16, enabled=not ours):
            call(ids[:, :-1], ids[:, 1:]).backward()

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
    rate = 32 * 1024 / (32 * timed(size, micro) + timed(size, update, 0.5))
    return {'rate': rate, 'unit': 'tokens/s', 'flops': model.flops_per_token() * rate}


# --- using a model ----------------------------------------------------------------------------------------------------

def generating(size, ours, prompts, tokens, int8=False):
    """Generated tokens/s for so many prompts of ten tokens, the model loaded; ours with int8 weights, if so."""
    import inference
    import torch
    from kernels import for_generating
    model = character_model(size, 1024).to(number_type(size, ours)).eval()
    read = (model.count_parameters() - model.transformer.wpe.weight.numel()) * (1 if ours and int8 else model.lm_head.weight.element_size())
    if ours:
        model = for_generating(model, torch.int8 if int8 else number_type(size, ours))
    text = torch.randint(size.vocabulary, (prompts, 10), generator=torch.Generator().manual_seed(2)).tolist()

    @torch.no_grad()
    def one_by_one():
        for ids in text:
            x = torch.tensor([ids], device=size.device)
            for _ in range(tokens):
                logits = model(x[:, -1024:], last_only=True)[:, -1].float() / 0.8
                logits[logits < logits.topk(200).values[:, -1:]] = -torch.inf
                x = torch.cat([x, torch.multinomial(logits.softmax(-1), 1)], dim=1)

    def together():
        inference.generate(model, text, tokens, generator=torch.Generator(size.device).manual_seed(1), temperature=0.8, top_k=200)
    seconds = timed(size, together if ours else one_by_one, 0.75)
    steps = tokens * (1 if ours else prompts)  # each reads all weights once
    return {'rate': prompts * tokens / seconds, 'unit': 'tokens/s', 'bytes': steps / seconds * read}


def first_text(size, ours):
    """1 / seconds from the start of a process to its first new text of 200 tokens; nanoGPT prints when all are there."""
    import checkpoint
    import tokenizer
    import torch
    with tempfile.TemporaryDirectory() as folder:
        model = character_model(size, 1024)
        letters = tokenizer.build_characters([''.join(map(chr, range(0x4e00, 0x4e00 + size.vocabulary - 3)))])
        checkpoint.save_model(folder, model, letters)
        torch.save({'model': model.state_dict()}, os.path.join(folder, 'ckpt.pt'))
        command = ['completion.py', f'--out_dir={folder}', '--start=一丁', '--stream', '--max_new_tokens=200', f'--device={size.device}']
        if not ours:
            command = ['-c', f'import workloads; workloads.plain_completion(workloads.{size}, {folder!r})']
        times = []
        for _ in range(3):
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, *command], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for length in (len('一丁'.encode()), 1):  # the prompt; the first byte that is new
                assert os.read(process.stdout.fileno(), length), command
            times.append(time.perf_counter() - began)
            process.communicate()
            assert process.returncode == 0, command
    return {'rate': 1 / statistics.median(times), 'unit': '1/s'}


def plain_completion(size, folder):
    """A program like nanoGPT's sample.py: read the weights, make 200 tokens without a cache, print them."""
    import torch
    model = character_model(size, 1024).eval()
    model.load_state_dict(torch.load(os.path.join(folder, 'ckpt.pt'), weights_only=True)['model'])
    x = torch.tensor([[2, 3]], device=size.device)
    with torch.no_grad():
        for _ in range(200):
            x = torch.cat([x, torch.multinomial(model(x, last_only=True)[:, -1].softmax(-1), 1)], dim=1)
    print(''.join(chr(0x4e00 + i - 2) for i in x[0].tolist()))


def perplexity(size, ours):
    """Scored tokens/s of a long text in windows of 1,024, without overlap."""
    import inference
    import machine
    import numpy as np
    import torch
    if ours:
        machine.keep_freed_memory()
    model, number = character_model(size, 1024).eval(), number_type(size, ours)
    ids = np.random.default_rng(1).integers(size.vocabulary, size=(180_000 if size.device == 'cuda' else 8 * 1024) + 1)

    @torch.no_grad()
    def one_by_one():
        for i in range(0, len(ids) - 1, 1024):
            x = torch.tensor(ids[i:i + 1025], device=size.device)[None]
            torch.nn.functional.cross_entropy(model(x[:, :-1])[0], x[0, 1:]).item()
    with torch.autocast(size.device, dtype=number, enabled=number != torch.float32):
        seconds = timed(size, (lambda: inference.score(model, [ids], batch_size=8)) if ours else one_by_one)
    return {'rate': len(ids) / seconds, 'unit': 'tokens/s', 'flops': model.flops_per_token() / 3 * len(ids) / seconds}


# --- preparing --------------------------------------------------------------------------------------------------------

def lyrics(characters):
    """Made-up songs of so many characters in all, with the repeats of real ones: half of the lines stand there before."""
    import numpy as np
    dice = np.random.default_rng(1)
    likely = 1 / np.arange(1, 4001)  # Zipf's law
    letters = dice.choice(np.arange(0x4e00, 0x4e00 + 4000), (20_000, 3), p=likely / likely.sum())
    words = [''.join(map(chr, row[:n])) for row, n in zip(letters, dice.integers(1, 4, 20_000))] + ['la', 'baby', 'oh', ' ', '，'] * 100
    songs, left = [], characters
    while left > 0:
        picks = (len(words) * dice.random((15, 5)) ** 2).astype(int)  # some words are frequent
        lines = [''.join(words[i] for i in row[:n]) for row, n in zip(picks, dice.integers(2, 6, 15))]
        songs.append('\n'.join(lines + [lines[i] for i in dice.integers(15, size=13)]))
        left -= len(songs[-1])
    return songs


def preparing(size, ours, kind):
    """Characters/s from songs in memory to a .bin file."""
    import dataset
    import numpy as np
    import tokenizer
    songs = lyrics(size.characters)
    with tempfile.TemporaryDirectory() as folder:
        if kind == 'characters':
            built = tokenizer.build_characters(songs)
            ids = built.hf.get_vocab()
            encode = lambda text: [ids[c] for c in text]  # noqa: E731
        elif kind == 'words':
            built, trained = tokenizer.build_words(songs[:len(songs) // 10], 30000)
            encode = built.sentencepiece.encode
        else:
            path = os.path.join(folder, 'vocab.txt')
            with open(path, 'w', encoding='utf-8') as f:
                f.write('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[unused1]', '[unused2]', '[unused3]', 'la', 'oh', 'baby',
                                   '，', *map(chr, range(0x4e00, 0x4e00 + 4000))]))
            built = tokenizer.from_wordpiece(path)
            try:  # the tokenizer in plain Python, which transformers 4 calls BertTokenizer
                from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy as Bert
            except ImportError:
                from transformers import BertTokenizer as Bert
            bert = Bert(path)
            encode = lambda text: bert.convert_tokens_to_ids(bert.tokenize(text))  # noqa: E731
            songs = songs if ours else songs[:len(songs) // 50]  # at 0.2 million characters a second, a part tells
        began = time.perf_counter()
        if ours:
            dataset.write(folder, built, songs, songs[:1])
        else:
            np.array(encode('\n\n'.join(songs)), dtype=np.uint16).tofile(os.path.join(folder, 'train.bin'))
        return {'rate': sum(map(len, songs)) / (time.perf_counter() - began), 'unit': 'characters/s'}
