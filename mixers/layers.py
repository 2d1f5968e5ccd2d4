"""What two or more mixers share."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixers.ops.causal_conv import causal_conv
from mixers.ops.diagonal import diagonal
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import exact, wide


def per_head(d_model: int, n_heads: int) -> int:
    """The width of a head. Raises ValueError where the heads do not fill the model."""
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(f"d_model={d_model} is not divisible by n_heads={n_heads}: change either")
    return d_model // n_heads


def at_most(mixer: nn.Module, steps: int) -> None:
    """Raises ValueError where a mixer of fixed length, its `max_length`, is given more steps."""
    if steps > int(mixer.max_length):
        raise ValueError(
            f"{type(mixer).__name__} was built for max_length={mixer.max_length} and got {steps} steps: "
            "raise task.max_length, or shorten the sequence"
        )


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


class S4DLin(nn.Module):
    """A diagonal state space per channel, S4D-Lin (Gu et al., 2022, https://arxiv.org/abs/2206.11893).

    h_t = e^{dt A} h_{t-1} + x_t,   y_t = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n h_{t,n} + D x_t

    A_n = -1/2 + i pi n at first, with zero-order hold and B = 1; a half of each pair of conjugate states is kept,
    hence 2 Re. (B, T, D) -> (B, T, D).
    """

    dynamics = ("log_dt", "log_A_real", "A_imag")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state} is not even: states come in conjugate pairs, choose an even number")
        half = d_state // 2
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_A_real = nn.Parameter(torch.full((d_model, half), math.log(0.5)))
        self.A_imag = nn.Parameter((math.pi * torch.arange(half)).repeat(d_model, 1))
        self.C = nn.Parameter(torch.randn(d_model, half, 2) * 0.5**0.5)  # complex, of variance 1
        self.D = nn.Parameter(torch.randn(d_model))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dtA = A * self.log_dt.exp().unsqueeze(-1)
        C = torch.view_as_complex(self.C) * (dtA.exp() - 1) / A
        u = x.to(wide(x.dtype))
        y, h = diagonal(u, dtA, 2 * C, state)
        return (y + self.D * u).to(x.dtype), h


def endless_conv(
    x: Tensor, past: Tensor | None, taps: Callable[[int], Tensor], max_length: int, name: str
) -> tuple[Tensor, Tensor]:
    """A causal convolution whose filter is as long as the sequence, so that its state is all inputs up to now.

    x (B, T, D); past (B, t, D), the inputs before x; taps: length -> the filter's first taps (D, length). Returns y
    (B, T, D) and the inputs (B, t + T, D). Raises ValueError beyond max_length, where the filter ends.
    """
    seen = x if past is None else torch.cat([past, x], 1)
    if seen.shape[1] > max_length:
        raise ValueError(
            f"{name} was built for max_length={max_length} and got {seen.shape[1]} steps: raise task.max_length, "
            "or shorten the sequence"
        )
    before = None if past is None else F.pad(past, (0, 0, x.shape[1] - 1, 0))
    return causal_conv(x, taps(seen.shape[1]), before)[0], seen


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
        k = k if mask is None else k.masked_fill(~mask[:, None, :, None], 0)
        o, state = q @ (k.mT @ v_one), None
    return (o[..., :-1] / (o[..., -1:] + eps)).to(v.dtype), state


def log_normalised(
    q: Tensor, k: Tensor, v: Tensor, state: tuple | None, mask: Tensor | None, causal: bool, eps: float = 0.0
) -> tuple[Tensor, tuple | None]:
    """`normalised` for positive features that come as logarithms: e^{q - c} + eps, with c taken out so that nothing
    overflows.

    c cancels in the quotient. Queries take their own maximum. Keys take the largest value so far, and the past is
    rescaled when it grows, which is a decay by e^{c_{t-1} - c_t}: a maximum over the whole sequence would let the
    future in. state (S, c).
    """
    S, largest = (None, None) if state is None else state
    phi_q = (q - q.detach().amax(-1, keepdim=True)).exp() + eps
    if not causal:
        seen = k if mask is None else k.masked_fill(~mask[:, None, :, None], -torch.inf)
        c = seen.detach().amax((-2, -1), keepdim=True).clamp(min=-1e30)  # a row of padding alone has no maximum
        return normalised(phi_q, (seen - c).exp() + eps, v, None, mask, False)[0], None
    own = k.detach().amax(-1, keepdim=True)
    before = torch.full_like(own[:, :, :1], -torch.inf) if largest is None else largest
    c = torch.cat([before, own], 2).cummax(2).values
    phi_k = (k - c[:, :, 1:]).exp() + eps
    o, S = normalised(phi_q, phi_k, v, S, None, True, g=c[:, :, :-1] - c[:, :, 1:])
    return o, (S, c[:, :, -1:])


def running_softmax(logits: Tensor, total: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A softmax over time so far, as a recurrence: with z_t = log sum_{j <= t} e^{l_j} the step's own weight is
    e^{l_t - z_t}, and every earlier one decays by e^{z_{t-1} - z_t}.

    logits (B, H, T, M), total (B, H, 1, M), z of the past. Returns weights, log-decays and the last z, in float32 at
    least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = torch.full_like(logits[:, :, :1], -torch.inf) if total is None else total
    z = torch.cat([total, logits], 2).logcumsumexp(2)
    before, z = z[:, :, :-1], z[:, :, 1:]
    return (logits - z).exp(), before - z, z[:, :, -1:]


def legs_normal(n: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS plus its rank-one part P P^T, P_k = sqrt(k + 1/2): a normal matrix (Gu et al., 2021,
    https://arxiv.org/abs/2111.00396, theorem 1). The n / 2 eigenvalues above the real axis, rising, and their
    eigenvectors, the columns of V (n, n / 2): complex64, from float64.
    """
    k = torch.arange(n, dtype=torch.float64)
    p = (k + 0.5).sqrt()
    skew = (p.unsqueeze(1) * p).tril(-1)
    turns, V = torch.linalg.eigh(-1j * (skew.mT - skew))  # the real parts are all -1/2
    above = torch.complex(torch.full_like(turns, -0.5), turns)[n // 2 :]
    return above.to(torch.complex64), V[:, n // 2 :].to(torch.complex64)


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
