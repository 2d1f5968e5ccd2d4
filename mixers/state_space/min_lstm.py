"""minLSTM (Feng et al., 2024, https://arxiv.org/abs/2410.01201, section 3.2).

h_t = f'_t * h_{t-1} + i'_t * c_t,   f' = f / (f + i),   i' = i / (f + i)
f_t = sigmoid(W_f x_t),   i_t = sigmoid(W_i x_t),   c_t = W_c x_t;   y = W_o h

With the candidate c of the paper's main text, and not the positive one that its scan in log space needs. Gates start as
torch's linear maps do, here and in the public code: half of what there is is forgotten in one token at first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.precision import wide
from mixers.ops.scan import scan


class MinLSTM(Mixer):
    """An LSTM whose gates see only the input and share one unit between what is kept and what is new."""

    sizes = ("expand",)

    def __init__(self, d_model: int, *, expand: int):
        super().__init__()
        self.fic = nn.Linear(d_model, 3 * expand * d_model)
        self.out = nn.Linear(expand * d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        f, i, c = self.fic(x).chunk(3, -1)
        f, i = (F.logsigmoid(z.to(wide(z.dtype))) for z in (f, i))
        h, last = scan(torch.sigmoid(f - i), torch.sigmoid(i - f) * c, state)  # of logs: f + i may round to 0
        return self.out(h.to(x.dtype)), last
