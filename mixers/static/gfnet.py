"""Global filter networks (Rao et al., 2021, https://arxiv.org/abs/2107.00645, eqs. 4-7), along the sequence.

y = F^-1(W * F(x)),   W complex, one filter per channel over max_length frequencies

The paper's filters are over the two sides of an image; here a sequence has one side. Shorter inputs are padded.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import at_most
from mixers.ops.precision import wide

STD = 0.02


class GlobalFilter(Mixer):
    """A circular convolution learned as a spectrum. It looks ahead by nature: there is no causal version."""

    causal = False

    def __init__(self, d_model: int, *, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.W = nn.Parameter(STD * torch.randn(max_length // 2 + 1, d_model, 2))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        at_most(self, x.shape[1])
        wider = x.to(wide(x.dtype))
        if mask is not None:
            wider = wider * mask.unsqueeze(-1)
        spectrum = torch.fft.rfft(wider, self.max_length, dim=1, norm="ortho")
        W = torch.view_as_complex(self.W.to(wider.dtype).contiguous())
        return torch.fft.irfft(spectrum * W, self.max_length, dim=1, norm="ortho")[:, : x.shape[1]].to(x.dtype), None
