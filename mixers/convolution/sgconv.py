"""SGConv, structured global convolution (Li et al., 2022, https://arxiv.org/abs/2210.09298, section 3.2).

y = K conv x + D * x,   K = [2^{n-1} up(k_0), 2^{n-2} up(k_1), ..., up(k_{n-1})] / Z;   out = GLU(W gelu(y))

k_i (D, 64); up stretches k_i linearly to 64 2^{max(0, i-1)} taps; Z is the norm that K has at first. n is the
least number of scales that reach max_length.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import endless_conv

TAPS = 64


class SGConv(Mixer):
    """A filter as long as the sequence, finer and heavier where it is near: few weights for any length. No state
    is enough for it, it carries all its inputs.
    """

    dynamics = ("k",)
    Z: Tensor

    def __init__(self, d_model: int, *, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.k = nn.Parameter(torch.randn(1 + max(0, math.ceil(math.log2(max_length / TAPS))), d_model, TAPS))
        self.register_buffer("Z", multiscale(self.k.detach()).norm(dim=-1, keepdim=True))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        y, past = endless_conv(x, state, self.kernel, self.max_length, "sgconv")
        return F.glu(self.out(F.gelu(y + self.D.to(x.dtype) * x)), -1), past

    def kernel(self, length: int) -> Tensor:
        return multiscale(self.k)[:, :length] / self.Z


def multiscale(k: Tensor) -> Tensor:
    """k (n, D, taps) -> (D, 2^{n-1} taps)."""
    n, pieces = len(k), []
    for i in range(n):
        stretched = F.interpolate(k[i : i + 1], scale_factor=2 ** max(0, i - 1), mode="linear")
        pieces.append(2 ** (n - i - 1) * stretched.squeeze(0))
    return torch.cat(pieces, -1)
