"""FNet (Lee-Thorp et al., 2021, https://arxiv.org/abs/2105.03824, eq. 3).

    y = Re F_seq(F_hidden(x))

The paper's transform is not normalised and its post-norm absorbs the constant; before a residual sum it has to be
orthonormal.
"""

import torch
from torch import Tensor

from mixers.base import Mixer, State


class FNet(Mixer):
    """A Fourier transform and not one parameter. It looks ahead by nature: there is no causal version."""

    causal = False

    def __init__(self, d_model: int):
        super().__init__()

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if mask is not None:
            wide = wide * mask.unsqueeze(-1)
        return torch.fft.fft2(wide, norm="ortho").real.to(x.dtype), None
