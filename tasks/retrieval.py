"""The Long Range Arena's retrieval task (Tay et al., 2020, https://arxiv.org/abs/2011.04006, section 2.3; the ACL
Anthology Network, Radev et al., 2013, https://doi.org/10.1007/s10579-012-9211-2): does one paper cite the other? Two
sequences of bytes plus one, padded with 0 on the right; of a longer paper the head is kept.

    A b s t r a c t ...
    I n t r o d u c ...   ->   1, one cites the other

The authors' three tables are read, new_aan_pairs.{train,eval,test}.tsv of the Arena's lra_release.gz (7.7 GB, which is
why nothing is downloaded here): label, two names and two texts per line.
"""

from pathlib import Path

import torch

from tasks.labelled import Examples, Labelled, official
from tasks.text import padded

FILES = {"train": "new_aan_pairs.train.tsv", "validation": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
SOURCE = "https://storage.googleapis.com/long-range-arena/lra_release.gz"


def aan(path: Path, length: int) -> Examples:
    """The pairs of one table. Raises ValueError for a line that is none."""
    labels, texts = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip(b"\r\n").split(b"\t")
            if len(cells) != 5 or cells[0] not in (b"0", b"1", b"0.0", b"1.0"):
                raise ValueError(f"{path}, line {number}, is not a label, two names and two texts: get it again")
            labels.append(int(float(cells[0])))
            texts += cells[3:]
    tokens, mask = padded(texts, length)
    return Examples(tokens.view(-1, 2, length), torch.tensor(labels, dtype=torch.int64), mask.view(-1, 2, length))


class Retrieval(Labelled):
    """path: where the three tables are; md5: their checksums by name, or None; examples: how many pairs train holds, as
    a check, or None; length: bytes that are kept of a paper; train, validation, test: how many pairs.
    """

    look = "padded text"

    def __init__(self, *, path: str | None, md5: dict | None, examples: int | None, length: int, **common):
        super().__init__(**common)
        for name in set(md5 or {}) - set(FILES.values()):
            raise ValueError(f"task.data.md5 names {name}: the tables are {', '.join(FILES.values())}")
        self.path, self.md5, self.examples, self.length = path, md5 or {}, examples, length

    def load(self) -> dict[str, Examples]:
        try:
            paths = {split: official(self.path, name, self.md5.get(name), None) for split, name in FILES.items()}
        except ValueError as error:
            raise ValueError(f"{error}; the tables are in {SOURCE}, below lra_release/tsv_data") from error
        pools = {split: aan(path, self.length) for split, path in paths.items()}
        if self.examples is not None and len(pools["train"].labels) != self.examples:
            raise ValueError(f"{paths['train']} has {len(pools['train'].labels)} pairs, not {self.examples}")
        return pools
