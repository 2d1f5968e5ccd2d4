"""Long convolutions, learned directly (Fu et al., 2023, https://arxiv.org/abs/2302.06646, section 3).

y = K conv x + D * x,   K = sign(k) max(|k| - lambda, 0),   k (D, max_length);   out = GLU(W gelu(y))

Squashing small weights to zero is what keeps the kernel smooth. lambda is that of the released experiments, 0.001 to
0.004, and not the class's 0.1, which is far above its initial k. Dropout on k is left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import endless_conv

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
        y, past = endless_conv(x, state, self.kernel, self.max_length, "long_conv")
        return F.glu(self.out(F.gelu(y + self.D.to(x.dtype) * x)), -1), past

    def kernel(self, length: int) -> Tensor:
        return F.softshrink(self.k[:, :length], LAMBDA)
