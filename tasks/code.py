"""Byte-level language modelling of real text: the running interpreter's standard library, with held-out files.

tokens   d e f   m a i n
targets  e f   m a i n (
"""

import math
import platform
import sysconfig
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from tasks.base import IGNORE, Segment, Task, seed_of

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
SHARES = {"validation": 0.05, "test": 0.05}  # of files; the rest is for training


def files(root: Path) -> list[Path]:
    """The Python sources below root that are not tests, sorted. Raises ValueError where there is none."""
    found = [p for p in sorted(root.rglob("*.py")) if not SKIPPED & set(p.relative_to(root).parts[:-1])]
    if not found:
        raise ValueError(f"no Python sources below {root}: set task.data.root to a directory of .py files")
    return found


def windows(text: Tensor, n: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n windows at random places of text (uint8): tokens (n, length) int64, targets, one byte later, and places."""
    if len(text) <= length:
        raise ValueError(f"the text has {len(text)} bytes and a window needs {length + 1}: choose a shorter length")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (n, 1), generator=generator)
    seen = text[starts + torch.arange(length + 1)].long()
    return seen[:, :-1].contiguous(), seen[:, 1:].contiguous(), starts + torch.arange(length)


class Code(Task):
    """length: bytes of a window; train, validation, test: how many windows of each. Whole files are held out.

    packing: None, and files follow each other like one text; "documents", and no file sees the one before it in its
    window, nor predicts the first byte of the next.
    """

    metric = "bits_per_byte"
    loss_on = "all"

    def __init__(
        self,
        *,
        root: str | None,
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
        self.packing = packing
        self.root = Path(root or sysconfig.get_paths()["stdlib"])
        self.length, self.sizes = length, {"train": train, "validation": validation, "test": test}
        self._texts: dict[str, Tensor] = {}
        self._ends: dict[str, Tensor] = {}  # of files, in bytes

    def text(self, split: str) -> Tensor:
        """All bytes of the split's files, uint8. A file's split is a function of its path and the seed."""
        if not self._texts:
            parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
            for path in files(self.root):
                name = path.relative_to(self.root).as_posix()
                draw = int.from_bytes(sha256(f"{self.seed} {name}".encode()).digest()[:8], "big") / 2**64
                held = "test" if draw < SHARES["test"] else "validation" if draw < sum(SHARES.values()) else "train"
                parts[held].append(path.read_bytes())
            for kind, pieces in parts.items():
                if not pieces:
                    raise ValueError(f"{self.root} has too few files for a {kind} split: add files or change the seed")
                self._ends[kind] = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
                self._texts[kind] = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)
        return self._texts[split]

    def generate(self, split: str) -> list[Segment]:
        seed = seed_of("code", self.seed, split)
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

    def protocol(self) -> dict:
        return super().protocol() | {"python": platform.python_version()}
