"""Each benchmark runs, at tiny sizes, and says what it could not measure."""

import builtins
import sys

import pytest
import torch

from benchmarks import ops, peers
from mixers.ops import engines


@pytest.fixture(autouse=True)
def any_engine():
    yield
    engines.use("auto")


OURS = [(name, ours) for name in ops.FAMILIES for ours in ops.variants(name)]


@pytest.mark.parametrize("family, ours", OURS, ids=lambda x: getattr(x, "name", x))
def test_ours_can_be_measured(family, ours):
    inputs = ours.inputs(ops.FAMILIES[family].make(64))
    engines.ran.clear()
    assert ops.cost(ops.FAMILIES[family].ours, inputs, ours.engine) > 0
    assert all(served == {ours.engine} for served in engines.ran.values())  # and by the engine that the line names
    gradients = sum(x.numel() * x.element_size() for x in inputs)
    assert ops.peak(ops.FAMILIES[family].ours, inputs, ours.engine) >= gradients


def test_a_peer_that_is_not_installed_is_said(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("mambapy"):
            raise ImportError("No module named 'mambapy'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    mine, (line,) = ops.versus("scan", 64, 1.0)
    assert line[:4] == ["scan", "64", "mambapy pscan", "not measured: No module named 'mambapy'"]
    assert [row[2] for row in mine] == [ours.name for ours in ops.variants("scan")]


def test_a_peer_is_measured_in_turns_with_ours():
    (mine,), (line,) = ops.versus("attention", 64, 1.0)
    assert line[:3] == ["attention", "64", "SDPA, causal"] and "[" in line[5] and line[-1] == mine[-1]
    (mine,), (line,) = ops.versus("attention", 64, 0.0)  # no time: the peer is too slow for more than a look
    assert line[-1] == "1" and mine[-1] == "2" and "[" in line[5]


def test_ratios_are_of_the_same_turn():
    assert ops.over([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == "3.00 [2.00, 4.00]"
    assert ops.over([6.0], [1.0, 2.0, 3.0]) == "3.00 [2.00, 6.00]"


def test_slopes_are_exponents():
    assert ops.slope([1, 2, 4], [3, 6, 12]) == "1.000"
    assert ops.slope([1, 2, 4], [1, 4, 16]) == "2.000"


def test_decoding_is_measured_with_every_engine_that_is_here():
    head, *lines = ops.decode(64, each=2)
    assert head[0].startswith("SDPA")
    assert {line[1] for line in lines} == {"torch"} | ({"native"} if not engines.obstacle("native") else set())


def test_the_tables_are_printed_and_a_family_that_is_not_there_is_refused(monkeypatch, capsys):
    arguments = ["ops", "--only", "scan", "--length", "64", "--longest", "4096", "--seconds", "0.1", "--tables"]
    monkeypatch.setattr(sys, "argv", [*arguments, "peers", "slopes"])
    threads = torch.get_num_threads()
    ops.main()
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert out.count("| scan | 64 |") == 1 + len(ops.variants("scan")) and "one thread, CPU time" in out
    assert "| scan | torch float32 | 2048 to 4096 |" in out and "Decoding" not in out
    monkeypatch.setattr(sys, "argv", ["ops", "--only", "scam"])
    with pytest.raises(SystemExit, match="error: no family contains 'scam'; there are: linear attention, "):
        ops.main()


def test_peers_get_what_they_compute():
    """Where a reference is at hand: SDPA is our attention."""
    q, k, v = ops.heads(40)
    torch.testing.assert_close(peers.sdpa(q, k, v), ops.attention(q, k, v)[0])
