"""
Speed and memory against nanoGPT's way of doing the same work, as ratios, on this machine.

    python bench.py                                                # all workloads, some twenty minutes on two CPU cores
    python bench.py --only=train-256,stream --repeats=5 --json=bench.json
    python bench.py --device=cuda                                  # the GPU's workloads, the 1.5 B fine-tune among them

"nanoGPT" does what nanoGPT and our predecessor do: float32 on a CPU (on a GPU bfloat16 and torch.compile), attention dropout,
unfused AdamW, validation on 400 random batches, generation of one prompt at a time without a cache, text encoded in one
call. "ours" does what the scripts here do. Each measurement is a fresh process, the two ways in turn, A B A B; printed are
medians, the spread, and the share of what this machine's matrix products or memory allow. Nothing passes or fails here.
"""
import json as jsonlib
import os
import statistics
import subprocess
import sys
import tempfile
import time

from configurator import HERE, at_least, configure

only = ''  # workloads, separated by commas; '' = all that fit the device
repeats = 3  # fresh processes for each workload and way
json = ''  # file for all figures; '' = none
threads = 0  # of torch; 0 = as torch chooses
device = 'cpu'  # cpu or cuda
layers = 8  # of the character model; the predecessor's sizes are 8 layers, 512 wide
width = 512
vocabulary = 4210  # characters of the predecessor's corpus, 4,206, and four more
characters = 34_000_000  # in the prepare workloads
way = ''  # nanogpt or ours, with one workload in --only: measure once, here, and print JSON; '' = compare
settings = configure(globals())
at_least(1, settings, 'repeats', 'layers', 'width', 'vocabulary', 'characters')
at_least(0, settings, 'threads')


# --- the work, each in a process of its own: imports stand inside, so that nothing is paid that is not used -----------

def character_model(block, dropout, ours):
    """The character model of `layers` and `width`, on the device."""
    import torch
    from model import GPT, GPTConfig
    torch.manual_seed(1)
    return GPT(GPTConfig(block, vocabulary, layers, 8, width, dropout, 0.0 if ours else dropout, False)).to(device)


def timed(work, seconds=4, least=3):
    """Median seconds of work(), called for `seconds` in all, after a first call that does not count."""
    import torch
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    work(), wait()
    times, began = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        work(), wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def training(ours, block, dropout, micro):
    """
    Training tokens/s with steps of 64 sequences, accumulated in micro-batches; and `end_to_end`: the same with the
    validation after every 250 steps counted, of 864,000 tokens.
    """
    import torch
    from torch.nn import functional as F
    import inference
    import machine
    import optim
    if ours:
        machine.keep_freed_memory()
    model = character_model(block, dropout, ours)
    number = machine.pick_dtype('auto', device) if ours or device == 'cuda' else torch.float32
    autocast = torch.autocast(device, dtype=number, enabled=number != torch.float32)
    optimizers = (optim.optimizers_for(model, 'adamw') if ours else
                  [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device == 'cuda')])
    call = torch.compile(model) if device == 'cuda' else model
    ids = torch.randint(vocabulary, (micro, block + 1), device=device)
    x, y = ids[:, :-1], ids[:, 1:]

    def loss_of():
        with autocast:
            if ours:
                return call(x, y)
            logits = call(x)
            return F.cross_entropy(logits.view(-1, logits.size(-1)), y.reshape(-1))

    def step():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()

    backward = timed(lambda: loss_of().backward())
    step_seconds = 64 / micro * backward + timed(step, 1)
    rate = 64 * block / step_seconds
    with torch.no_grad(), autocast:
        if ours:  # one exact pass
            text = [ids[0].cpu().numpy()] * (2 * micro)
            evaluation = timed(lambda: inference.score(model, text, batch_size=max(1, 16384 // block)), 2, 1) / (2 * micro * block) * 864e3
        else:  # 200 batches of either split
            model.eval()
            evaluation = 400 * 64 / micro * timed(loss_of, 2, 1)
    with_evaluation = 64 * block * 250 / (250 * step_seconds + evaluation)
    gpu = torch.cuda.max_memory_allocated() if device == 'cuda' else 0
    return {'rate': rate, 'unit': 'tokens/s', 'end_to_end': with_evaluation, 'flops': model.flops_per_token() * rate, 'gpu_bytes': gpu}


def generating(ours, prompts, tokens):
    """Generated tokens/s for so many prompts of ten tokens, the model loaded."""
    import torch
    import inference
    import machine
    model = character_model(1024, 0.0, ours).eval()
    text = torch.randint(vocabulary, (prompts, 10), generator=torch.Generator().manual_seed(2)).tolist()
    if ours or device == 'cuda':
        model = model.to(machine.pick_dtype('auto', device))

    @torch.no_grad()
    def without_cache():
        for ids in text:
            x = torch.tensor([ids], device=device)
            for _ in range(tokens):
                logits = model(x[:, -1024:], last_only=True)[:, -1].float() / 0.8
                logits[logits < logits.topk(200).values[:, -1:]] = -torch.inf
                x = torch.cat([x, torch.multinomial(logits.softmax(-1), 1)], dim=1)

    def with_cache():
        inference.generate(model, text, tokens, generator=torch.Generator(device).manual_seed(1), temperature=0.8, top_k=200)
    seconds = timed(with_cache if ours else without_cache, 3, 2)
    steps = tokens if ours else tokens * prompts
    moved = steps / seconds * sum(p.numel() * p.element_size() for p in model.parameters())  # each step reads all weights
    return {'rate': prompts * tokens / seconds, 'unit': 'tokens/s', 'bytes': moved}


def first_text(ours):
    """Seconds from the start of the process to the first new text of 200 tokens: nanoGPT prints when all are there."""
    import torch
    import checkpoint
    import tokenizer
    with tempfile.TemporaryDirectory() as folder:
        letters = tokenizer.build_characters([''.join(map(chr, range(0x4e00, 0x4e00 + vocabulary - 3)))])
        model = character_model(1024, 0.0, ours)
        checkpoint.save_model(folder, model, letters)
        torch.save({'model': model.state_dict()}, os.path.join(folder, 'weights.pt'))
        if ours:
            command = [os.path.join(HERE, 'completion.py'), f'--out_dir={folder}', '--start=一丁', '--stream', '--max_new_tokens=200']
        else:
            command = [os.path.join(HERE, 'bench.py'), '--only=plain-completion', f'--way={folder}', f'--layers={layers}', f'--width={width}',
                       f'--vocabulary={vocabulary}']
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            os.read(run.stdout.fileno(), 6)  # the prompt; what follows is new
            os.read(run.stdout.fileno(), 64)
            times.append(time.perf_counter() - began)
            run.stdout.read()
            assert run.wait() == 0, command
    return {'rate': 1 / statistics.median(times), 'unit': '1/s', 'seconds': statistics.median(times)}


def plain_completion(folder):
    """What nanoGPT's sample.py does: read the weights, write 200 tokens without a cache, then print them."""
    import torch
    model = character_model(1024, 0.0, True).eval()
    model.load_state_dict(torch.load(os.path.join(folder, 'weights.pt'), weights_only=True)['model'])
    x = torch.tensor([[2, 3]])
    with torch.no_grad():
        for _ in range(200):
            x = torch.cat([x, torch.multinomial(model(x, last_only=True)[:, -1].softmax(-1), 1)], dim=1)
    print('一丁', end='', flush=True)
    time.sleep(0.001)
    print(''.join(chr(0x4e00 + i) for i in x[0].tolist()), flush=True)


def perplexity(ours):
    """Scored tokens/s over 180,000 characters cut into windows of 1,024."""
    import numpy as np
    import torch
    import inference
    import machine
    if ours:
        machine.keep_freed_memory()
    model = character_model(1024, 0.0, ours).eval()
    ids = np.random.default_rng(1).integers(vocabulary, size=180_000)
    number = machine.pick_dtype('auto', device) if ours or device == 'cuda' else torch.float32
    count = len(ids) if device == 'cuda' else 8 * 1024 + 1  # of all alike windows, some

    @torch.no_grad()
    def one_by_one():
        for i in range(0, count - 1, 1024):
            x = torch.tensor(ids[i:i + 1025], device=device)[None]
            torch.nn.functional.cross_entropy(model(x[:, :-1])[0], x[0, 1:]).item()
    with torch.autocast(device, dtype=number, enabled=number != torch.float32):
        seconds = timed(lambda: inference.score(model, [ids[:count]], batch_size=8) if ours else one_by_one(), 4, 2)
    return {'rate': count / seconds, 'unit': 'tokens/s', 'flops': model.flops_per_token() / 3 * count / seconds}


def lyrics():
    """Made-up lyrics of so many characters with the repeats of real ones: 46% of the lines stand there before."""
    import numpy as np
    dice = np.random.default_rng(1)
    letters = np.array([chr(c) for c in range(0x4e00, 0x4e00 + 4000)])
    likely = 1 / np.arange(1, 4001)
    wanted, songs = characters, []
    words = [''.join(letters[dice.choice(4000, n, p=likely / likely.sum())]) for n in dice.integers(1, 4, 20000)]
    fresh = [''.join(words[i] for i in row[:n]) for row, n in zip((20000 * dice.random((characters // 16, 7)) ** 2).astype(int),
                                                              dice.integers(2, 7, characters // 16))]
    at = 0
    while wanted > 0:
        own = fresh[at:at + 16]
        at = (at + 16) % len(fresh)
        songs.append('\n'.join(own + [own[i] for i in dice.integers(0, len(own), 14)]))
        wanted -= len(songs[-1])
    return songs


def preparing(ours, kind):
    """Characters/s from songs to ids."""
    import numpy as np
    import tokenizer
    songs = lyrics()
    sample = songs[:len(songs) // 10]
    with tempfile.TemporaryDirectory() as folder:
        if kind == 'characters':
            built = tokenizer.build_characters(songs)
            ids = built.hf.get_vocab()
            plain = lambda: np.array([ids[c] for c in '\n\n'.join(songs)], dtype=np.uint16)  # noqa: E731
        elif kind == 'words':
            import sentencepiece
            built, model = tokenizer.build_words(sample, 30000)
            sp = sentencepiece.SentencePieceProcessor(model_proto=model)
            plain = lambda: np.array(sp.encode('\n\n'.join(songs)), dtype=np.uint16)  # noqa: E731
        else:
            from transformers import BertTokenizer
            path = os.path.join(folder, 'vocab.txt')
            with open(path, 'w', encoding='utf-8') as f:
                f.write('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[unused1]', '[unused2]', '[unused3]',
                                   *map(chr, range(0x4e00, 0x4e00 + 4000))]))
            built, bert = tokenizer.from_wordpiece(path), BertTokenizer(path)
            plain = lambda: np.array(bert('\n\n'.join(songs))['input_ids'], dtype=np.uint16)  # noqa: E731
        began = time.perf_counter()
        if ours:
            import dataset
            dataset.write(folder, built, songs, songs[:1])
        else:
            plain().tofile(os.path.join(folder, 'train.bin'))
        seconds = time.perf_counter() - began
    return {'rate': sum(map(len, songs)) / seconds, 'unit': 'characters/s'}


def ceiling(ours):
    """What this machine can do: GFLOP/s of matrix products in the number type of each way, bytes/s read from memory."""
    import torch
    import machine
    number = machine.pick_dtype('auto', device) if ours or device == 'cuda' else torch.float32
    n = 8192 if device == 'cuda' else 1024
    a, b = (torch.randn(n, n, device=device).to(number) for _ in range(2))
    big = torch.ones((1 << 30) // 4 if device == 'cuda' else 1 << 25, device=device)
    return {'rate': 2 * n ** 3 / timed(lambda: a @ b, 2), 'unit': 'FLOP/s', 'bandwidth': big.numel() * 4 / timed(lambda: big.sum(), 2)}


def fine_tuning(ours):
    """Training tokens/s of the 1.5 B GPT-2 with random weights: one sequence of 1,024 tokens a micro-batch, 32 of them a step."""
    import torch
    import optim
    from model import GPT, GPTConfig
    torch.set_default_device(device)
    model = GPT(GPTConfig(1024, 21128, 48, 25, 1600))
    torch.set_default_device('cpu')
    model.gradient_checkpointing = True
    if ours:
        model = model.to(torch.bfloat16)
    optimizers = (optim.optimizers_for(model, 'adamw8bit', 5e-5) if ours else
                  [torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)])
    call = torch.compile(model)
    ids = torch.randint(21128, (1, 1025), device=device)

    def micro():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=not ours):
            call(ids[:, :-1], ids[:, 1:]).backward()

    def step():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
    rate = 32 * 1024 / (32 * timed(micro) + timed(step, 2))
    return {'rate': rate, 'unit': 'tokens/s', 'flops': model.flops_per_token() * rate, 'gpu_bytes': torch.cuda.max_memory_allocated()}
