"""
Optimizers and the learning rate: AdamW for all weights, Muon for the hidden matrices and AdamW for the rest, or AdamW8 for
models that hardly fit the card.

Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaled to AdamW's update size after Moonshot's
arXiv 2502.16982, so that one learning rate serves both.
"""
import math

import torch


class AdamW8(torch.optim.Optimizer):
    """
    AdamW (arXiv 1711.05101) for bfloat16 weights, with 3 bytes of state a weight instead of 8, and no float32 copy:

    - weights and v, the mean squared gradient, are rounded to bfloat16 up or down by chance, so that steps too small for
      their 8 bits are taken now and then instead of never (stochastic rounding, as in arXiv 2010.06192);
    - m, the mean gradient, is kept as m / sqrt(v) in 8 bits. By Cauchy and Schwarz this is never beyond
      (1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2)), so no block needs a scale of its own (needs beta1^2 < beta2).
    """

    def __init__(self, params, lr, betas, weight_decay=0.0, eps=1e-8):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay, eps=eps))

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch has cast all to the weights' type, which holds -127 to 127 exactly
            state['ratio'] = state['ratio'].to(torch.int8)

    @torch.no_grad()
    def step(self):
        dice = None  # the same throws in every process, and after resuming
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state['step'] = 0
                    state['ratio'] = torch.zeros_like(p, dtype=torch.int8)  # m / sqrt(v) in 127ths of its bound
                    state['v'] = torch.zeros_like(p, dtype=torch.bfloat16)
                state['step'] += 1
                dice = dice or torch.Generator(p.device).manual_seed(state['step'])
                flat = (x.view(-1).split(1 << 24) for x in (p, p.grad, state['ratio'], state['v']))
                for part in zip(*flat):  # 16 million weights at a time: what is float32 here is soon gone
                    self._update(*part, state['step'], group, dice)

    def _update(self, p, grad, ratio, v, step, group, dice):
        (beta1, beta2), grad = group['betas'], grad.float()
        bound = (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1 ** 2 / beta2))
        m = ratio.float().mul_(v.float().sqrt_()).mul_(bound / 127).lerp_(grad, 1 - beta1)
        new_v = v.float().lerp_(grad.square_(), 1 - beta2)
        root = new_v.sqrt()
        new_p = p.float().mul_(1 - group['lr'] * group['weight_decay'])
        new_p.addcdiv_(m, (root / math.sqrt(1 - beta2 ** step)).add_(group['eps']), value=-group['lr'] / (1 - beta1 ** step))
        m.div_(root.clamp_(min=1e-30)).mul_(127 / bound)
        ratio.copy_(m.add_(torch.rand(m.shape, generator=dice, device=m.device)).floor_().clamp_(-127, 127))
        v.copy_(rounded(new_v, dice))
        p.copy_(rounded(new_p, dice))


def rounded(x, dice):
    """float32 x in bfloat16, to one of its two neighbours by chance, thrown by a Generator: on average x. Overwrites x."""
    bits = x.view(torch.int32)  # bfloat16 is the upper half of float32
    bits += torch.randint(1 << 16, bits.shape, generator=dice, device=x.device, dtype=torch.int32)
    bits &= -1 << 16
    return x.to(torch.bfloat16)


def optimizers_for(model, kind='adamw', learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95)):
    """
    A list of torch optimizers that share out the parameters of a GPT: 'adamw', 'muon' or 'adamw8'. Matrices and embeddings decay,
    biases and LayerNorms do not. Each group says whether it belongs to the 'body' or, body=False, to the embeddings.
    """
    embeddings = [p for name, p in model.named_parameters() if name.endswith(('wte.weight', 'wpe.weight', 'lm_head.weight'))]
    known = set(map(id, embeddings))
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in known]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{'params': embeddings, 'weight_decay': weight_decay, 'body': False},
              {'params': vectors, 'weight_decay': 0.0, 'body': True}]
    hidden = {'params': matrices, 'weight_decay': weight_decay, 'body': True}
    if kind not in ('adamw', 'muon', 'adamw8'):
        raise SystemExit(f'--optimizer={kind}: must be adamw, muon or adamw8.')
    if kind == 'adamw8':
        return [AdamW8(groups + [hidden], learning_rate, betas)]
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
