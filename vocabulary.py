"""
Vocabulary surgery on a pretrained GPT: places for newline and end of text, and a new vocabulary on the old body.

Input and output embedding are one Parameter here and stay one. (The predecessor gave them separate new weights, trained
them apart and tied them again on loading: validation said 3.68, the reloaded model a test perplexity of 10,228.98.)
"""
import torch

from tokenizer import END_OF_TEXT, NEWLINE


@torch.no_grad()
def seat(model, tokenizer):
    """
    Start the rows that tokenizer.from_wordpiece takes from [unusedN]: newline as [SEP], end of text as [CLS], and the
    space as the comma, whose place between two sung phrases it takes. In place, input and output embedding alike.
    """
    at = tokenizer.hf.token_to_id
    for table in {model.transformer.wte.weight, model.lm_head.weight}:
        for new, old in ((NEWLINE, '[SEP]'), (END_OF_TEXT, '[CLS]'), (' ', '，')):
            table[at(new)] = table[at(old)]


@torch.no_grad()
def replace(model, old, new):
    """
    Give `model`, which speaks Tokenizer `old`, the vocabulary of `new`; the body stays. A piece that `old` has too
    keeps its row; any other starts as the mean of the rows of its old pieces, scaled to the old rows' median norm (a
    mean of several rows is short). Newline, end of text and <unk> take over from their like; a piece without text (a
    byte) starts as the mean of all rows. Returns the share of rows that were copied.
    """
    at, copied, sources = old.hf.token_to_id, 0, []
    same = {new.eot_id: old.eot_id, new.hf.token_to_id(NEWLINE): at(NEWLINE), new.unk_id: old.unk_id}
    for i in range(new.vocab_size):
        piece = new.hf.id_to_token(i) or ''
        bare = piece.replace('▁', ' ').strip(' ') or (' ' if '▁' in piece else '')  # the word without its marker
        if same.get(i) is not None:
            ids = [same[i]]
        elif i in new.banned_ids or not bare:
            ids = []
        else:
            ids = [at(bare)] if at(bare) is not None else [t for t in old.encode(bare) if t != old.unk_id]
        sources.append(ids)
        copied += len(ids) == 1
    tied = model.config.tied
    for layer in [model.transformer.wte] + [model.lm_head] * (not tied):
        table = layer.weight
        norm = table.norm(dim=1).median()
        rows = torch.empty(new.vocab_size, table.size(1), dtype=table.dtype, device=table.device)
        for row, ids in zip(rows, sources):
            mean = table[ids].mean(0) if ids else table.mean(0)
            row.copy_(mean if len(ids) == 1 else mean * (norm / mean.norm()))
        layer.weight = torch.nn.Parameter(rows)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    model.transformer.wte.num_embeddings = model.lm_head.out_features = model.config.vocab_size = new.vocab_size
    return copied / new.vocab_size
