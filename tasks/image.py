"""The Long Range Arena's image task (Tay et al., 2020, https://arxiv.org/abs/2011.04006, section 2.4): CIFAR-10
(Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf) in gray, 1,024 pixels row by row.

    g1 g2 g3 ... g1024   ->   6, a frog

Gray is 0.2989 R + 0.587 G + 0.114 B, to the nearest integer. Read from the archive of the binary version; validation is
a tenth of train, drawn at random (the Arena takes the last tenth).
"""

import tarfile
from pathlib import Path

import torch
from torch import Tensor

from tasks.labelled import Archived, Examples

ARCHIVE = "cifar-10-binary.tar.gz"
PIXELS = 1024
GRAY = (0.2989, 0.587, 0.114)


def cifar(path: Path) -> dict[str, Examples]:
    """The images, gray, and labels of the archive's files: each image a byte of label and 3 x 1,024 of colours."""
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                if member.name.endswith("_batch.bin") or "/data_batch_" in member.name:
                    file = archive.extractfile(member)
                    data = torch.frombuffer(bytearray(file.read() if file else b""), dtype=torch.uint8)
                    parts["test" if "test" in member.name else "train"].append(data.view(-1, 1 + 3 * PIXELS))
    except (tarfile.TarError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not CIFAR-10's binary archive ({error}): get it again") from error
    if not all(parts.values()):
        raise ValueError(f"{path} holds no data_batch_*.bin or no test_batch.bin: get CIFAR-10's binary version")
    made = {}
    for split, pieces in parts.items():
        data = torch.cat(pieces)
        colours = data[:, 1:].view(-1, 3, PIXELS)
        gray = sum(weight * colours[:, i].float() for i, weight in enumerate(GRAY))
        made[split] = Examples(torch.as_tensor(gray).round().to(torch.uint8), data[:, 0].long())
    return made


class Image(Archived):
    """Validation comes out of train."""

    classes = 10
    look = "image"
    archive = ARCHIVE

    def read(self, path: Path) -> dict[str, Examples]:
        return cifar(path)
