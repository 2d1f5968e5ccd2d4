"""S4, a structured state space per channel (Gu et al., 2021, https://arxiv.org/abs/2111.00396, section 3).

h' = A h + B x,   y = C h + D x,   A = Lambda - P P^*,   which starts as HiPPO-LegS;   out = GLU(W gelu(y))
h_t = A_ h_{t-1} + B_ x_t,   A_ = (1 - dt/2 A)^{-1} (1 + dt/2 A),   B_ = (1 - dt/2 A)^{-1} dt B

A whole sequence is a convolution with K_l = C A_^l B_. Its transform at the T-th roots of unity w is

    2 (k_CB - k_CP k_PB (1 + w) / (1 + (1 + w) k_PP))
    k_XY = sum_n dt X_n Y_n / (2 (1 - w) - (1 + w) dt Lambda_n)

with C (1 - A_^T) for C, and P conjugate where it is X. Of each pair of conjugate states one is kept; the state
that is carried is its real and imaginary parts, in which A_ is a real matrix. A_ is squared six times per channel
and call, whatever the batch and the length: most of the FLOPs of a short sequence, and few of a long one's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import legs_normal
from mixers.ops.causal_conv import causal_conv
from mixers.ops.precision import exact, wide

SEGMENT = 64  # powers of A_ at a time, a power of two


class S4(Mixer):
    """Remembers each channel's past as coefficients of polynomials, through a diagonal matrix plus one rank."""

    sizes = ("d_state",)
    dynamics = ("log_dt", "log_real", "imag", "P", "B")

    def __init__(self, d_model: int, *, d_state: int):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state={d_state} is not even: states come in conjugate pairs, choose an even number")
        Lambda, V = legs_normal(d_state)
        B = V.mH @ (2 * torch.arange(d_state) + 1).sqrt().to(V.dtype)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_real = nn.Parameter((-Lambda.real).log().repeat(d_model, 1))
        self.imag = nn.Parameter(Lambda.imag.repeat(d_model, 1))
        self.P = nn.Parameter(torch.view_as_real(B * 0.5**0.5).repeat(d_model, 1, 1))  # sqrt(n + 1/2)
        self.B = nn.Parameter(torch.view_as_real(B).repeat(d_model, 1, 1))
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        u = x.to(wide(x.dtype))
        Lambda = torch.complex(-self.log_real.exp(), self.imag)
        P, B, C = (torch.view_as_complex(z) for z in (self.P, self.B, self.C))
        y, state = dplr_space(u, self.log_dt.exp().unsqueeze(-1), Lambda, P, B, C, state)
        return F.glu(self.out(F.gelu((y + self.D * u).to(x.dtype))), -1), state


@exact
def dplr_space(
    u: Tensor, dt: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """u (B, T, D); dt (D, 1); Lambda, P, B, C (D, N / 2) complex; state (B, D, N). Returns y and the last one."""
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
    """K (D, T) from its transform; C is C (1 - A_^T). The pole at w = -1 is divided out."""
    angle = torch.arange(T // 2 + 1, dtype=dt.dtype, device=dt.device) * (-2 * math.pi / T)
    w = torch.polar(torch.ones_like(angle), angle)
    pairs = dt.unsqueeze(-1) * torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], 1)
    CB, CP, PB, PP = (
        pairs @ (1 / (2 * (1 - w) - (1 + w) * (dt * Lambda).unsqueeze(-1)))
        + pairs.conj() @ (1 / (2 * (1 - w) - (1 + w) * (dt * Lambda.conj()).unsqueeze(-1)))
    ).unbind(1)
    return torch.fft.irfft(2 * (CB - CP * PB * (1 + w) / (1 + (1 + w) * PP)), T)


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
