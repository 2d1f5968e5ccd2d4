"""MLP-Mixer's token mixing (Tolstikhin et al., 2021, https://arxiv.org/abs/2105.01601, eq. 1).

y = W_2 gelu(W_1 x),   W_1 (n, max_length) and W_2 (max_length, n) over the sequence, the same for all channels

Shorter inputs are padded with zeros.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import at_most


class MLPMixer(Mixer):
    """A multilayer perceptron across the sequence. It looks ahead by nature: there is no causal version."""

    causal = False
    sizes = ("n_hidden",)

    def __init__(self, d_model: int, *, n_hidden: int, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.mlp = nn.Sequential(nn.Linear(max_length, n_hidden), nn.GELU(), nn.Linear(n_hidden, max_length))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        T = x.shape[1]
        at_most(self, T)
        z = x if mask is None else x * mask.unsqueeze(-1)
        return self.mlp(F.pad(z.mT, (0, self.max_length - T)))[..., :T].mT, None
