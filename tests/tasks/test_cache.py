"""What is generated once is kept: whole, under its own key, whatever else runs at the same time."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks import base, draws, pathfinder
from tasks.base import cached
from tasks.pathfinder import CHUNK

ROOT = Path(__file__).parents[2]
PROCESS = """
import os
from tasks.base import cached
from tasks.pathfinder import pathfinder

children = []
while len(children) < 3 and 0 not in children:
    children.append(os.fork())
images, labels, *_ = cached(pathfinder, n=40, size=32, seed=5)
os.write(1, f"{images.sum().item()} {labels.sum().item()}\\n".encode())
if 0 not in children:
    assert not any(os.waitpid(child, 0)[1] for child in children)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def calls(monkeypatch):
    """A list that grows with every image that is really drawn."""
    drawn, draw = [], pathfinder.draw
    monkeypatch.setattr(pathfinder, "draw", lambda n, *rest: drawn.append(n) or draw(n, *rest))
    return drawn


def made(n=3, seed=0):
    return cached(pathfinder.pathfinder, n=n, size=32, seed=seed)


def test_the_second_time_nothing_is_drawn(place, monkeypatch):
    drawn = calls(monkeypatch)
    first, second = made(), made()
    assert drawn == [CHUNK] and len(list(place.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    made(seed=1)
    made(n=4)
    assert drawn == [CHUNK] * 3 and len(list(place.iterdir())) == 3


@pytest.mark.parametrize("changed", [pathfinder, draws])
def test_other_code_is_another_key(place, monkeypatch, changed):
    drawn, source = calls(monkeypatch), inspect.getsource
    made()
    monkeypatch.setattr(
        base.inspect, "getsource", lambda module: "another version" if module is changed else source(module)
    )
    made()
    assert drawn == [CHUNK] * 2 and len(list(place.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + b"?", lambda b: b[:9]]
)
def test_a_damaged_file_is_made_again(place, monkeypatch, damage):
    drawn, first = calls(monkeypatch), made()
    (file,) = place.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    second = made()
    assert drawn == [CHUNK] * 2 and [p.name for p in place.iterdir()] == [file.name]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    made()
    assert drawn == [CHUNK] * 2


def test_processes_that_begin_together_agree(place):
    environment = os.environ | {"SEQMIX_CACHE": str(place), "OMP_NUM_THREADS": "1"}
    start = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run([sys.executable, "-c", PROCESS], **start)
    assert done.returncode == 0, done.stderr
    images, labels, *_ = cached(pathfinder.pathfinder, n=40, size=32, seed=5)
    assert done.stdout.splitlines() == 4 * [f"{images.sum().item()} {labels.sum().item()}"]
    assert [p.suffix for p in place.iterdir()] == [".pt"]  # one whole file, nothing left over


def test_a_full_disk_keeps_nothing(place, monkeypatch):
    def full(*names):
        raise OSError("No space left on device")

    drawn = calls(monkeypatch)
    monkeypatch.setattr(base.os, "replace", full)
    made()
    made()
    assert drawn == [CHUNK] * 2 and not list(place.iterdir())


def test_off_and_unwritable_places_only_cost_time(tmp_path, monkeypatch):
    drawn = calls(monkeypatch)
    monkeypatch.setenv("SEQMIX_CACHE", "")
    made()
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("SEQMIX_CACHE", str(tmp_path / "file"))
    made()
    made()
    assert drawn == [CHUNK] * 3
