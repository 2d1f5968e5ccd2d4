"""Pathfinder: every label is found again by filling the drawn curves from one disc, with discs read off the image."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.pathfinder import PADDLES, STYLES, Pathfinder, board, pathfinder

COMMON = {"seed": 0, "order_seed": 0, "batch_size": 2}
FINE = 3  # points per pixel at which curves are filled: they may pass each other at less than two pixels


def discs_of(image, radius):
    """The pixels with nothing but white around them: (n, 2), row and column."""
    size, around = len(image), range(-int(radius), int(radius) + 1)
    padded = np.pad(image, 4, constant_values=255)
    inside = [(y, x) for y in around for x in around if np.hypot(y, x) <= radius - 0.5]
    return np.argwhere(np.min([padded[4 + y : 4 + y + size, 4 + x : 4 + x + size] for y, x in inside], 0) == 255)


def filled(curves, start):
    """The points that a flood fill from `start` reaches over the curves, drawn as unbroken lines."""
    drawn = set()
    for curve in curves:
        corners = curve.reshape(-1, 2)
        for a, b in zip(corners, corners[1:], strict=False):
            drawn |= {tuple(np.rint(FINE * (a + (b - a) * step)).astype(int)) for step in np.linspace(0, 1, 25)}
    edge = [tuple(np.rint(FINE * start).astype(int))]
    reached = set(edge)
    while edge:
        y, x = edge.pop()
        near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & drawn - reached
        reached |= near
        edge += near
    return np.array(list(reached)) / FINE


def solve(image, curves):
    """1 if one curve is at both white discs."""
    centres = discs_of(image, STYLES[len(image)].radius)
    ends = curves.reshape(2, -1, 2)[:, [0, -1]].reshape(4, 2)  # nothing else may have a disc
    lit = [end for end in ends if np.hypot(*(centres - end).T).min() < 1]
    assert len(lit) == 2
    return int(np.hypot(*(filled(curves, lit[0]) - lit[1]).T).min() < 1)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([32, 128]), st.integers(0, 2**40))
def test_filling_a_curve_finds_every_label(size, seed):
    drawn = pathfinder(40 if size == 32 else 3, size, seed)
    assert drawn.images.shape == (len(drawn.labels), size, size) and drawn.images.dtype == torch.uint8
    for image, label, curves in zip(*(x.numpy() for x in (drawn.images, drawn.labels, drawn.curves)), strict=True):
        assert solve(image, curves) == label


@pytest.mark.parametrize("size", [32, 128])
def test_the_image_shows_the_geometry(size):
    drawn, style = pathfinder(20, size, seed=3), STYLES[size]
    middles = drawn.curves.mean(-2).round().long().flatten(1, 2)  # (n, paddles, 2)
    rows = torch.arange(20)[:, None]
    assert (drawn.images[rows, middles[..., 0], middles[..., 1]] > 40).all()
    lengths = (drawn.curves[..., 0, :] - drawn.curves[..., 1, :]).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full((20, 2, PADDLES), float(style.length)))
    gaps = (drawn.curves[:, :, 1:, 0] - drawn.curves[:, :, :-1, 1]).norm(dim=-1)
    assert gaps.min() > 2 * min(style.margins) - 1 and gaps.max() < 2 * max(style.margins) + 1
    other = (drawn.curves.mean(-2)[:, 0, :, None] - drawn.curves.mean(-2)[:, 1, None]).norm(dim=-1)
    assert other.min() > 2 * min(style.margins)  # two curves keep their distance
    assert drawn.images[:, 0].float().mean() < 20 and drawn.images.amax((1, 2)).eq(255).all()
    ink = (drawn.images > 40).sum((1, 2)).double() / size**2
    assert 0.02 < ink.min() and ink.max() < 0.4


def test_a_board_by_hand():
    """Paddles of two pixels with a margin of one: sixteen directions, of which one to the right."""
    on = board(32, 1)
    (right,) = (i for i, unit in enumerate(on.unit.tolist()) if unit == [0.0, 1.0])
    assert len(on.unit) == 16
    assert on.line[right].tolist() == [1, 2, 3] and on.next[right] == 4 and on.ends[right].tolist() == [[0, 1], [0, 3]]
    halo = {(y, x) for y in range(-2, 3) for x in range(-1, 6) if np.hypot(y, max(1 - x, 0, x - 3)) <= 2}
    assert set(on.halo[right].tolist()) == {y * on.width + x for y, x in halo}
    (left,) = (i for i, unit in enumerate(on.unit.tolist()) if unit == [0.0, -1.0])
    (down,) = (i for i, unit in enumerate(on.unit.tolist()) if unit == [1.0, 0.0])
    assert on.bend[right, right] == 1 and on.bend[right, left] == on.bend[right, down] == 0


def test_a_blocked_way_ends_a_curve():
    on, draws = board(32, 1), np.random.default_rng(0)
    blocked = on.empty(2)
    blocked[1] = True
    start = np.full(2, on.flat(np.array([16, 16]) + on.edge))
    rows, path, turns = on.grow(blocked, np.arange(2), start, 3, draws)
    assert rows.tolist() == [0] and path.shape == turns.shape == (1, 3)
    assert blocked[0, path[0, :, None] + on.halo[turns[0]]].all()
    rows, path, _ = on.grow(blocked, np.array([1]), start[:1], 3, draws)
    assert rows.tolist() == [] and path.shape == (0, 3)


@pytest.mark.parametrize(
    ("seed", "label", "discs"),
    [(10, 0, [[23, 15], [20, 28]]), (8, 1, [[20, 12], [22, 30]])],
)
def test_golden(seed, label, discs):
    """Two pictures, followed by eye from disc to disc."""
    drawn = pathfinder(1, 32, seed)
    assert drawn.labels.tolist() == [label] and drawn.discs[0].round().int().tolist() == discs
    assert all(drawn.images[0, y, x] == 255 for y, x in discs)


def test_generating_is_fast():
    board(32, 1)
    start = time.process_time()
    pathfinder(300, 32, seed=0)
    assert (time.process_time() - start) / 300 < 0.007  # a twentieth of the original's 0.14 s; measured: 0.001


def task(size=32, **more):
    return Pathfinder(size=size, **{"train": 400, "validation": 20, "test": 200} | more, **COMMON)


def test_slices_cover_the_test_split_by_distance():
    made = task().segments("test")
    assert [s.name for s in made] == ["discs 0 to 10 apart", "discs 10 to 16 apart", "discs 16 to 64 apart"]
    assert sum(map(len, made)) == 200 and made[0].values["distance"] < 10 < made[1].values["distance"] < 16
    assert made[0].tokens.shape[1] == 1024 and made[0].batch(slice(2))[0].dtype == torch.int64
    drawn = task().drawing("test")
    assert set(map(bytes, torch.cat([s.tokens for s in made]).numpy())) == set(
        map(bytes, drawn.images.flatten(1).numpy())
    )
    (train,) = task().segments("train")
    assert 0.4 < train.targets.double().mean() < 0.6


def test_baselines_are_near_chance():
    scores = task(train=2000, test=1000).baselines()
    assert scores.pop("chance") == 0.5
    assert list(scores) == ["majority", "the discs' distance", "brightness"]
    assert all(0.45 < score < 0.58 for score in scores.values()), scores


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="size=48 has no drawing parameters: take one of 32, 128"):
        task(size=48).hashes()
    with pytest.raises(ValueError, match="train=0 is too small: make it 1 or more"):
        task(train=0).segments("train")
