"""Test-time training: one chunk of gradient descent on a small network, which is the memory.

    G_j = gradient of |f(k_j; W) - v_j|^2 / 2 in the weights W that the chunk began with
    S_t = m_t S_{t-1} - eta_t G_t,    D_t = a_t D_{t-1} + S_t,    D_0 = 0
    W_t = a_1 ... a_t W + r_t D_t,    o_t = f(q_t; W_t)

f is linear maps with a GELU (its tanh form) between them, or, with a norm, f(x) = x + LayerNorm(maps(x)). Without
a, m and r it is plain gradient descent: Sun et al., 2024 (https://arxiv.org/abs/2407.04620, section 2). With decay
a and momentum m it is Behrouz et al., 2024 (https://arxiv.org/abs/2501.00663, eqs. 10-14).

A token's gradient in a linear map is the outer product of the map's input x_j and the loss's gradient g_j there,
and W_t is linear in the chunk's gradients. So q_t meets them as in linear attention, sum_j C_tj (q_t . x_j) g_j,
and no gradient is ever formed for one token alone (the dual form: Sun et al., section 2.5, appendix A).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = tuple[Tensor, ...]
EPS = 1e-6


def inner_loop_definition(q, k, v, eta, W, S=None, log_a=None, log_m=None, r=None, norm=None):
    """Token by token, gradients by torch.func. Shapes as in `inner_loop`."""

    def loss(weights, t):
        return (network(k[..., t : t + 1, :], weights, norm) - v[..., t : t + 1, :]).square().sum() / 2

    keep, out = 1.0, []
    D = tuple(torch.zeros_like(w) for w in W)
    S = D if S is None else S
    for t in range(k.shape[-2]):
        G = torch.func.grad(loss)(W, t)
        m = 0.0 if log_m is None else log_m[..., t : t + 1, :].exp()
        a = 1.0 if log_a is None else log_a[..., t : t + 1, :].exp()
        S = tuple(m * s - eta[..., t : t + 1, :] * g for s, g in zip(S, G, strict=True))
        D = tuple(a * d + s for d, s in zip(D, S, strict=True))
        keep = a * keep
        W_t = tuple(keep * w + (1.0 if r is None else r[t]) * d for w, d in zip(W, D, strict=True))
        out.append(network(q[..., t : t + 1, :], W_t, norm))
    return torch.cat(out, -2), W_t, S


def inner_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    W: Weights,
    S: Weights | None = None,
    log_a: Tensor | None = None,
    log_m: Tensor | None = None,
    r: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Callable[[], tuple[Weights, Weights]]]:
    """k, v (B, H, C, D); eta and the log-decays log_a, log_m <= 0 (B, H, C, 1); r (C,) or longer; q the queries of
    the last rows. W: the maps' matrices (B, H, n, m); one with a row more than its input is wide has a bias there.
    S: their momenta, given if log_m is. norm: scale and shift of the LayerNorm, (H, 1, D) each. All of one dtype,
    float32 at least. Returns o, of q's shape, and a function that makes W and S after the chunk: between
    two tokens of a chunk nobody needs them. Can be differentiated through.
    """
    C = k.shape[-2]
    inputs, errors = gradients(k, v, W, norm)
    writes = torch.tril(torch.ones(C, C, dtype=k.dtype, device=k.device)) if log_a is None else decayed(log_a)
    keep = torch.ones_like(eta) if log_a is None else log_a.cumsum(-2).exp()
    scale = 1.0 if r is None else r[:C, None]
    momenta: Weights = () if S is None else S
    if log_m is not None:
        since, M = log_m.cumsum(-2).exp(), decayed(log_m)
        left, S_left, S_writes = scale * (writes @ since), since[..., -1:, :], M[..., -1:, :].mT * eta
        writes = writes @ M
    writes = scale * writes * eta.mT

    rows, z = slice(C - q.shape[-2], None), q
    for l, (w, x, g) in enumerate(zip(W, inputs, errors, strict=True)):
        read = with_bias(z if l == 0 else F.gelu(z, approximate="tanh"), w)
        z = keep[..., rows, :] * (read @ w) - (writes[..., rows, :] * (read @ x.mT)) @ g
        if momenta:
            z = z + left[..., rows, :] * (read @ momenta[l])
    o = z if norm is None else q + layer_norm(z, norm)

    def write() -> tuple[Weights, Weights]:
        last = writes[..., -1:, :].mT
        ends = tuple(keep[..., -1:, :] * w - x.mT @ (last * g) for w, x, g in zip(W, inputs, errors, strict=True))
        if not momenta:
            return ends, ()
        ends = tuple(w + left[..., -1:, :] * s for w, s in zip(ends, momenta, strict=True))
        parts = zip(momenta, inputs, errors, strict=True)
        return ends, tuple(S_left * s - x.mT @ (S_writes * g) for s, x, g in parts)

    return o, write


def network(x: Tensor, W: Weights, norm: tuple[Tensor, Tensor] | None) -> Tensor:
    """f(x; W)."""
    z = x
    for l, w in enumerate(W):
        z = with_bias(z if l == 0 else F.gelu(z, approximate="tanh"), w) @ w
    return z if norm is None else x + layer_norm(z, norm)


def gradients(k: Tensor, v: Tensor, W: Weights, norm) -> tuple[list[Tensor], list[Tensor]]:
    """Of each map: its inputs (..., C, n), and the loss's gradients at its outputs (..., C, m), for every
    token."""
    inputs, outputs = [], []
    for l, w in enumerate(W):
        inputs.append(with_bias(k if l == 0 else F.gelu(outputs[-1], approximate="tanh"), w))
        outputs.append(inputs[-1] @ w)
    g = outputs[-1] - v
    if norm is not None:
        g = layer_norm_grad(k + layer_norm(outputs[-1], norm) - v, outputs[-1], norm[0])
    errors = [g]
    for w, z in zip(W[:0:-1], outputs[-2::-1], strict=True):
        g = (g @ w[..., : z.shape[-1], :].mT) * gelu_grad(z)
        errors.append(g)
    return inputs, errors[::-1]


def with_bias(x: Tensor, w: Tensor) -> Tensor:
    """A bias is the weight of one more input, always 1."""
    return x if w.shape[-2] == x.shape[-1] else F.pad(x, (0, 1), value=1.0)


def decayed(log_a: Tensor) -> Tensor:
    """(..., C, 1) -> (..., C, C): a_{j+1} ... a_i at [i, j], 0 above the diagonal."""
    total = log_a.cumsum(-2)
    difference = total - total.mT
    upper = torch.ones_like(difference, dtype=torch.bool).triu(1)
    return difference.masked_fill(upper, -torch.inf).exp()


def layer_norm(z: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    return norm[0] * F.layer_norm(z, z.shape[-1:], eps=EPS) + norm[1]


def layer_norm_grad(d: Tensor, z: Tensor, scale: Tensor) -> Tensor:
    """From the gradient d at a LayerNorm's output to the one at its input z."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    x, h = centred * inverse, d * scale
    return (h - h.mean(-1, keepdim=True) - x * (h * x).mean(-1, keepdim=True)) * inverse


def gelu_grad(x: Tensor) -> Tensor:
    """The derivative of the tanh form of GELU."""
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x) / 2
