"""The Long Range Arena's text task (Tay et al., 2020, https://arxiv.org/abs/2011.04006, section 2.2): whether a film
review (IMDB; Maas et al., 2011, https://aclanthology.org/P11-1015) is good or bad, byte by byte. A token is a byte plus
one; 0 is padding, on the right; of a longer review the head is kept.

    T h i s   f i l m ...   ->   1, good

Validation is drawn from train; the Arena's is the test set itself. Reviews of one film may be in both, as no film is in
both train and test, but many have several reviews.
"""

import re
import tarfile
from pathlib import Path

import torch
from torch import Tensor

from tasks.labelled import Archived, Examples

ARCHIVE = "aclImdb_v1.tar.gz"
REVIEW = re.compile(r"aclImdb/(train|test)/(neg|pos)/[^/]+\.txt$")


def padded(texts: list[bytes], length: int) -> tuple[Tensor, Tensor]:
    """The first `length` bytes of each text, plus one, (N, length) int16, and a mask of what is real."""
    tokens = torch.zeros(len(texts), length, dtype=torch.int16)
    for row, text in enumerate(texts):
        head = torch.frombuffer(bytearray(text[:length] or b" "), dtype=torch.uint8)
        tokens[row, : len(head)] = 1 + head.to(torch.int16)
    return tokens, tokens > 0


def imdb(path: Path, length: int) -> dict[str, Examples]:
    """The reviews in the authors' archive, by name; label 1 is good."""
    found: dict[str, list[tuple[str, int, bytes]]] = {"train": [], "test": []}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if match := REVIEW.search(member.name):
                    file = archive.extractfile(member)
                    text = file.read() if file else b""
                    found[match[1]].append((member.name, int(match[2] == "pos"), text))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not the archive of IMDB reviews ({error}): get it again") from error
    made = {}
    for split, reviews in found.items():
        reviews.sort()
        labels = torch.tensor([label for _, label, _ in reviews], dtype=torch.int64)
        tokens, mask = padded([text for _, _, text in reviews], length)
        made[split] = Examples(tokens, labels, mask)
    return made


class Text(Archived):
    """length: bytes that are kept of a review. Validation comes out of train."""

    archive = ARCHIVE
    look = "padded text"

    def __init__(self, *, length: int, **common):
        super().__init__(**common)
        self.length = length

    def read(self, path: Path) -> dict[str, Examples]:
        return imdb(path, self.length)
