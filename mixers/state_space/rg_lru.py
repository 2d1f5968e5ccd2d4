"""The recurrent block of Hawk and Griffin, with the real-gated LRU (De et al., 2024,
https://arxiv.org/abs/2402.19427, section 2.4).

h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * u_t,   log a_t = -8 r_t softplus(Lambda)
r_t, i_t = sigmoid(W u_t + b), W block-diagonal;   u = conv(W_u x);   out = W_o (h * gelu(W_z x))

The first token, before which there is nothing, is taken whole: h_1 = i_1 * u_1, as in the released code, from which the
convolution's small initial values are too. As wide as the model, where the paper's block is wider by a third.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import ShortConv, per_head
from mixers.ops.precision import wide
from mixers.ops.scan import scan

CONV, RATE, NEAR = 4, 8.0, 0.1
R_MIN, R_MAX = 0.9, 0.999
LEAST = 2.5e-7  # of 1 - a^2: keeps the root's gradient below 1000


class RGLRU(Mixer):
    """A leaky average per channel whose leak the input chooses, and whose size does not depend on the leak."""

    dynamics = ("Lambda",)

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.uz = nn.Linear(d_model, 2 * d_model)
        self.conv = ShortConv(d_model, width=CONV, bias=True)
        nn.init.normal_(self.conv.weight, std=NEAR * CONV**-0.5)
        nn.init.zeros_(self.conv.bias)
        self.gates = nn.Parameter(torch.randn(2, n_heads, width, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(2, d_model))
        squared = torch.rand(d_model) * (R_MAX**2 - R_MIN**2) + R_MIN**2
        self.Lambda = nn.Parameter((squared**-0.5 - 1).log())  # softplus(Lambda) = -log of a point of the ring
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, h = (None, None) if state is None else state
        u, z = self.uz(x).chunk(2, -1)
        u, tail = self.conv(u, tail)
        blocks = u.unflatten(-1, (self.gates.shape[1], -1))
        gates = torch.einsum("bthi,ghij->gbthj", blocks, self.gates).flatten(-2).to(wide(u.dtype))
        r, i = (gates + self.bias[:, None, None]).sigmoid()
        log_a = -RATE * r * F.softplus(self.Lambda)
        share = (-(2 * log_a).expm1()).clamp(min=LEAST).sqrt()
        if h is None:
            share = torch.cat([torch.ones_like(share[:, :1]), share[:, 1:]], 1)
        h, last = scan(log_a.exp(), share * i * u, h)
        return self.out(h.to(x.dtype) * F.gelu(z)), (tail, last)
