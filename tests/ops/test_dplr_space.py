"""A state space of a diagonal plus one rank: its convolution against the steps, by a dense solve."""

import pytest
import torch

from mixers.ops import dplr_space as module
from mixers.ops.dplr_space import dplr_space, dplr_space_definition

D, HALF = 3, 4


def inputs(T, carried):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def pairs():
        return torch.complex(noise(D, HALF), noise(D, HALF))

    Lambda = torch.complex(-noise(D, HALF).abs() - 0.1, 3 * noise(D, HALF))
    given = [noise(2, T, D), 0.3 * noise(D, 1).abs(), Lambda, 0.5 * pairs(), pairs(), pairs()]
    return [x.requires_grad_() for x in given + ([noise(2, D, 2 * HALF)] if carried else [])]


@pytest.mark.parametrize("at_once", [module.AT_ONCE, D * HALF * 5])  # five roots
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 37])
def test_dplr_space(T, carried, at_once, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 8)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    leaves, results = inputs(T, carried), []
    for op in (dplr_space, dplr_space_definition):
        y, state = op(*leaves)
        loss = (y * torch.arange(y.numel()).view(y.shape).sin()).sum() + state.square().sum()
        results.append([y, state, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
