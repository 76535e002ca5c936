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


def plain_attention(q, k, v, size=256):
    """Causal attention as matrix products, `size` queries at a time and for them only the keys so far; q, k, v and the result
    (B, n_head, T, head_size). On a CPU in bfloat16 faster than torch's fused kernel, forward and backward (8, 8, 512, 64):
    55 ms for 104, (4, 8, 1024, 64): 87 for 138. It holds the weights of attention in memory, which that does not."""
    B, H, T, D = q.shape
    q, k, v = (y.reshape(B * H, T, D) for y in (q, k, v))
    parts = []
    for i in range(0, T, size):
        end = min(T, i + size)
        later = torch.full((end - i, end), -torch.inf, dtype=q.dtype, device=q.device).triu(i + 1)
        weights = torch.baddbmm(later.expand(B * H, -1, -1), q[:, i:end], k[:, :end].transpose(1, 2), alpha=D ** -0.5).softmax(-1)
        parts.append(weights @ v[:, :end])
    return torch.cat(parts, dim=1).view(B, H, T, D)


def one_query(q, k, v, mask):
    """Attention of one token to a cache: q (B, n_head, 1, head_size), k and v (B, n_head, S, head_size), mask None or
    (B, 1, 1, S). On a CPU without matrix products, in half the time of torch's fused kernel."""
    scores = (k * q).sum(-1, dtype=torch.float32) * q.size(-1) ** -0.5  # (B, n_head, S)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, 0], -torch.inf)
    return (scores.softmax(-1).to(v.dtype)[..., None] * v).sum(2, keepdim=True)


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


class LinearCrossEntropy(torch.autograd.Function):
    """
    Cross entropy, in nats, of targets (N,) under the logits x @ weight.T: x (N, C), weight (V, C). The mean, a scalar;
    or, with mean=False and then without gradients, each token's (N,). Targets of -100 do not count.

    The logits are by far the largest tensor of training. Here at most 4 million of them (on a GPU 64) stand in memory: some rows give
    their losses and, at once, their part of the gradients. After Liger Kernel, arXiv 2410.10989.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, mean, differentiate):
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        count, x, w = (targets != -100).sum(), x.to(dtype), weight.to(dtype)
        losses = torch.empty(len(x), device=x.device)
        grad_x, grad_w = (torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)) if differentiate else (None, None)
        rows = max(512, (1 << (22 if kind == 'cpu' else 26)) // len(w))  # that fit a CPU's cache, and fill a GPU
        for i in range(0, len(x), rows):
            part, target = x[i:i + rows], targets[i:i + rows]
            every, logits = torch.arange(len(part), device=x.device), part @ w.T  # (rows, V)
            p = logits.softmax(-1, dtype=torch.float32)
            # log(sum(exp)) from the likeliest token, at half of what log_softmax takes
            total = logits.amax(-1).float() - p.amax(-1).log()
            counts = target != -100
            losses[i:i + rows] = (total - logits[every, target.clamp(min=0)].float()) * counts
            if differentiate:
                p[every, target.clamp(min=0)] -= 1  # now the slope d loss / d logits
                slope = p.to(dtype)
                grad_x[i:i + rows] = slope @ w * counts[:, None]
                grad_w += slope.T @ (part * counts[:, None])
        ctx.save_for_backward(grad_x, grad_w, count)
        return losses.sum() / count if mean else losses

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_w, count = ctx.saved_tensors
        return grad_x * (grad / count), grad_w * (grad / count), None, None, None


class PackedLinear(nn.Module):
    """
    A Linear without gradients whose weights lie as oneDNN reads them: otherwise it rearranges them at every call, which for the few
    rows of generation takes as long as the product. On a CPU alone, for the number types that `packable` names.
    """

    def __init__(self, linear):
        super().__init__()
        self.packed, self.bias = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 8), linear.bias  # made for 8 rows

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, 'none', [], '')


def packable(dtype):
    """Whether PackedLinear works here with weights of this torch.dtype."""
    if not torch.backends.mkldnn.is_available():  # torch on a Mac: the operations below do not exist
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Int8Linear(nn.Module):
    """
    A Linear without gradients whose weights are 8 bits, with a scale for each output: half of bfloat16's memory to read, which
    is what a CPU spends its time on when it generates. On a CPU alone.
    """

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1).clamp(min=1e-12) / 127).bfloat16()  # (out,)
        self.register_buffer('weight', (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer('scale', scale)
        self.bias = linear.bias

    def forward(self, x):
        if x.numel() > 16 * x.size(-1) or x.size(-1) % 16:  # a whole prompt; or a width that torch's kernel would read beyond
            return F.linear(x, self.weight.to(x.dtype) * self.scale[:, None], self.bias)
        y = torch._weight_int8pack_mm(x.reshape(-1, x.size(-1)), self.weight, self.scale).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def for_generating(model, dtype):
    """
    The model in this torch.dtype, without gradients, its Linear layers on a CPU replaced by ones that are faster with the few rows
    of generation: PackedLinear, or for torch.int8 Int8Linear with all else in bfloat16. Such a model gives logits, no losses.
    """
    model = model.to(torch.bfloat16 if dtype == torch.int8 else dtype).requires_grad_(False)
    if model.lm_head.weight.device.type == 'cpu' and (dtype == torch.int8 or packable(dtype)):
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    setattr(parent, name, (Int8Linear if dtype == torch.int8 else PackedLinear)(child))
    return model


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
