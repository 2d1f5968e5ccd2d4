"""minGRU (Feng et al., 2024, https://arxiv.org/abs/2410.01201, section 3.1).

h_t = (1 - z_t) * h_{t-1} + z_t * c_t,   z_t = sigmoid(W_z x_t),   c_t = W_c x_t;   y = W_o h

With the candidate c of the paper's main text, and not the positive one that its scan in log space needs. Gates start as
torch's linear maps do, here and in the public code: half of what there is is forgotten in one token at first.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.precision import wide
from mixers.ops.scan import scan


class MinGRU(Mixer):
    """A GRU whose gate and candidate see only the input, so that no step waits for the last."""

    sizes = ("expand",)

    def __init__(self, d_model: int, *, expand: int):
        super().__init__()
        self.zc = nn.Linear(d_model, 2 * expand * d_model)
        self.out = nn.Linear(expand * d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        z, c = self.zc(x).chunk(2, -1)
        z = z.to(wide(z.dtype))
        h, last = scan(torch.sigmoid(-z), z.sigmoid() * c, state)
        return self.out(h.to(x.dtype)), last
