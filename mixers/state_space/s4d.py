"""S4D-Lin, a diagonal state space (Gu et al., 2022, https://arxiv.org/abs/2206.11893, eqs. 2-3 and section 4.4), per
channel.

    h_t = e^{dt A} h_{t-1} + x_t,   y_t = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n h_{t,n} + D x_t,   A_n = -1/2 + i pi n
    out = GLU(W gelu(y))

With zero-order hold and B = 1; a half of each pair of conjugate states is kept, hence 2 Re. A whole sequence is a
convolution with the kernel K_l = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{dt A_n l}.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.causal_conv import causal_conv

SEGMENT = 1024  # powers of e^{dt A} at a time


class S4D(Mixer):
    """A fixed bank of damped oscillators per channel: what is remembered does not depend on what is read."""

    sizes = ("d_state",)
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
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        T, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dtA = A * self.log_dt.exp().unsqueeze(-1)
        C = torch.view_as_complex(self.C) * (dtA.exp() - 1) / A
        powers = [
            (dtA.unsqueeze(-1) * torch.arange(n, min(n + SEGMENT, T), device=x.device)).exp()
            for n in range(0, T, SEGMENT)
        ]  # (D, N / 2, SEGMENT) each
        u = x.to(wide)
        y, _ = causal_conv(u, 2 * torch.cat([self.read(C, p) for p in powers], -1))
        h = torch.zeros(x.shape[0], *A.shape, dtype=A.dtype, device=x.device) if state is None else state
        if state is not None:
            first = C * dtA.exp() * h
            y = y + 2 * torch.cat([torch.einsum("bdn,dnt->btd", first, p).real for p in powers], 1)
        for piece in u.split(SEGMENT, 1):
            ages = powers[0][..., : piece.shape[1]].flip(-1)
            h = (dtA * piece.shape[1]).exp() * h + torch.einsum("btd,dnt->bdn", piece.to(A.dtype), ages)
        y = (y + self.D.to(wide) * u).to(x.dtype)
        return F.glu(self.out(F.gelu(y)), -1), h

    @staticmethod
    def read(C: Tensor, powers: Tensor) -> Tensor:
        """Re sum_n C_n powers_n: (D, N / 2), (D, N / 2, L) -> (D, L)."""
        return (C.unsqueeze(1) @ powers).squeeze(1).real
