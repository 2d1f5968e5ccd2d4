"""Pathfinder (Linsley et al., 2018, https://arxiv.org/abs/1805.08315; Tay et al., 2020,
https://arxiv.org/abs/2011.04006, section 2.5): do two white discs lie on the ends of one dashed curve, or of two?
Tokens are the gray values, row by row.

    O - -         O - -
          |             |      label 1 on the left, 0 on the right, where the curve
    - -   |       O -   |      that begins at the upper disc ends without one
        | O          |

The sizes 32 (pathfinder) and 128 (Path-X) have the drawing parameters of the Arena's hard level: two curves of 14
paddles, and 5 or 8 distractors of 4. The generator is our own, and differs from Linsley's on purpose: the second curve
grows after the first, not in turn with it; a paddle's direction is drawn among those that are free, not in three tries;
pivots are rounded to the nearest pixel, not up; lines are averaged over the points of a pixel.

Examples of both labels and sizes are in docs/pathfinder.png, which `python -m tasks.pathfinder docs/pathfinder.png`
draws.
"""

import sys
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.base import Segment, Task, cached, seed_of
from tasks.sized import at_least

PADDLES, SHORT, TRIES = 14, 4, 5  # of a curve, of a distractor; how often a distractor is tried
PADDING = 1  # pixels at the edge that no paddle enters
POINTS = 8  # of a pixel, in each of its axes, that say how much of it a line covers
PIXELS = 2**21  # of all boards that are tried at once
CHUNK = 32  # images that are drawn at once, from one stream of random numbers


class Style(NamedTuple):
    """The Arena's drawing parameters of one size, in pixels."""

    length: int  # of a paddle
    thickness: float
    margins: tuple[int, ...]  # half of the gap between two paddles; one of them per image
    apart: int  # how far the second curve begins from the first
    radius: float  # of a disc
    continuity: float  # how much a curve minds to bend
    distractors: int
    contrast: float  # of every paddle
    target_contrast: float  # and once more of the two curves'


STYLES = {
    32: Style(2, 0.5, (1,), 7, 1.5, 1.0, 5, 2.0, 0.75),
    128: Style(5, 1.5, (2, 3), 20, 3.0, 1.8, 8, 0.9, 1.0),
}


class Drawing(NamedTuple):
    """n images, and what is on them; places are (row, column)."""

    images: Tensor  # (n, size, size) uint8
    labels: Tensor  # (n,) int64
    discs: Tensor  # (n, 2, 2) float32: the centres
    curves: Tensor  # (n, 2, PADDLES, 2, 2) float32: the two ends of each paddle


class Board:
    """How paddles of one length and margin lie on square boards with a blocked edge, which are flat arrays of pixels.

    A direction is one of the K pixels at a distance of length + margin from a pivot. The paddle begins `margin` behind
    its pivot and ends at this pixel, and the next pivot is `margin` behind it. Tables hold offsets from the pivot.
    """

    def __init__(self, size: int, style: Style, margin: int):
        reach = style.length + margin
        self.size, self.span = size, (margin, reach)
        self.edge = 2 * (reach + margin)  # no index leaves the board
        self.width = size + 2 * self.edge
        around = np.mgrid[-self.edge : self.edge + 1, -self.edge : self.edge + 1].reshape(2, -1).T
        distance = np.hypot(*around.T)
        pixels = around[(distance >= reach - 0.5) & (distance < reach + 0.5)]
        self.unit = pixels / np.hypot(*pixels.T)[:, None]  # (K, 2)
        self.ends = np.stack([margin * self.unit, reach * self.unit], 1)  # (K, 2, 2)
        self.next = self.flat((reach + margin) * self.unit)  # (K,)
        self.line = self.flat(np.arange(margin, reach + 1)[:, None] * self.unit[:, None])  # (K, length + 1)
        angle = np.arccos((self.unit @ self.unit.T).clip(-1, 1))
        self.bend = np.cos(np.minimum(style.continuity * angle, np.pi / 2)).round(9) ** 2  # (K, K): weights
        inside = (np.mgrid[:POINTS, :POINTS].reshape(2, -1).T + 0.5) / POINTS - 0.5
        cover = np.stack([self.away(around + point) <= style.thickness / 2 for point in inside]).mean(0)
        self.halo, _ = self.table(around, self.away(around).round(9) <= 2 * margin)  # where no other paddle may come
        self.ink, self.shade = self.table(around, cover)  # (K, most pixels)

    def flat(self, places: np.ndarray) -> np.ndarray:
        """(..., 2) -> (...): index of the nearest pixel."""
        return np.rint(places).astype(np.int64) @ [self.width, 1]

    def away(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) -> (K, N): distances from the K paddles."""
        along = (points @ self.unit.T).T.clip(*self.span)
        return np.hypot(*(points.T[:, None] - along * self.unit.T[..., None]))

    def table(self, around: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places with a value, (K, most), and the values; the largest repeated where a direction has fewer."""
        order = (-values.astype(float)).argsort(1, kind="stable")[:, : (values > 0).sum(1).max()]
        chosen = np.take_along_axis(values, order, 1)
        order = np.where(chosen > 0, order, order[:, :1])
        return self.flat(around[order]), np.take_along_axis(values, order, 1)

    def empty(self, n: int) -> np.ndarray:
        """n boards on which all but the edge is free."""
        blocked = np.ones((n, self.width, self.width), bool)
        free = slice(self.edge + PADDING, -self.edge - PADDING)
        blocked[:, free, free] = False
        return blocked.reshape(n, -1)

    def grow(
        self, blocked: np.ndarray, rows: np.ndarray, pivots: np.ndarray, paddles: int, draws: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Curves from `pivots` on the boards `rows`, which they block. Returns those rows where all paddles found a
        place, with pivots and directions (rows, paddles)."""
        path, turns = np.empty((2, len(rows), paddles), np.int64)
        last = None
        for i in range(paddles):
            free = ~blocked[rows[:, None, None], pivots[:, None, None] + self.line].any(-1)
            weight = (free * (1.0 if last is None else self.bend[last])).cumsum(1)
            pick = (weight <= draws.random((len(rows), 1)) * weight[:, -1:]).sum(1)
            if last is not None:  # only now, as a paddle does not keep its own successor away
                blocked[rows[:, None], path[:, i - 1, None] + self.halo[last]] = True
            kept = weight[:, -1] > 0
            rows, path, turns, last, pivots = rows[kept], path[kept], turns[kept], pick[kept], pivots[kept]
            path[:, i], turns[:, i] = pivots, last
            pivots = pivots + self.next[last]
        blocked[rows[:, None], path[:, -1, None] + self.halo[last]] = True
        return rows, path, turns


@cache
def board(size: int, margin: int) -> Board:
    return Board(size, STYLES[size], margin)


def targets(n: int, on: Board, style: Style, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n boards with two whole curves each: what they block, pivots and directions (n, 2, PADDLES). Where either of the
    two finds no way, both begin anew."""
    found, have, tries = [], 0, max(16, PIXELS // on.width**2)
    while not found or have < n:
        blocked, rows = on.empty(tries), np.arange(tries)
        first = draws.integers(2 * style.apart, on.size - 2 * style.apart, (tries, 2))
        angle = draws.random(tries) * 2 * np.pi
        second = first + style.apart * np.stack([np.sin(angle), np.cos(angle)], 1)
        begin = on.flat(np.stack([first, second]) + on.edge)
        rows, path1, turns1 = on.grow(blocked, rows, begin[0], PADDLES, draws)
        kept, path2, turns2 = on.grow(blocked, rows, begin[1, rows], PADDLES, draws)
        same = np.searchsorted(rows, kept)
        found.append((blocked[kept], np.stack([path1[same], path2], 1), np.stack([turns1[same], turns2], 1)))
        have += len(kept)
    blocked, path, turns = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
    return blocked, path, turns


def draw(n: int, on: Board, style: Style, draws: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The arrays of a Drawing, for one margin."""
    blocked, path, turns = targets(n, on, style, draws)
    image, every = np.zeros(blocked.shape), np.arange(n)

    def paint(rows: np.ndarray, path: np.ndarray, turns: np.ndarray, contrast: float) -> None:
        for pivots, directions in zip(path.T, turns.T, strict=True):
            at = rows[:, None], pivots[:, None] + on.ink[directions]
            image[at] = np.maximum(image[at], contrast * on.shade[directions])

    for curve in range(2):
        paint(every, path[:, curve], turns[:, curve], style.contrast * style.target_contrast)
    for _ in range(style.distractors):
        missing = every
        for _ in range(TRIES):
            tried = blocked[missing]
            begin = on.flat(draws.integers(PADDING, on.size - PADDING, (len(missing), 2)) + on.edge)
            rows, *short = on.grow(tried, np.arange(len(missing)), begin, SHORT, draws)
            paint(missing[rows], *short, style.contrast)
            blocked[missing[rows]] = tried[rows]
            missing = np.delete(missing, rows)
    pivots = np.stack(np.divmod(path, on.width), -1) - on.edge
    curves = pivots[..., None, :] + on.ends[turns]  # (n, 2, PADDLES, 2, 2)
    labels = draws.integers(2, size=n)
    begins = draws.integers(2, size=n)
    ends = np.where(labels == 1, begins, 1 - begins)
    discs = np.stack([curves[every, begins, 0, 0], curves[every, ends, -1, 1]], 1)  # (n, 2, 2)
    image = image.reshape(n, on.width, on.width)[:, on.edge : -on.edge, on.edge : -on.edge].clip(max=1)
    pixels = np.stack(np.mgrid[: on.size, : on.size], -1)
    for disc in discs.transpose(1, 0, 2):
        image = np.where(np.hypot(*np.moveaxis(pixels - disc[:, None, None], -1, 0)) <= style.radius, 1.0, image)
    return np.rint(255 * image).astype(np.uint8), labels, discs, curves


def pathfinder(n: int, size: int, seed: int) -> Drawing:
    """n images of size x size pixels. Raises ValueError for sizes that have no drawing parameters."""
    if size not in STYLES:
        raise ValueError(f"size={size} has no drawing parameters: take one of {', '.join(map(str, STYLES))}")
    style, chunks = STYLES[size], []
    for start in range(0, n, CHUNK):  # whole ones, so that an image is the same however many follow
        draws = np.random.default_rng(seed_of(seed, start))
        margins = draws.integers(len(style.margins), size=CHUNK)
        parts = [draw(int((margins == i).sum()), board(size, m), style, draws) for i, m in enumerate(style.margins)]
        back = margins.argsort(kind="stable").argsort()
        chunks.append([np.concatenate(part)[back] for part in zip(*parts, strict=True)])
    images, labels, discs, curves = (np.concatenate(part)[:n] for part in zip(*chunks, strict=True))
    return Drawing(*map(torch.from_numpy, (images, labels, discs.astype(np.float32), curves.astype(np.float32))))


class Pathfinder(Task):
    """size: 32 or 128; train, validation, test: how many images. Test is sliced by the distance of the discs."""

    look = "image"

    def __init__(self, *, size: int, train: int, validation: int, test: int, **common: int):
        super().__init__(**common)
        self.size, self.sizes = size, {"train": train, "validation": validation, "test": test}
        self._drawings: dict[str, Drawing] = {}

    def drawing(self, split: str) -> Drawing:
        if split not in self._drawings:
            at_least(1, **{split: self.sizes[split]})
            seed = seed_of("pathfinder", self.size, self.seed, split)
            self._drawings[split] = Drawing(*cached(pathfinder, n=self.sizes[split], size=self.size, seed=seed))
        return self._drawings[split]

    def generate(self, split: str) -> list[Segment]:
        drawn, width = self.drawing(split), self.size
        edges = [0, 5 * width // 16, width // 2, 2 * width] if split == "test" else [0, 2 * width]
        apart, made = distances(drawn), []
        for low, high in pairwise(edges):
            chosen = (apart >= low) & (apart < high)
            name = f"discs {low} to {high} apart" if split == "test" else f"{width} x {width} pixels"
            if chosen.any():
                values = {"length": width**2, "distance": apart[chosen].mean().item()}
                made.append(Segment(name, drawn.images[chosen].flatten(1), drawn.labels[chosen], values=values))
        return made

    def baselines(self) -> dict[str, float]:
        """Fitted on the training images: the more frequent label, of all images, of those whose discs are as far apart
        (in pixels), and of those that are as bright (in steps of a hundredth of the mean)."""
        train, test = self.drawing("train"), self.drawing("test")
        bright = [drawn.images.double().mean((1, 2)) for drawn in (train, test)]

        def fitted(seen: Tensor, asked: Tensor) -> float:
            n = int(max(seen.max(), asked.max())) + 1
            ones = torch.bincount(seen, train.labels.double() - 0.5, minlength=n)
            return ((ones[asked] > 0).long() == test.labels).double().mean().item()

        nothing = [torch.zeros_like(drawn.labels) for drawn in (train, test)]
        return {
            "chance": 0.5,
            "majority": fitted(*nothing),
            "the discs' distance": fitted(distances(train).long(), distances(test).long()),
            "brightness": fitted(*((100 * part / bright[0].mean()).long() for part in bright)),
        }


def distances(drawn: Drawing) -> Tensor:
    """(n,) float32: how far the two discs are from each other."""
    return (drawn.discs[:, 0] - drawn.discs[:, 1]).norm(dim=-1)


def picture(path: str, columns: int = 5) -> None:
    """The first images of seed 0: a row for each size and label."""
    from matplotlib.figure import Figure

    figure = Figure((1.4 * columns, 1.5 * 2 * len(STYLES)), layout="constrained")
    axes = iter(figure.subplots(2 * len(STYLES), columns, subplot_kw={"xticks": [], "yticks": []}))
    for size in STYLES:
        drawn = pathfinder(20 * columns, size, seed=0)
        for label, words in ((1, "one curve (1)"), (0, "two curves (0)")):
            row = next(axes)
            row[0].set_ylabel(f"{size} x {size}\n{words}")
            for at, image in zip(row, drawn.images[drawn.labels == label], strict=False):
                at.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("say where: python -m tasks.pathfinder docs/pathfinder.png")
    picture(sys.argv[1])
