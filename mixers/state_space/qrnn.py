"""The quasi-recurrent network, QRNN (Bradbury et al., 2016, https://arxiv.org/abs/1611.01576, eqs. 2-4).

h_t = f_t * h_{t-1} + (1 - f_t) * z_t,   y_t = o_t * h_t,   which the paper calls fo-pooling
z = tanh(W_z * x),   f = sigmoid(W_f * x),   o = sigmoid(W_o * x),   a convolution of width 2: of x_{t-1} and x_t

The paper names no initial values: gates start as torch's linear maps do, at which half of h is forgotten in one token.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.precision import wide
from mixers.ops.scan import scan


class QRNN(Mixer):
    """An LSTM whose gates see the last two inputs in place of its own state."""

    def __init__(self, d_model: int):
        super().__init__()
        self.zfo = nn.Linear(2 * d_model, 3 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, h = (torch.zeros_like(x[:, :1]), None) if state is None else state
        z, f, o = self.zfo(torch.cat([torch.cat([tail, x[:, :-1]], 1), x], -1)).chunk(3, -1)
        f = f.to(wide(f.dtype))
        h, last = scan(f.sigmoid(), torch.sigmoid(-f) * z.tanh(), h)
        return h.to(x.dtype) * o.sigmoid(), (x[:, -1:], last)
