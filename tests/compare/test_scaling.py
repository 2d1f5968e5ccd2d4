"""Cost against length: modes counted by hand, series that stop, slopes and crossovers that are known."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from compare import results, scaling, speed, stats
from mixers.base import Mixer

D, V = 8, 100


class Sum(Mixer):
    def forward(self, x, state=None, mask=None):
        h = x.cumsum(1) + (0 if state is None else state[:, None])
        return h, h[:, -1].clone()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mixer, self.head = nn.Embedding(V, D), Sum(), nn.Linear(D, V)

    def forward(self, tokens, states=None, mask=None, at=None):
        y, states = self.mixer(self.embed(tokens), states)
        return self.head(y if at is None else y[at]), states


@pytest.mark.parametrize("mode", speed.MODES)
def test_each_mode_is_timed_and_leaves_nothing(mode):
    model, tokens = Model(), torch.zeros(1, 64, dtype=torch.int64)
    seconds, peak, held = speed.costs(model, tokens, mode, 1.0)
    assert 0 < seconds < 1 and peak > held
    assert all(parameter.grad is None for parameter in model.parameters())
    assert held == sum(p.numel() * 4 for p in model.parameters()) + 64 * 8 + (D * 4 if mode == "decode" else 0)


def test_the_modes_cost_what_they_compute():
    model, tokens = Model(), torch.zeros(1, 64, dtype=torch.int64)
    peaks = {mode: speed.costs(model, tokens, mode, 0.0)[1] for mode in speed.MODES}
    assert peaks["forward"] - peaks["prefill"] > 0  # the logits of 63 tokens more
    assert peaks["train"] > peaks["forward"] and peaks["decode"] < peaks["prefill"]


@pytest.fixture
def counted(monkeypatch):
    """Costs by formula: seconds = 1e-3 (T / 100)^2, bytes = 1000 T."""
    calls = []

    def costs(model, tokens, mode, seconds):
        calls.append((mode, tokens.shape[1]))
        return 1e-3 * (tokens.shape[1] / 100) ** 2, 1000 * tokens.shape[1], 0

    monkeypatch.setattr(scaling.speed, "costs", costs)
    return calls


def series(seconds=1e9, memory=1e18, lengths=(100, 400, 1600)):
    return scaling.points(["a"], list(lengths), lambda *_: Model(), seconds, memory, lambda _: None)


def test_a_series_stops_before_it_exceeds_its_time_and_says_so(counted):
    found = [point for point in series(seconds=0.1) if point.mode == "forward"]
    assert [point.length for point in found if not point.reason] == [100, 400]
    assert "stopped: about 0.8 s more" in found[2].reason
    assert ("forward", 1600) not in counted
    assert [mode for mode, length in counted if length == 1600] == []


def test_a_series_stops_before_it_exceeds_its_memory_and_says_so(counted):
    found = [point for point in series(memory=1e6, lengths=(100, 200, 1600)) if point.mode == "train"]
    assert "stopped: about 1.53 MiB, and the budget is 977 KiB" in found[2].reason
    series(memory=1e6, lengths=(100, 200, 1600, 3200))
    assert max(length for _, length in counted) == 200  # once stopped, a series stays stopped


def test_slopes_are_of_the_number_per_token(counted):
    made = {title.split(":")[0] + what: lines for title, _, lines in scaling.tables(series()) for what in [title[-15:]]}
    assert any(line[-2] == "+1.00" for lines in made.values() for line in lines)  # T^2 in all is T per token
    assert stats.slope([1, 10, 100], [5, 50, 500]) == pytest.approx(1)
    assert stats.slope([1, 2], [8, 2]) == pytest.approx(-2)
    assert stats.slope([1], [8]) is None and stats.slope([1, 2], [0, 1]) is None


def test_the_crossover_of_known_curves():
    lengths = (100, 1000, 10_000)
    theirs = {T: T**2 for T in lengths}
    assert stats.crossover({T: 500 * T for T in lengths}, theirs) == pytest.approx(500)
    assert stats.crossover({T: 5 * T for T in lengths}, theirs) == 100
    assert stats.crossover({T: 50_000 * T for T in lengths}, theirs) is None
    assert stats.crossover({100: 1.0, 1000: 1e9, 10_000: 1.0}, theirs) > 1000  # only what stays below counts
    assert stats.crossover({7: 1.0}, theirs) is None


def test_a_mixer_that_cannot_run_says_why(counted):
    def model(mixer, length):
        if length > 100:
            raise ValueError("length 400 is above max_length=100")
        return Model()

    found = scaling.points(["a"], [100, 400], model, 1e9, 1e18, lambda _: None)
    assert [point.reason for point in found if point.length == 400] == ["length 400 is above max_length=100"] * 4
    assert any("a forward, prefill, train, decode at 400: length 400" in note for note in scaling.notes(found))


def compare(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "compare", *map(str, arguments)],
        cwd=results.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_commands(tmp_path):
    small = ["mixer=softmax,gla,fnet", "length=32,64", "model.d_model=16"]
    done = compare("speed", *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "below softmax" in done.stdout and "FNet looks ahead" in done.stdout.replace("\n", " ")
    rows = list(csv.DictReader((tmp_path / "speed.csv").read_text().splitlines()))
    assert len([row for row in rows if row["seconds"]]) == 2 * 2 * 4
    assert "24/24" in done.stderr  # the bar ends full
    assert "| softmax |" in (tmp_path / "speed.md").read_text() and "slope" in (tmp_path / "speed.md").read_text()
    page = (tmp_path / "speed.html").read_text()
    assert page.count("<svg") == 8 and page.count("data:text/csv;base64,") == 8
    done = compare("budget", *small, "--out", tmp_path / "budget.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "budget.csv").read_text().splitlines()))
    assert [row["state bytes"] for row in rows[:2]] == [str(2 * 2 * 16 * 4 * T + 16) for T in (32, 64)]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["mixer=sofmax", "length=32"], "mixer/sofmax"),
        (["mixer=gla", "mixer=softmax", "length=32"], "mixer is given twice"),
        (["mixer=gla"], "say which mixers and lengths"),
        (["mixer=gla", "length=32", "model.width=3"], "width"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(words, error):
    done = compare("speed", *words)
    assert done.returncode == 2 and error in done.stderr and done.stderr.count("\n") == 1
