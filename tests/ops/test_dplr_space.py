"""A state space of a diagonal plus one rank: its convolution against the steps, by a dense solve."""

import pytest
import torch

from mixers.ops import dplr_space as module
from mixers.ops.dplr_space import dplr_space, dplr_space_definition
from mixers.ops.work import again

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


def kept(call):
    """Bytes that the backward pass would find."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = call()  # alive until all are counted
    return sum(storages.values()) if out is not None else 0


def test_what_is_computed_again_is_not_kept():
    def steps(x):
        for _ in range(10):
            x = x.sin() * x
        return x

    x = torch.randn(100, dtype=torch.float64, requires_grad=True)
    plain, twice = (torch.autograd.grad(y.sum(), x)[0] for y in (steps(x), again(steps, x)))
    assert torch.equal(plain, twice)
    assert kept(lambda: again(steps, x)) <= 800 < 8000 < kept(lambda: steps(x))


def test_a_large_kernel_is_not_kept(monkeypatch):
    leaves = inputs(100, False)
    whole = kept(lambda: dplr_space(*leaves))
    monkeypatch.setattr(module, "AT_ONCE", D * HALF * 5)
    saved = 2 * D * HALF * 51 * 16  # the reciprocals of all states at all roots, and of their conjugates
    assert kept(lambda: dplr_space(*leaves)) < whole - saved
