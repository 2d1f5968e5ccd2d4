"""HGRN (Qin et al., 2023, https://arxiv.org/abs/2311.04823, section 3).

h_t = f_t * h_{t-1} + (1 - f_t) * silu(W_c x_t),   f_t = l + (1 - l) sigmoid(W_f x_t)
y = W_o (norm(h) * silu(W_g x))

Real, as the released layer is; the paper's state turns too, by a learned angle per channel that does not depend on
the input. The paper's lower bounds l come from a parameter that all layers share, cumulated over depth, and start
at layer / n_layers. Here each layer learns its own, sigmoid(b), and starts at (layer + 1) / (n_layers + 1), since
at 0, where the paper's first layer starts, half of everything is forgotten in one token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm
from mixers.ops.precision import wide
from mixers.ops.scan import scan


class HGRN(Mixer):
    """A gated average per channel whose forget gate has a floor: deep layers remember longer."""

    dynamics = ("bound",)

    def __init__(self, d_model: int, *, layer: int, n_layers: int):
        super().__init__()
        self.fcg = nn.Linear(d_model, 3 * d_model, bias=False)
        self.bound = nn.Parameter(torch.full((d_model,), math.log((layer + 1) / (n_layers - layer))))
        self.norm = RMSNorm(d_model)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        f, c, gate = self.fcg(x).chunk(3, -1)
        low, f = self.bound.to(wide(x.dtype)).sigmoid(), f.to(wide(x.dtype))
        h, last = scan(low + (1 - low) * f.sigmoid(), (1 - low) * torch.sigmoid(-f) * F.silu(c), state)
        return self.out(self.norm(h.to(x.dtype)) * F.silu(gate)), last
