"""
Optimizers and the learning rate: AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaled to AdamW's update size after Moonshot's
arXiv 2502.16982, so that one learning rate serves both.
"""
import math

import torch


def optimizers_for(model, kind='adamw', learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95)):
    """
    A list of torch optimizers that share out the parameters of a GPT: 'adamw' or 'muon'. Matrices and embeddings decay,
    biases and LayerNorms do not. Each group says whether it belongs to the 'body' or, body=False, to the embeddings.
    """
    embeddings = [p for name, p in model.named_parameters() if name.endswith(('wte.weight', 'wpe.weight', 'lm_head.weight'))]
    known = set(map(id, embeddings))
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in known]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{'params': embeddings, 'weight_decay': weight_decay, 'body': False},
              {'params': vectors, 'weight_decay': 0.0, 'body': True}]
    hidden = {'params': matrices, 'weight_decay': weight_decay, 'body': True}
    if kind not in ('adamw', 'muon'):
        raise SystemExit(f'--optimizer={kind}: must be adamw or muon.')
    adamw = torch.optim.AdamW(groups + [hidden] * (kind == 'adamw'), lr=learning_rate, betas=betas,
                              fused=next(model.parameters()).device.type in ('cpu', 'cuda'))
    if kind == 'adamw':
        return [adamw]
    return [adamw, torch.optim.Muon([hidden], lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn='match_rms_adamw')]


def learning_rate_at(step, highest, lowest, warmup, last, decay='cosine'):
    """
    The learning rate of step number `step` (from 0): linear warm-up over `warmup` steps to `highest`, then decay to
    `lowest` at step `last` and after: 'cosine', 'linear', or 'none'.

    >>> [round(learning_rate_at(s, 1.0, 0.1, 2, 6), 2) for s in range(8)]
    [0.33, 0.67, 1.0, 0.87, 0.55, 0.23, 0.1, 0.1]
    """
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, last - warmup))
    left = {'cosine': 0.5 * (1 + math.cos(math.pi * done)), 'linear': 1 - done, 'none': 1.0}[decay]
    return lowest + left * (highest - lowest)
