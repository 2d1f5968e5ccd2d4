"""Fashion-MNIST (Xiao et al., 2017, https://arxiv.org/abs/1708.07747) pixel by pixel: which of ten kinds of clothing
784 gray values show, row by row.

    g1 g2 g3 ... g784   ->   9, an ankle boot
"""

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from tasks.labelled import Examples, Labelled, official

FILES = {"train": "train-{}-ubyte.gz", "test": "t10k-{}-ubyte.gz"}


def idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in a gzipped idx file. Raises ValueError where it is none of so many dimensions."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no gzip file ({error}): get it again") from error
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    begin = 4 + 4 * dimensions
    total = 1
    for size in sizes:
        total *= size
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) - begin != total or not total:
        raise ValueError(f"{path} is no idx file of bytes in {dimensions} dimensions: get it again")
    return torch.frombuffer(bytearray(data[begin:]), dtype=torch.uint8).view(sizes)


class FashionPixels(Labelled):
    """path: where the four files are, or may be; url, md5: where they come from, and their checksums by name, or None;
    examples: how many they hold; train, validation, test: how many of them. Validation comes out of train.
    """

    classes = 10
    look = "image"

    def __init__(self, *, path: str | None, url: str | None, md5: dict | None, examples: dict, **common):
        super().__init__(**common)
        self.path, self.url, self.md5, self.examples = path, url, md5, examples

    def file(self, split: str, kind: str) -> Path:
        name = FILES[split].format(kind)
        return official(self.path, name, self.md5 and self.md5[name], self.url and f"{self.url}/{name}")

    def prepare_data(self) -> None:
        for split in FILES:
            self.file(split, "images-idx3"), self.file(split, "labels-idx1")

    def load(self) -> dict[str, Examples]:
        pools = {}
        for split, wanted in self.examples.items():
            images, labels = idx(self.file(split, "images-idx3"), 3), idx(self.file(split, "labels-idx1"), 1)
            if not len(images) == len(labels) == wanted:
                raise ValueError(
                    f"{self.path} has {len(images)} images and {len(labels)} labels of {wanted} for {split}"
                )
            pools[split] = Examples(images.flatten(1), labels.long())
        return pools
