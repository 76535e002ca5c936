"""
GPT-2, no more and no less: learned positions, LayerNorm before each block, tanh-approximated GELU, input and output
embedding one and the same weight. So one class serves models trained from scratch and pretrained ones, and every
checkpoint runs wherever a GPT-2 runs. Logits equal those of transformers' GPT2LMHeadModel on the same weights.

Radford et al. 2019, Language Models are Unsupervised Multitask Learners; layout after github.com/karpathy/nanoGPT.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernels import LinearCrossEntropy, one_query, plain_attention


@dataclass
class GPTConfig:
    block_size: int = 1024  # longest context, tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # on embeddings, attention and MLP outputs
    attn_dropout: float = 0.0  # on attention weights; above 0 it forbids the fast attention kernels
    bias: bool = True  # biases in Linear and LayerNorm; without them the model folder stores zeros
    tied: bool = True  # input and output embedding are one Parameter; False only for foreign untied checkpoints


class KVCache:
    """
    Keys and values of the tokens seen so far, for up to `size` of them, one pair of tensors (B, n_head, size, head_size)
    a layer. Prompts of different lengths stand right-aligned; `pads` (B,) counts the empty places at each row's left.
    """

    def __init__(self, config, pads, size, device, dtype):
        shape = (len(pads), config.n_head, size, config.n_embd // config.n_head)
        self.layers = [(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))
                       for _ in range(config.n_layer)]
        self.pads, self.padded, self.length, self.size = pads.to(device), bool(pads.any()), 0, size

    def positions(self, T):
        """Position numbers of the next T tokens, (B, T): each row counts from its own first token; empty places get 0."""
        return (torch.arange(self.length, self.length + T, device=self.pads.device) - self.pads[:, None]).clamp(min=0)

    def mask(self, T):
        """
        Which places the next T tokens may look at, bool (B, 1, T, length + T): nothing later, no empty place. None where
        plain causal attention says the same, so that the fast kernels apply.
        """
        if not self.padded and (T == 1 or self.length == 0):
            return None
        places = torch.arange(self.length + T, device=self.pads.device)
        own = places[self.length:, None]  # (T, 1): the places of the next tokens themselves
        # an empty place looks at itself, so that its softmax has a term; nobody looks at it
        return (((places <= own) & (places >= self.pads[:, None, None])) | (places == own)).unsqueeze(1)


class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, size, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.attn_dropout, self.dropout = config.n_head, config.attn_dropout, nn.Dropout(config.dropout)

    def forward(self, x, layer_cache=None, start=0, mask=None):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for y in self.c_attn(x).split(C, dim=2))
        if layer_cache is not None:  # (B, n_head, T, head_size): store the new keys and values, look at all so far
            keys, values = layer_cache
            keys[:, :, start:start + T], values[:, :, start:start + T] = k, v
            k, v = keys[:, :, :start + T], values[:, :, :start + T]
        dropout_p = self.attn_dropout if self.training else 0.0
        if x.device.type == 'cpu' and q.dtype == torch.bfloat16 and T > 1 and mask is None and not dropout_p:
            y = plain_attention(q, k, v)
        elif T == 1 and x.device.type == 'cpu' and not torch.is_grad_enabled():
            y = one_query(q, k, v, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, dropout_p=dropout_p)
        return self.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate='tanh')))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(config.n_embd, config.bias), SelfAttention(config)
        self.ln_2, self.mlp = LayerNorm(config.n_embd, config.bias), MLP(config)

    def forward(self, x, layer_cache=None, start=0, mask=None):
        x = x + self.attn(self.ln_1(x), layer_cache, start, mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0, f'n_embd {config.n_embd} is no multiple of n_head {config.n_head}'
        self.config = config
        self.gradient_checkpointing = False  # recompute each block in the backward pass: less memory, a third slower
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=LayerNorm(config.n_embd, config.bias)))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.transformer.wte.weight
        for name, p in self.named_parameters():  # GPT-2's initialisation
            if name.endswith('c_proj.weight'):  # 2 * n_layer of them add into the residual stream
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def forward(self, idx, targets=None, cache=None, last_only=False, reduction='mean'):
        """
        idx: ids (B, T). Returns logits (B, T, vocab_size), or (B, 1, vocab_size) with `last_only`; with `targets`
        (B, T) the cross entropy in nats instead, a scalar or, with reduction 'none' under no_grad, (B * T,); targets of
        -100 do not count. With a KVCache, idx are the next T tokens, T <= cache.size - cache.length.
        """
        B, T = idx.shape
        start, mask, position = 0, None, torch.arange(T, device=idx.device)
        if cache is not None:
            assert cache.length + T <= cache.size, f'{cache.length} + {T} tokens in a cache of {cache.size}'
            start, mask, position = cache.length, cache.mask(T), cache.positions(T)
        assert start + T <= self.config.block_size, f'{start + T} tokens in a block of {self.config.block_size}'
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(position))  # (B, T, C)
        for i, block in enumerate(self.transformer.h):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache and cache.layers[i], start, mask)
        if cache is not None:
            cache.length += T
        x = self.transformer.ln_f(x[:, -1:] if last_only else x)
        if targets is None:
            return self.lm_head(x)
        assert reduction == 'mean' or not torch.is_grad_enabled(), f"reduction '{reduction}' is for scoring, under no_grad"
        return LinearCrossEntropy.apply(x.view(B * T, -1), self.lm_head.weight, targets.reshape(-1), reduction == 'mean',
                                        torch.is_grad_enabled())

    def count_parameters(self):
        """The number of weights, a tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self):
        """Floating-point operations a token costs in training, forward and backward (PaLM, arXiv 2204.02311, app. B)."""
        c = self.config
        return 6 * (self.count_parameters() - self.transformer.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * c.block_size
