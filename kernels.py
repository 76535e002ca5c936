"""
What makes the model fast without changing what it computes: cross entropy in pieces, attention as plain products, and Linear
layers for generating on a CPU. Each stands in for operations of torch that give the same but for rounding; dev/LOG.md has the
figures.
"""
import torch
from torch import nn
from torch.nn import functional as F


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
