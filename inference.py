"""
What a model is used for, without gradients: score texts, sample continuations. Functions over (model, ids); all
randomness flows from one torch.Generator. Nothing here knows how text becomes ids, but `text_stream`.
"""
import numpy as np
import torch

from model import KVCache


def windows(length, block_size, stride):
    """
    Cuts targets 1 .. length-1 of a sequence into windows of at most block_size tokens: (begin, first, end) means feed
    tokens begin .. end-2 and score targets first .. end-1. Each target is scored once, with at least
    block_size - stride tokens of context where the sequence has them.

    >>> list(windows(10, 4, 2))
    [(0, 1, 5), (2, 5, 7), (4, 7, 9), (5, 9, 10)]
    """
    end = 1
    while end < length:
        first = end
        end = min(length, first + (block_size if first == 1 else stride))
        yield max(0, end - 1 - block_size), first, end


@torch.no_grad()
def score(model, sequences, stride=0, batch_size=16, progress=None):
    """
    Negative log-likelihood in nats of every token but the first (its context) of each sequence of ids; a list of
    float64 arrays (len - 1,). `stride` targets a window (0: block_size, no overlap), so every token counts exactly once.
    `progress`, if given, is called with the number of tokens done.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    jobs = [(s, *w) for s, ids in enumerate(sequences) for w in windows(len(ids), block_size, stride or block_size)]
    jobs.sort(key=lambda job: job[1] - job[3])  # like lengths together, longest first: little padding
    nll = [np.zeros(max(0, len(ids) - 1)) for ids in sequences]
    training = model.training
    model.eval()
    # a batch holds so many tokens, however they are cut: many short songs or few long windows
    at = 0
    while at < len(jobs):
        longest = jobs[at][3] - 1 - jobs[at][1]
        rows = jobs[at:at + max(1, batch_size * block_size // longest)][:8 * batch_size]
        at += len(rows)
        x = torch.zeros(len(rows), longest, dtype=torch.long)
        y = torch.full((len(rows), longest), -100)
        for r, (s, begin, _, end) in enumerate(rows):
            ids = torch.from_numpy(np.asarray(sequences[s][begin:end], dtype=np.int64))
            x[r, :end - 1 - begin], y[r, :end - 1 - begin] = ids[:-1], ids[1:]
        losses = model(x.to(device), y.to(device), reduction='none').view(len(rows), longest).double().cpu().numpy()
        for r, (s, begin, first, end) in enumerate(rows):
            nll[s][first - 1:end - 1] = losses[r, first - 1 - begin:end - 1 - begin]
            if progress:
                progress(end - first)
    model.train(training)
    return nll


def next_tokens(logits, seen, generator, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """
    Draw one token for each row of logits (B, vocab_size): (B,). temperature 0 takes the likeliest. top_k keeps the k
    likeliest (0: all), top_p the likeliest that together reach probability p (arXiv 1904.09751). repetition_penalty
    divides the positive and multiplies the negative logits of ids in `seen` (a list of lists; arXiv 1909.05858).
    """
    if repetition_penalty != 1.0:
        for row, ids in zip(logits, seen):
            ids = torch.tensor(sorted(set(ids)), device=logits.device)
            row[ids] = torch.where(row[ids] > 0, row[ids] / repetition_penalty, row[ids] * repetition_penalty)
    if temperature == 0:
        return logits.argmax(-1)
    logits, ids = logits / temperature, None
    best = min(top_k or logits.size(-1), logits.size(-1))
    if best < logits.size(-1) or top_p < 1:
        logits, ids = logits.topk(best)  # the likeliest first
        p = logits.softmax(-1)
        logits = logits.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)  # all likelier ones reach top_p already
    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


@torch.no_grad()
def stream(model, prompts, max_new_tokens, generator=None, stop_id=None, banned_ids=(), **sampling):
    """
    Continue all prompts (lists of ids, none empty) in one batch, step by step. Yields each step's new ids, a list of
    len(prompts): an int, or None for a row that has ended with stop_id (which is yielded as its last). `sampling` goes
    to next_tokens. Past block_size the older half of the context is forgotten, for learned positions cannot slide.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    model.eval()
    seen, alive, cache = [list(p) for p in prompts], [True] * len(prompts), None
    assert all(seen), 'an empty prompt has nothing to continue: begin with the end-of-text token'
    held = [len(ids) for ids in seen]  # how much of each row the model looks at; a row's cuts depend on no other row
    for step in range(max_new_tokens):
        if cache is None or max(held) > block_size:  # read the context anew
            held = [n if n <= block_size else block_size // 2 for n in held]
            pads = torch.tensor([max(held) - n for n in held])
            x = torch.tensor([[0] * (max(held) - n) + ids[-n:] for ids, n in zip(seen, held)], device=device)
            size = min(block_size, max(held) + max_new_tokens - step)
            cache = KVCache(model.config, pads, size, device, model.transformer.wpe.weight.dtype)
        logits = model(x, cache=cache, last_only=True)[:, -1].float()
        logits[:, list(banned_ids)] = -torch.inf
        x = next_tokens(logits, seen, generator, **sampling)[:, None]  # (B, 1)
        new = []
        for row, token in enumerate(x[:, 0].tolist()):
            new.append(token if alive[row] else None)
            if alive[row]:
                seen[row].append(token)
                alive[row] = token != stop_id
            else:
                seen[row].append(token)  # rows stay side by side; what an ended row computes is thrown away
            held[row] += 1
        yield new
        if not any(alive):
            return


def generate(model, prompts, max_new_tokens, **options):
    """The new ids of each prompt, a list of lists, without the stop token. Options as for `stream`."""
    out = [[] for _ in prompts]
    for new in stream(model, prompts, max_new_tokens, **options):
        for ids, token in zip(out, new):
            if token is not None and token != options.get('stop_id'):
                ids.append(token)
    return out


def text_stream(tokenizer, tokens):
    """Pieces of text from an iterable of ids, each as soon as it is whole: a character of several tokens never splits."""
    ids, done = [], ''
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if len(text) > len(done) and not text.endswith('\ufffd'):
            yield text[len(done):]
            done = text
    if len(tail := tokenizer.decode(ids)) > len(done):
        yield tail[len(done):]
