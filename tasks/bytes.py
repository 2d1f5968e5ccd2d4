"""Byte-level language modelling of any text files below a directory, with held-out files.

tokens   C a l l   m e   I s h
targets  a l l   m e   I s h m
"""

import math
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from tasks.base import IGNORE, SPLITS, Segment, Task, seed_of
from tasks.draws import Draws

SHARES = {"validation": 0.05, "test": 0.05}  # of files; the rest is for training


def windows(text: Tensor, n: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n windows at random places of text (uint8): tokens (n, length) int64, targets, one byte later, and places."""
    if len(text) <= length:
        raise ValueError(f"the text has {len(text)} bytes and a window needs {length + 1}: choose a shorter length")
    starts = Draws(n, seed).integers(0, len(text) - length, 1)
    seen = text[starts + torch.arange(length + 1)].long()
    return seen[:, :-1].contiguous(), seen[:, 1:].contiguous(), starts + torch.arange(length)


def split_of(name: str, seed: int, shares: dict[str, float]) -> str:
    """ "train", "validation" or "test": a function of what a thing is called, so that others do not move it."""
    draw = int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:8], "big") / 2**64
    return "test" if draw < shares["test"] else "validation" if draw < sum(shares.values()) else "train"


def found(root: str | None, pattern: str, files: str) -> list[Path]:
    """The files below root whose names match, sorted. Raises ValueError where there is none; `files` says which."""
    if root is None:
        raise ValueError(f"task.data.root is not set: set it to a directory of {files}")
    paths = [path for path in sorted(Path(root).rglob(pattern)) if path.is_file()]
    if not paths:
        raise ValueError(f"no {files} below {root}: set task.data.root to a directory of them")
    return paths


class Bytes(Task):
    """root, pattern: which files; length: bytes of a window; train, validation, test: how many windows of each. Whole
    files are held out.

    packing: None, and files follow each other like one text; "documents", and no file sees the one before it in its
    window, nor predicts the first byte of the next.
    """

    metric = "bits_per_byte"
    loss_on = "all"
    look = "text"
    kind = "bytes"  # a part of every seed

    def __init__(
        self,
        *,
        root: str | None,
        pattern: str,
        length: int,
        packing: str | None,
        train: int,
        validation: int,
        test: int,
        **common: int,
    ):
        super().__init__(**common)
        if packing not in (None, "documents"):
            raise ValueError(f"task.data.packing is '{packing}': it must be documents or null")
        self.root, self.pattern, self.packing = root, pattern, packing
        self.length, self.sizes = length, {"train": train, "validation": validation, "test": test}
        self._texts: dict[str, Tensor] = {}
        self._ends: dict[str, Tensor] = {}  # of files, in bytes

    def files(self) -> list[Path]:
        return found(self.root, self.pattern, f"text files ({self.pattern})")

    def text(self, split: str) -> Tensor:
        """All bytes of the split's files, uint8. A file's split is a function of its path and the seed."""
        if not self._texts:
            parts: dict[str, list[bytes]] = {kind: [] for kind in SPLITS}
            for path in self.files():
                name = path.relative_to(str(self.root)).as_posix()
                parts[split_of(name, self.seed, SHARES)].append(path.read_bytes())
            for kind, pieces in parts.items():
                if not any(pieces):
                    raise ValueError(f"{self.root} has too few files for a {kind} split: add files or change the seed")
                self._ends[kind] = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
                self._texts[kind] = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)
        return self._texts[split]

    def generate(self, split: str) -> list[Segment]:
        seed = seed_of(self.kind, self.seed, split)
        tokens, targets, places = windows(self.text(split), self.sizes[split], self.length, seed)
        files = None
        if self.packing:
            files = 1 + torch.searchsorted(self._ends[split], places, right=True)
            after = 1 + torch.searchsorted(self._ends[split], places + 1, right=True)
            targets = targets.where(files == after, IGNORE)
        return [Segment(f"length {self.length}", tokens, targets, files, {"length": self.length})]

    def baselines(self) -> dict[str, float]:
        """Bits per byte on the test windows of counts (plus one) over the training files: no context, one byte of
        it.
        """
        text = self.text("train").long()
        (test,) = self.segments("test")
        one = 1.0 + torch.bincount(text, minlength=256).double()
        two = 1.0 + torch.bincount(256 * text[:-1] + text[1:], minlength=256 * 256).double().view(256, 256)
        scored = test.targets != IGNORE
        before, after = test.tokens[scored], test.targets[scored]
        unigram = -(one / one.sum()).log2()[after].mean().item()
        bigram = -(two / two.sum(1, keepdim=True)).log2()[before, after].mean().item()
        return {"chance": math.log2(256), "unigram": unigram, "bigram": bigram}
