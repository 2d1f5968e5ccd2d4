"""Hyena of order 2 (Poli et al., 2023, https://arxiv.org/abs/2302.10866, sections 3.1-3.3).

y = W_o (x_0 * (h conv z + D * z)),   z = x_1 * v,   x_0, x_1, v = W x through a short convolution
h_l = e^{-|delta| t} * W_3 s(W_2 s(W_1 s(W_0 [t, cos 2 pi t, sin 2 pi t]))),   s = sin(w .),   t = l / max_length

delta spreads over channels, so that filters fall to 1/100 after 0.3 to 1.5 of max_length: another max_length is
another filter. The released code's only frequency at this width is all but zero; here it is 1.
"""

import math

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import ShortConv, endless_conv
from mixers.ops.precision import exact

CONV, WIDTH, FREQUENCY = 3, 64, 1.0
FAST, SLOW, LEFT = 0.3, 1.5, 0.01


class Hyena(Mixer):
    """A gated convolution as long as the sequence, whose filter is a small network's function of time: no state is
    enough for it, it carries all its inputs.
    """

    def __init__(self, d_model: int, *, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.project = nn.Linear(d_model, 3 * d_model)
        self.conv = ShortConv(3 * d_model, width=CONV, bias=True)
        self.filter = Filter(d_model, max_length)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, past = (None, None) if state is None else state
        gates, tail = self.conv(self.project(x), tail)
        x_0, x_1, v = gates.chunk(3, -1)
        z = x_1 * v
        y, past = endless_conv(z, past, self.filter, self.max_length, "hyena")
        return self.out(x_0 * (y + self.D.to(z.dtype) * z)), (tail, past)


class Filter(nn.Module):
    """The filter's first taps, (D, length): no weight of its network decays, and all take small steps."""

    dynamics = ("first", "inner", "biases", "last", "frequency")
    delta: Tensor

    def __init__(self, d_model: int, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.first = nn.Parameter(torch.empty(WIDTH, 3).uniform_(-(3**-0.5), 3**-0.5))
        self.inner = nn.Parameter(torch.empty(2, WIDTH, WIDTH).uniform_(-(WIDTH**-0.5), WIDTH**-0.5))
        self.biases = nn.Parameter(torch.empty(3, WIDTH).uniform_(-(WIDTH**-0.5), WIDTH**-0.5))
        self.last = nn.Parameter(torch.empty(d_model, WIDTH).uniform_(-(WIDTH**-0.5), WIDTH**-0.5))
        self.frequency = nn.Parameter(torch.full((WIDTH,), FREQUENCY))
        self.register_buffer("delta", torch.linspace(math.log(LEFT) / SLOW, math.log(LEFT) / FAST, d_model))

    def forward(self, length: int) -> Tensor:
        return taps(length, self.max_length, self.frequency, self.first, self.inner, self.biases, self.last, self.delta)


@exact
def taps(length, max_length, frequency, first, inner, biases, last, delta) -> Tensor:
    t = torch.arange(length, device=delta.device, dtype=delta.dtype) / max_length
    h = torch.stack([t, (2 * math.pi * t).cos(), (2 * math.pi * t).sin()], -1)
    for W, b in zip((first, *inner), biases, strict=True):
        h = (frequency * (h @ W.mT + b)).sin()
    return (-t * delta.abs().unsqueeze(-1)).exp() * (last @ h.mT)
