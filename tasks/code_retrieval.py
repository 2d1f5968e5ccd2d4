"""Retrieval in real text: are two stretches of source code from the same file? A stand-in for the Long Range Arena's
retrieval (Tay et al., 2020, https://arxiv.org/abs/2011.04006, section 2.3) that needs no download: the files are the
running interpreter's standard library, and no file is in two splits.

    d e f   p a r s e ( ...
    c l a s s   R e a d ...   ->   1, both are from one file

At the level "any", the other file of a pair with label 0 is any; at the hard level, "directory", it is from the same
directory. Either way a file is as often in pairs of one label as of the other.
"""

import platform
from pathlib import Path

import torch
from torch import Tensor

from tasks.base import SPLITS, Segment, Task, seed_of
from tasks.bytes import split_of
from tasks.code import files, standard_library
from tasks.draws import Draws
from tasks.labelled import Examples, by_threshold, in_both
from tasks.sized import at_least

SHARES = {"validation": 0.15, "test": 0.15}  # of files
LEVELS = ("any", "directory")


def pairs(groups: list[list[Tensor]], n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """n pairs of stretches, (n, 2, length) uint8, and labels: 1 for two of one file that do not overlap, 0 for two of
    two files of one group. Each file (uint8) has 2 * length bytes or more, and each group two files."""
    files, draws = [(group, i) for group in groups for i in range(len(group))], Draws(n, seed)
    labels, made = draws.integers(0, 2), []

    def below(end: int) -> int:
        return int(next(numbers) * end)

    def two(file: Tensor) -> tuple[Tensor, Tensor]:
        early, late = sorted(below(len(file) - 2 * length + 1) for _ in range(2))
        return file[early : early + length], file[late + length : late + 2 * length]

    for label, own in zip(labels.tolist(), draws.uniform(7).tolist(), strict=True):  # as many as a pair may need
        numbers = iter(own)
        group, i = files[below(len(files))]
        a, b = two(group[i])
        if not label:  # the later stretch of another file, so that places say nothing
            b = two(group[(i + 1 + below(len(group) - 1)) % len(group)])[1]
        made.append(torch.stack([a, b] if below(2) else [b, a]))
    return torch.stack(made), labels


class CodeRetrieval(Task):
    """root: a directory of Python sources, or None, the standard library; length: bytes of a stretch; level: "any" or
    "directory", of train and validation; train, validation, test: how many pairs, in test of either level."""

    look = "text"

    def __init__(
        self, *, root: str | None, length: int, level: str, train: int, validation: int, test: int, **common: int
    ):
        super().__init__(**common)
        if level not in LEVELS:
            raise ValueError(f"task.data.level is '{level}': it must be {' or '.join(LEVELS)}")
        self.root, self.length, self.level = Path(root or standard_library()), length, level
        self.sizes = {"train": train, "validation": validation, "test": test}
        self._files: dict[str, dict[str, list[Tensor]]] = {}

    def groups(self, split: str, level: str) -> list[list[Tensor]]:
        """The split's files that are long enough, all together, or those of each directory that has two or more."""
        if not self._files:
            self._files = {kind: {} for kind in SPLITS}
            for path in files(self.root):
                name, data = path.relative_to(self.root), path.read_bytes()
                if len(data) >= 2 * self.length:
                    by_directory = self._files[split_of(name.as_posix(), self.seed, SHARES)]
                    file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                    by_directory.setdefault(name.parent.as_posix(), []).append(file)
        groups = [group for group in self._files[split].values() if len(group) > 1]
        if level == "any":
            groups = [[file for group in self._files[split].values() for file in group]]
        if not groups or len(groups[0]) < 2:
            raise ValueError(f"{self.root} has too few files of {2 * self.length} bytes for a {split} split: add files")
        return groups

    def generate(self, split: str) -> list[Segment]:
        at_least(1, length=self.length, **self.sizes)
        made = []
        for level in LEVELS if split == "test" else (self.level,):
            seed = seed_of("code_retrieval", self.seed, split, level)
            tokens, labels = pairs(self.groups(split, level), self.sizes[split], self.length, seed)
            values = {"length": self.length, "same directory": float(level == "directory")}
            made.append(Segment(f"other file of {level}", tokens, labels, None, values))
        return made

    def baselines(self) -> dict[str, float]:
        """Fitted on train: the more frequent label; whether as many groups of four bytes are in both stretches as
        separates the labels best."""
        train, test = (
            Examples(
                torch.cat([s.tokens for s in self.segments(split)]),
                torch.cat([s.targets for s in self.segments(split)]),
            )
            for split in ("train", "test")
        )
        often = train.labels.bincount().argmax()
        return {
            "chance": 0.5,
            "majority": (test.labels == often).double().mean().item(),
            "groups of four in both": by_threshold(in_both(train), train.labels, in_both(test), test.labels),
        }

    def protocol(self) -> dict:
        return super().protocol() | {"python": platform.python_version()}
