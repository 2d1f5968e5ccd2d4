"""Diagonal state spaces that do the same at every step, so that a whole sequence is a convolution.

    h_t = e^a h_{t-1} + x_t,   y_t = Re sum_n c_n h_{t,n}      is      y = K * x,   K_l = Re sum_n c_n e^{a_n l}

Gu et al., 2022 (https://arxiv.org/abs/2206.11893, section 3.3). What a carried state adds to the outputs is a sum
of the same powers, and so is what the inputs leave in it.
"""

import torch
from torch import Tensor

from mixers.ops.causal_conv import causal_conv
from mixers.ops.precision import exact, wide

SEGMENT = 256  # powers of e^a that are held at once: e^{a (n + l)} = e^{a n} e^{a l}


def diagonal_definition(x, a, c, state=None):
    """The loop. Shapes as in `diagonal`."""
    h = x.new_zeros(x.shape[0], *a.shape) if state is None else state
    out = []
    for t in range(x.shape[1]):
        h = a.exp() * h + x[:, t, :, None]
        out.append(real(c * h).sum(-1))
    return torch.stack(out, 1), h


@exact
def diagonal(x: Tensor, a: Tensor, c: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (B, T, D) real; a (D, N), real part <= 0, and c (D, N), both real or both complex; state (B, D, N).
    Returns y (B, T, D) in x's dtype and the state after the last step, in float32 or complex64 at least. Time T
    log T.
    """
    T, dtype = x.shape[1], torch.promote_types(wide(x.dtype), a.dtype)
    u, a, c = x.to(wide(x.dtype)), a.to(dtype), c.to(dtype)
    powers = (a.unsqueeze(-1) * torch.arange(min(SEGMENT, T), device=x.device)).exp()  # (D, N, SEGMENT)
    starts = (a.unsqueeze(1) * torch.arange(0, T, SEGMENT, device=x.device).unsqueeze(-1)).exp()  # (D, segments, N)

    def sums(c: Tensor) -> Tensor:
        """Re sum_n c_n e^{a_n l} for every l < T: (..., D, N) -> (..., D, T)."""
        return real((c.unsqueeze(-2) * starts) @ powers).flatten(-2)[..., :T]

    y, _ = causal_conv(u, sums(c))
    h = torch.zeros(x.shape[0], *a.shape, dtype=dtype, device=x.device) if state is None else state.to(dtype)
    if state is not None:
        y = y + sums(c * a.exp() * h).mT
    for piece in u.split(SEGMENT, 1):
        left = torch.einsum("btd,dnt->bdn", piece.flip(1).to(dtype), powers[..., : piece.shape[1]])
        h = (a * piece.shape[1]).exp() * h + left
    return y.to(x.dtype), h


def real(z: Tensor) -> Tensor:
    return z.real if z.is_complex() else z
