"""A state space of a diagonal matrix plus one rank, the same at every step, so that a whole sequence is a convolution.

    h' = A h + B u,   y = C h,   A = Lambda - P P^*
    h_t = A_ h_{t-1} + B_ u_t,   A_ = (1 - dt/2 A)^{-1} (1 + dt/2 A),   B_ = (1 - dt/2 A)^{-1} dt B

The convolution's kernel is K_l = C A_^l B_, whose transform at the T-th roots of unity w is

    2 (k_CB - k_CP k_PB (1 + w) / (1 + (1 + w) k_PP))
    k_XY = sum_n dt X_n Y_n / (2 (1 - w) - (1 + w) dt Lambda_n)

with C (1 - A_^T) for C, and P conjugate where it is X. Gu et al., 2021 (https://arxiv.org/abs/2111.00396, section 3).

Of each pair of conjugate states one is kept; the state that is carried is its real and imaginary parts, in which A_
is a real matrix. A_ is squared six times per channel and call, whatever the batch and the length: most of the FLOPs
of a short sequence, and few of a long one's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mixers.ops.causal_conv import causal_conv
from mixers.ops.precision import exact
from mixers.ops.work import again, wider

AT_ONCE = 2**24  # numbers of states times roots; beyond, they are made piece by piece, and again backwards
SEGMENT = 64  # powers of A_ at a time, a power of two


def dplr_space_definition(u, dt, Lambda, P, B, C, state=None):
    """Step by step, with the matrix of all states, discretised by a dense solve. Shapes as in `dplr_space`."""
    Lambda, P, B, C = (torch.cat([z, z.conj()], -1) for z in (Lambda, P, B, C))
    A, eye = Lambda.diag_embed() - P.unsqueeze(-1) * P.conj().unsqueeze(-2), torch.eye(P.shape[-1], dtype=P.dtype)
    step = dt.unsqueeze(-1) / 2 * A
    A_, B_ = torch.linalg.solve(eye - step, eye + step), torch.linalg.solve(eye - step, dt * B)
    half = u.new_zeros(len(u), *B.shape) if state is None else state
    h, out = torch.complex(*half.chunk(2, -1)), []
    h = torch.cat([h, h.conj()], -1)
    for x in u.unbind(1):
        h = torch.einsum("dnm,bdm->bdn", A_, h) + B_ * x.unsqueeze(-1)
        out.append((C * h).sum(-1).real)
    return torch.stack(out, 1), parts(h.chunk(2, -1)[0])


@exact
def dplr_space(
    u: Tensor, dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """u (B, T, D), float32 at least; dt (D, 1); Lambda, P, B, C (D, N / 2) complex, Lambda's real part < 0; state
    (B, D, N). Returns y (B, T, D) and the state after the last step. Time T log T.
    """
    T = u.shape[1]
    A_, B_ = discrete(dt, Lambda, P, B)
    C_ = 2 * torch.cat([C.real, -C.imag], -1)
    squares = [A_]  # A_^{2^i}, up to that of a segment
    while 1 << len(squares) <= min(SEGMENT, T):
        squares.append(squares[-1] @ squares[-1])
    transposed, size = [A.mT for A in squares], 1 << len(squares) - 1
    real, imag = ((C_ - power(transposed, T, C_)) / 2).chunk(2, -1)
    y, _ = causal_conv(u, kernel(T, dt, Lambda, P, B, torch.complex(real, -imag)))

    pieces = F.pad(u, (0, 0, -T % size, 0)).unflatten(1, (-1, size))
    left = torch.einsum("bjtd,dnt->jbdn", pieces, powers(squares, B_).flip(-1)).unbind(0)
    h = left[0]
    for piece in left[1:]:
        h = power(squares, size, h) + piece
    if state is not None:
        h = h + power(squares, T, state)
        carried = [state]
        for _ in left[1:]:
            carried.append(power(squares, size, carried[-1]))
        read = powers(transposed, power(transposed, 1, C_))
        y = y + torch.einsum("jbdn,dnt->bjtd", torch.stack(carried), read).flatten(1, 2)[:, :T]
    return y, h


def discrete(dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """A_ (D, N, N) and B_ (D, N), real: the inverse is that of a diagonal and one rank (Sherman and Morrison)."""
    m = 1 / (1 - dt / 2 * Lambda)
    left, right = parts(m * P), parts(m.conj() * P)
    scale = dt / (1 + dt * (parts(P) * left).sum(-1, keepdim=True))
    rows = [torch.cat([torch.diag_embed(a), torch.diag_embed(b)], -1) for a, b in ((m.real, -m.imag), (m.imag, m.real))]
    inverse = torch.cat(rows, -2) - (scale * left).unsqueeze(-1) * right.unsqueeze(-2)
    eye = torch.eye(inverse.shape[-1], dtype=inverse.dtype, device=inverse.device)
    return 2 * inverse - eye, dt * (inverse @ parts(B).unsqueeze(-1)).squeeze(-1)


def kernel(T: int, dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """K (D, T) from its transform; C is C (1 - A_^T)."""
    angle = torch.arange(T // 2 + 1, dtype=dt.dtype, device=dt.device) * (-2 * math.pi / T)
    w = torch.polar(torch.ones_like(angle), angle)
    pieces = w.chunk(-(-Lambda.numel() * len(w) // wider(AT_ONCE, dt, 16)))
    if len(pieces) == 1:
        return torch.fft.irfft(transform(w, dt, Lambda, P, B, C), T)
    return torch.fft.irfft(torch.cat([again(transform, piece, dt, Lambda, P, B, C) for piece in pieces], -1), T)


def transform(w: Tensor, dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The kernel's transform (D, n) at the roots w (n,). The pole at w = -1 is divided out."""
    pairs = dt.unsqueeze(-1) * torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], 1)
    CB, CP, PB, PP = (
        pairs @ (1 / (2 * (1 - w) - (1 + w) * (dt * Lambda).unsqueeze(-1)))
        + pairs.conj() @ (1 / (2 * (1 - w) - (1 + w) * (dt * Lambda.conj()).unsqueeze(-1)))
    ).unbind(1)
    return 2 * (CB - CP * PB * (1 + w) / (1 + (1 + w) * PP))


def power(squares: list[Tensor], n: int, x: Tensor) -> Tensor:
    """A^n x, from A^{2^i}, (D, N, N) each, and x (..., D, N): products with a vector alone."""
    steps = [A for i, A in enumerate(squares[:-1]) if n >> i & 1] + squares[-1:] * (n >> len(squares) - 1)
    for A in steps:
        x = torch.einsum("dnm,...dm->...dn", A, x)
    return x


def powers(squares: list[Tensor], x: Tensor) -> Tensor:
    """x, A x, ..., A^{n-1} x, (D, N, n), from x (D, N) and A^{2^i} up to A^n."""
    out = x.unsqueeze(-1)
    for A in squares[:-1]:
        out = torch.cat([out, A @ out], -1)
    return out


def parts(z: Tensor) -> Tensor:
    """(D, N / 2) complex -> (D, N), real parts and imaginary parts."""
    return torch.cat([z.real, z.imag], -1)
