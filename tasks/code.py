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

from tasks.base import Segment, Task, seed_of

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
SHARES = {"validation": 0.05, "test": 0.05}  # of files; the rest is for training


def files(root: Path) -> list[Path]:
    """The Python sources below root that are not tests, sorted. Raises ValueError where there is none."""
    found = [p for p in sorted(root.rglob("*.py")) if not SKIPPED & set(p.relative_to(root).parts[:-1])]
    if not found:
        raise ValueError(f"no Python sources below {root}: set task.data.root to a directory of .py files")
    return found


def windows(text: Tensor, n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """n windows at random places of text (uint8): tokens (n, length) int64, and targets, one byte later."""
    if len(text) <= length:
        raise ValueError(f"the text has {len(text)} bytes and a window needs {length + 1}: choose a shorter length")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (n, 1), generator=generator)
    seen = text[starts + torch.arange(length + 1)].long()
    return seen[:, :-1].contiguous(), seen[:, 1:].contiguous()


class Code(Task):
    """length: bytes of a window; train, validation, test: how many windows of each. Whole files are held out."""

    metric = "bits_per_byte"
    loss_on = "all"

    def __init__(self, *, root: str | None, length: int, train: int, validation: int, test: int, **common: int):
        super().__init__(**common)
        self.root = Path(root or sysconfig.get_paths()["stdlib"])
        self.length, self.sizes = length, {"train": train, "validation": validation, "test": test}
        self._texts: dict[str, Tensor] = {}

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
                self._texts[kind] = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)
        return self._texts[split]

    def generate(self, split: str) -> list[Segment]:
        seed = seed_of("code", self.seed, split)
        tokens, targets = windows(self.text(split), self.sizes[split], self.length, seed)
        return [Segment(f"length {self.length}", tokens, targets, values={"length": self.length})]

    def baselines(self) -> dict[str, float]:
        """Bits per byte on the test windows of counts (plus one) over the training files: no context, one byte of
        it.
        """
        text = self.text("train").long()
        (test,) = self.segments("test")
        one = 1.0 + torch.bincount(text, minlength=256).double()
        two = 1.0 + torch.bincount(256 * text[:-1] + text[1:], minlength=256 * 256).double().view(256, 256)
        unigram = -(one / one.sum()).log2()[test.targets].mean().item()
        bigram = -(two / two.sum(1, keepdim=True)).log2()[test.tokens, test.targets].mean().item()
        return {"chance": math.log2(256), "unigram": unigram, "bigram": bigram}

    def protocol(self) -> dict:
        return super().protocol() | {"python": platform.python_version()}
