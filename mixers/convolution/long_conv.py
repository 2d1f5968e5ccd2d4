"""Long convolutions, learned directly (Fu et al., 2023, https://arxiv.org/abs/2302.06646, section 3).

y = K conv x + D * x,   K = sign(k) max(|k| - lambda, 0),   k (D, max_length);   out = GLU(W gelu(y))

Squashing small weights to zero is what keeps the kernel smooth. lambda is of the order
of the released experiments' and not the class's 0.1, which is far above its initial k. Dropout on k is left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import all_so_far
from mixers.ops.causal_conv import causal_conv

LAMBDA, SCALE = 0.001, 0.002


class LongConv(Mixer):
    """A filter per channel with one free weight for each step back: no state is enough for it, it carries all its
    inputs.
    """

    dynamics = ("k",)

    def __init__(self, d_model: int, *, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.k = nn.Parameter(torch.randn(d_model, max_length) * SCALE)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        past = all_so_far(x, state, self.max_length, "long_conv")
        y, _ = causal_conv(past, F.softshrink(self.k[:, : past.shape[1]], LAMBDA))
        y = y[:, past.shape[1] - x.shape[1] :] + self.D.to(x.dtype) * x
        return F.glu(self.out(F.gelu(y)), -1), past
