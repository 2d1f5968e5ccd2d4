"""Each benchmark runs, at tiny sizes, and says what it could not measure."""

import builtins

import pytest
import torch

from benchmarks import ops, peers


@pytest.mark.parametrize("family", [name for name in ops.FAMILIES if name != "a diagonal state space layer"])
def test_ours_can_be_measured(family):
    make, ours, _ = ops.FAMILIES[family]
    inputs = make(64)
    assert ops.cost(ours, inputs) > 0
    assert ops.peak(ours, inputs) >= sum(x.numel() * x.element_size() for x in inputs)  # the gradients alone


def test_a_peer_that_is_not_installed_is_said(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("mambapy"):
            raise ImportError("No module named 'mambapy'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    (line,) = ops.versus("scan", 64, torch.float32)
    assert line[5:7] == ["mambapy pscan", "not measured: No module named 'mambapy'"]


def test_a_peer_is_measured(monkeypatch):
    (line,) = ops.versus("attention", 64, torch.float32)
    assert line[0] == "attention" and line[5] == "SDPA, causal" and "[" in line[-1]


def test_slopes_are_exponents():
    assert ops.slope([1, 2, 4], [3, 6, 12]) == "1.000"
    assert ops.slope([1, 2, 4], [1, 4, 16]) == "2.000"


def test_peers_get_what_they_compute():
    """Where a reference is at hand: SDPA is our attention."""
    q, k, v = ops.heads(40)
    torch.testing.assert_close(peers.sdpa(q, k, v), ops.attention(q, k, v)[0])
