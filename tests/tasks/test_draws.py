"""Random numbers by example."""

import numpy as np
import pytest
import torch

from tasks import draws
from tasks.draws import Draws


def splitmix(state, count):
    """SplitMix64 as its authors write it, in Python's integers."""
    made = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        made.append(((z ^ (z >> 31)) >> 11) / 2**53)
    return made


def test_numbers_are_splitmix():
    assert splitmix(0, 1) == [(0xE220A8397B1DCDAF >> 11) / 2**53]  # as published, for the seed 0
    made = draws.numbers(np.array([0, 5, 2**64 - 1], np.uint64), 4)
    assert made.tolist() == [splitmix(state, 4) for state in (0, 5, 2**64 - 1)]


def test_each_call_goes_on(monkeypatch):
    a, b = Draws(3, 7), Draws(3, 7)
    first, rest = a.uniform(2), a.uniform(2, 2)
    assert torch.equal(torch.cat([first, rest.flatten(1)], 1), b.uniform(6))
    assert not torch.equal(first, Draws(3, 8).uniform(2))
    few, many = Draws(4, 0), Draws(9, 0)
    monkeypatch.setattr(draws, "BLOCK", 20)  # in blocks of two rows
    assert torch.equal(few.distinct(3, 10), many.distinct(3, 10)[:4])
    assert torch.equal(few.integers(2, 9, 5), many.integers(2, 9, 5)[:4])


def test_all_values_are_as_frequent():
    d = Draws(20000, 1)
    seen = d.integers(3, 8).bincount(minlength=8)
    assert seen[:3].sum() == 0 and seen[3:].double().div(4000).tolist() == pytest.approx([1] * 5, abs=0.06)
    chosen = d.distinct(2, 4)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    pairs = (4 * chosen[:, 0] + chosen[:, 1]).bincount(minlength=16).double() / (20000 / 12)
    assert pairs[[i for i in range(16) if i % 5]].tolist() == pytest.approx([1] * 12, abs=0.1)
    a, b = d.uniform(), Draws(20000, 2).uniform()
    assert abs(torch.corrcoef(torch.stack([a[1:], a[:-1], b[1:]])) - torch.eye(3)).max() < 0.03
