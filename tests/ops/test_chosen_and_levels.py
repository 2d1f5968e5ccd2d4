"""Attention to chosen blocks, and log-linear attention: the engine against its definition."""

import pytest
import torch
import torch.nn.functional as F

from mixers.ops import chunks
from mixers.ops.block_attention import best, block_attention, block_attention_definition
from mixers.ops.log_linear import log_linear, log_linear_definition

G = torch.Generator().manual_seed(0)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=G, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("T", [1, 7, 37])
@pytest.mark.parametrize("kv", [1, 2, 4])
def test_block_attention(T, kv):
    S, block = 37, 8
    q, k, v = noise(2, 4, T, 5), noise(2, kv, S, 5), noise(2, kv, S, 6)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    place = torch.arange(S - T, S)
    chosen = best(noise(2, 4, T, -(-S // block)), 3, place, block)
    assert (chosen.sum(-1) == (place // block + 1).clamp(max=3)).all()
    results = []
    for op in (block_attention, block_attention_definition):
        o = op(*leaves, chosen, block)
        results.append((o, *torch.autograd.grad(o.square().sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_no_block_after_the_query_is_chosen():
    chosen = best(torch.full((1, 1, 4, 4), 9.0), 4, torch.tensor([0, 8, 16, 31]), 8)
    assert chosen[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(("T", "start", "n"), [(1, 0, 4), (15, 0, 8), (16, 0, 8), (17, 9, 8), (40, 21, 5)])
def test_log_linear(T, start, n, delta, monkeypatch):
    """From anywhere, with more levels than there are and with fewer."""
    monkeypatch.setattr(chunks, "CHUNK", 16)
    H, K, V = 2, 4, 3
    q, k, z = noise(2, 1, T, K), F.normalize(noise(2, H, T, K), dim=-1), noise(2, H, T, V)
    weight, g = noise(2, H, T, n).abs(), -noise(2, H, T, 1).abs()
    p = k * torch.rand(2, H, T, 1, generator=G).double() if delta else None
    state = None
    if start:
        before = [noise(2, 1, start, K), noise(2, H, start, K), noise(2, H, start, V)]
        _, state = log_linear_definition(*before, noise(2, H, start, n), -noise(2, H, start, 1).abs())
    leaves = [x.detach().requires_grad_() for x in (q, k, z, weight, g, p, state and state[0]) if x is not None]
    results = []
    for op in (log_linear, log_linear_definition):
        o, (S, at) = op(*leaves[:5], leaves[5] if delta else None, (leaves[-1], state[1]) if state else None)
        assert at.tolist() == [start + T] * 2
        loss = o.square().sum() + S.square().sum()
        results.append((o, S, *torch.autograd.grad(loss, leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
