"""Large-chunk test-time training, LaCT (Zhang et al., 2025, https://arxiv.org/abs/2505.23884, sections 3-4).

f(x; W) = W_1 (silu(W_0 x) * (W_2 x)),   o_t = f(q_t; W), W that of the chunk's start
G = gradient of sum_t eta_t <f(k_t; W), v_t> over the chunk,   D <- G + m D,   W <- rescaled(W + muon(D))
eta_t = softplus(w . x_t + b) for each of W_0, W_1, W_2, 0.001 at first,   m = mean of sigmoid(w . x_t)
y = W_o (attention in a window + norm_h(o) silu(w . x_t)),   both on the same q, k, v; q, k normed over all heads

Fast q and k are scaled and shifted per channel, then silu, length 1 and rotated as in the window, and v passes a
silu. rescaled gives the weights of each unit of W the length that they had at first; muon makes D nearly orthogonal
by five steps of Newton and Schulz, with the official code's coefficients for each step. Momentum, muon and the gate
silu(w . x_t) are that code's switches, all on. There, fast heads are fewer and wider than the window's; here as many.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, by_chunk, heads, l2_norm, merge, per_head, positions, rope
from mixers.ops.attention import attention
from mixers.ops.precision import wide
from mixers.ops.work import again

Weights = tuple[Tensor, ...]
STEP = 1e-3
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


class LaCT(Mixer):
    """A gated MLP that takes one large step of training per chunk; a window sees what is nearer."""

    def __init__(self, d_model: int, *, n_heads: int, expand: int, chunk: int, window: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads, self.chunk, self.window = n_heads, chunk, window
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.norm_q, self.norm_k = RMSNorm(d_model), RMSNorm(d_model)
        self.qk_scale = nn.Parameter(torch.ones(2, d_model))
        self.qk_shift = nn.Parameter(torch.zeros(2, d_model))
        hidden = expand * width
        shapes = [(width, hidden), (hidden, width), (width, hidden)]
        self.W = nn.ParameterList(nn.Parameter(n**-0.5 * torch.randn(n_heads, n, m)) for n, m in shapes)
        self.eta = nn.Linear(d_model, 3 * n_heads)
        nn.init.constant_(self.eta.bias, math.log(math.expm1(STEP)))
        self.m = nn.Linear(d_model, n_heads)
        self.scale = nn.Linear(d_model, n_heads)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past, memory, tail = (None, None, None, None) if state is None else state
        dtype = wide(x.dtype)
        if memory is None:
            W = tuple(w.to(dtype).expand(len(x), -1, -1, -1) for w in self.W)
            memory = W, tuple(torch.zeros_like(w) for w in W)
        steps, after = positions(x, start)
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.norm_q(q), self.norm_k(k)
        near = [heads(z, self.n_heads) for z in (q, k, v)]
        near, past = attention(rope(near[0], steps), rope(near[1], steps), near[2], past, window=self.window)

        q, k = (z * scale + shift for z, scale, shift in zip((q, k), self.qk_scale, self.qk_shift, strict=True))
        q, k, v = (heads(F.silu(z).to(dtype), self.n_heads) for z in (q, k, v))
        eta = F.softplus(self.eta(x).to(dtype)).unflatten(-1, (self.n_heads, 3)).transpose(1, 2)
        q, k = (rope(l2_norm(z), steps) for z in (q, k))
        items = k, v, eta, heads(self.m(x).sigmoid(), self.n_heads)
        o, state = by_chunk(q, items, memory, tail, self.chunk, self.step)
        o = self.norm(o) * F.silu(heads(self.scale(x), self.n_heads))
        return self.out((merge(o) + merge(near)).to(x.dtype)), (after, past, *state)

    def step(self, memory: tuple[Weights, Weights], q: Tensor, k: Tensor, v: Tensor, eta: Tensor, m: Tensor):
        W, D = memory

        def write():
            kept = m.mean(2, keepdim=True)
            moved = tuple(g + kept * d for g, d in zip(ascent(W, k, v, eta), D, strict=True))
            steps = zip(W, steepest(moved), strict=True)
            return tuple(self.rescaled(w + step, i) for i, (w, step) in enumerate(steps)), moved

        return (F.silu(q @ W[0]) * (q @ W[2])) @ W[1], write

    def rescaled(self, w: Tensor, i: int) -> Tensor:
        return w * (self.W[i].to(w.dtype).norm(dim=-2, keepdim=True) / (w.norm(dim=-2, keepdim=True) + 1e-5))


def ascent(W: Weights, k: Tensor, v: Tensor, eta: Tensor) -> Weights:
    """The gradients of sum_t eta_t <f(k_t; W), v_t>, with an eta for each of the three matrices."""
    a, b = k @ W[0], k @ W[2]
    s, dh = a.sigmoid(), v @ W[1].mT
    eta_0, eta_1, eta_2 = eta.unsqueeze(-1).unbind(-2)
    d_silu = s * (1 + a * (1 - s))
    return (eta_0 * k).mT @ (d_silu * dh * b), (eta_1 * (a * s * b)).mT @ v, (eta_2 * k).mT @ (dh * a * s)


def steepest(D: Weights) -> Weights:
    """muon of each D, shaped as the W: (..., n, m), (..., m, n), (..., n, m). Its polynomials are made again backwards:
    kept, they would be many times the weights for each chunk.
    """
    together = torch.stack((D[0], D[1].mT, D[2]))
    first, second, third = again(muon, together)
    return first, second.mT, third


def muon(d: Tensor) -> Tensor:
    """d (..., n, m) with its singular values moved to about 1, by polynomials in d."""
    x = d if d.shape[-2] <= d.shape[-1] else d.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        xx = x @ x.mT
        x = a * x + (b * xx + c * xx @ xx) @ x
    return x if d.shape[-2] <= d.shape[-1] else x.mT
