"""What two or more mixers share."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixers.ops.causal_conv import causal_conv
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import exact, wide


def per_head(d_model: int, n_heads: int) -> int:
    """The width of a head. Raises ValueError where the heads do not fill the model."""
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"d_model={d_model} is not divisible by n_heads={n_heads}: change either")
    return d_model // n_heads


def heads(x: Tensor, n: int) -> Tensor:
    """(B, T, n D) -> (B, n, T, D)."""
    return rearrange(x, "b t (h d) -> b h t d", h=n)


def merge(x: Tensor) -> Tensor:
    """(B, n, T, D) -> (B, T, n D)."""
    return rearrange(x, "b h t d -> b t (h d)")


def l2_norm(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in float32 at least: a delta rule whose keys are longer than 1 explodes."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt((wide * wide).sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rope(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions (Su et al., 2021, https://arxiv.org/abs/2104.09864, eq. 34), the two halves of x as pairs.

    x (B, H, T, D), D even; positions (B, T) int64.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    rates = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angles = positions[:, None, :, None].to(wide) * rates
    cos, sin = angles.cos(), angles.sin()
    a, b = x.to(wide).chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def positions(x: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The positions (B, T) int64 of x (B, T, D), and the first one after it (B,), counted from `start` (B,), or 0."""
    start = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device) if start is None else start
    return start.unsqueeze(1) + torch.arange(x.shape[1], device=x.device), start + x.shape[1]


class RMSNorm(nn.RMSNorm):
    """torch's, in its weight's dtype whatever autocast has made of x, and returned in x's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.weight is None else x.to(self.weight.dtype)).to(x.dtype)


class ShortConv(nn.Module):
    """A depthwise causal convolution that carries its last width - 1 inputs: (B, T, D) -> (B, T, D)."""

    def __init__(self, d_model: int, *, width: int, bias: bool):
        super().__init__()
        reach = width**-0.5
        self.weight = nn.Parameter(torch.empty(d_model, width).uniform_(-reach, reach))  # tap l weighs l steps ago
        self.bias = nn.Parameter(torch.empty(d_model).uniform_(-reach, reach)) if bias else None

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = causal_conv(x, self.weight, state)
        return (y if self.bias is None else y + self.bias.to(y.dtype)), state


def step_bias(n: int, low: float = 1e-3, high: float = 1e-1, floor: float = 1e-4) -> Tensor:
    """The b (n,) for which softplus(b) is log-uniform in [low, high] (Gu and Dao, 2023, section 3.6)."""
    dt = torch.exp(torch.rand(n) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


def log_decay(rate: Tensor, step: Tensor, bias: Tensor) -> Tensor:
    """-e^rate softplus(step + bias), in float32 at least."""
    wide = torch.promote_types(step.dtype, torch.float32)
    return -rate.to(wide).exp() * F.softplus(step.to(wide) + bias.to(wide))


def normalised(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    g: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor | None]:
    """Linear attention divided by the sum of its weights, which are positive because q and k are.

    q, k (B, H, T, K) features; v (B, H, T, V); g, a log-decay, and state (B, H, K, V + 1) if causal, mask (B, T) if
    not. The normaliser is one more value, always 1.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    q, k, ones = q.to(wide), k.to(wide), torch.ones_like(v[..., :1], dtype=wide)
    v_one = torch.cat([v.to(wide), ones], -1)
    if causal:
        o, state = linear_attention(q, k, v_one, g, state)
    else:
        k = k if mask is None else k * mask[:, None, :, None]
        o, state = q @ (k.mT @ v_one), None
    return (o[..., :-1] / (o[..., -1:] + eps)).to(v.dtype), state


@exact
def by_chunk(
    q: Tensor, items: tuple[Tensor, ...], W: Any, tail: tuple[Tensor, ...] | None, size: int, step: Callable
) -> tuple[Tensor, tuple[Any, tuple[Tensor, ...]]]:
    """A memory W that is written once per chunk of `size` tokens, counted from the first token ever.

    q (B, ..., T, .) asks; items, the same but for their widths, are written; tail: those of the chunk that is not
    full yet, as returned. step(W, q, *items) gets a chunk's items so far, and the q of its last rows: it gives
    their outputs, and a function that makes the next chunk's W, called when the chunk is full. All in float32 at
    least. Returns o in q's dtype, and W and the tail after the last token.
    """
    if size < 1:
        raise ValueError(f"a chunk of {size} tokens is never full: choose at least 1")
    dtype, asked = q.dtype, q.to(wide(q.dtype))
    items = tuple(x.to(asked.dtype) for x in items)
    before = 0
    if tail is not None:
        before = tail[0].shape[-2]
        items = tuple(torch.cat(pair, -2) for pair in zip(tail, items, strict=True))
    n, out = before + q.shape[-2], []
    for start in range(0, n, size):
        stop = min(start + size, n)
        rows = slice(max(start - before, 0), stop - before)
        o, write = step(W, asked[..., rows, :], *(x[..., start:stop, :] for x in items))
        out.append(o)
        if stop - start == size:
            W = write()
    return torch.cat(out, -2).to(dtype), (W, tuple(x[..., n - n % size :, :] for x in items))
