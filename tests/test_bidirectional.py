"""Two causal mixers, one of them on the reversed sequence, against each row reversed by hand."""

import pytest
import torch
from torch import nn

from mixers.base import Mixer
from mixers.bidirectional import Bidirectional


class Leaky(Mixer):
    """h_t = h_{t-1} / 2 + W x_t."""

    def __init__(self, d_model=4):
        super().__init__()
        self.W, self.drawn = nn.Linear(d_model, d_model), 0

    def forward(self, x, state=None, mask=None):
        h, out = torch.zeros_like(x[:, 0]), []
        for z in self.W(x).unbind(1):
            h = h / 2 + z
            out.append(h)
        return torch.stack(out, 1), h

    def resample(self, generator):
        self.drawn += 1


def by_hand(net, x, mask):
    """Each row's real tokens alone, in both orders."""
    y = torch.zeros_like(x)
    for b, real in enumerate(mask):
        if not real.any():
            continue
        row = x[b : b + 1, real]
        y[b, real] = (net.forwards(row)[0] + net.backwards(row.flip(1))[0].flip(1))[0]
    return y


MASKS = {
    "none": torch.ones(3, 7),
    "right": torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6]),
    "left": torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 6 + [1]]),
    "between": torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 1, 0, 1, 0], [0] * 7]),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rows", [slice(0, 3), slice(1, 2)])
def test_both_directions_read_real_tokens_only(kind, rows):
    torch.manual_seed(0)
    net, mask = Bidirectional(Leaky(), Leaky()).double(), MASKS[kind][rows].bool()
    x = torch.randn(len(mask), 7, 4, dtype=torch.float64, requires_grad=True)
    weights, results = torch.randn(len(mask), 7, 4, dtype=torch.float64), []
    for y in (net(x, None, mask)[0], by_hand(net, x, mask)):
        loss = (y * weights).sum()
        results.append([y, *torch.autograd.grad(loss, [x, *net.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if kind == "none":
        torch.testing.assert_close(net(x)[0], results[0][0])


def test_it_has_no_state_and_redraws_both():
    net = Bidirectional(Leaky(), Leaky())
    assert not net.causal and net(torch.randn(1, 3, 4))[1] is None
    net.resample(torch.Generator())
    assert (net.forwards.drawn, net.backwards.drawn) == (1, 1)
