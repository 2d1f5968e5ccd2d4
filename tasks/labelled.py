"""Tasks of real examples with one label each: which of them make which split, and what can be said of them without
learning. Data sets are read as their authors publish them, from files whose checksums and numbers are verified.
"""

import os
import shutil
import tempfile
import urllib.request
from hashlib import file_digest
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.base import SPLITS, Segment, Task, seed_of
from tasks.sized import at_least

BUCKETS = 4096  # of a baseline's groups of four tokens


class Examples(NamedTuple):
    """Tokens (N, T), or (N, 2, T) for pairs, of any integer type; labels (N,) int64; mask as tokens, or None."""

    tokens: Tensor
    labels: Tensor
    mask: Tensor | None = None


class Labelled(Task):
    """train, validation, test: how many examples; they are drawn by `seed`, and those that the authors hold out come
    from nowhere else. A task writes `load` and says how many classes there are.
    """

    classes = 2

    def __init__(self, *, train: int, validation: int, test: int, **common: int):
        super().__init__(**common)
        self.sizes = {"train": train, "validation": validation, "test": test}
        self._parts: dict[str, Examples] = {}

    def load(self) -> dict[str, Examples]:
        """ "train", and "validation" and "test" where the authors have them; else these come out of train."""
        raise NotImplementedError

    def part(self, split: str) -> Examples:
        if not self._parts:
            self._parts = self.divided(self.load())
        return self._parts[split]

    def divided(self, pools: dict[str, Examples]) -> dict[str, Examples]:
        at_least(1, **self.sizes)
        for name, pool in pools.items():
            for label in sorted(set(range(self.classes)) ^ set(pool.labels.unique().tolist())):
                what = "no example of" if label < self.classes else f"besides 0 to {self.classes - 1} the"
                raise ValueError(f"the {name} data have {what} class {label}: get them again")
        parts, taken = {}, dict.fromkeys(pools, 0)
        for split in reversed(SPLITS):
            source = split if split in pools else "train"
            pool, n = pools[source], self.sizes[split]
            order = torch.randperm(
                len(pool.labels), generator=torch.Generator().manual_seed(seed_of(source, self.seed))
            )
            rows = order[taken[source] : taken[source] + n]
            taken[source] += n
            if len(rows) < n:
                raise ValueError(f"task.data.{split}={n} examples are not there: of {len(order)}, {len(rows)} are left")
            parts[split] = Examples(*(None if tensor is None else tensor[rows] for tensor in pool))
        return parts

    def generate(self, split: str) -> list[Segment]:
        tokens, labels, mask = self.part(split)
        length = tokens.shape[-1]
        if split != "test" or mask is None or tokens.dim() == 3:
            return [Segment(f"length {length}", tokens, labels, mask, {"length": length})]
        made, real = [], mask.sum(1)
        for low, high in ((0, length // 4), (length // 4, length // 2), (length // 2, length)):
            rows = (real > low) & (real <= high)
            if rows.any():
                values = {"length": real[rows].double().mean().item()}
                made.append(Segment(f"length {low + 1} to {high}", tokens[rows], labels[rows], mask[rows], values))
        return made

    def baselines(self) -> dict[str, float]:
        """Fitted on train. Counts of tokens, in any order, or the tokens themselves: the class whose mean is nearest.
        Of pairs: whether as many groups of four tokens are in both as separates the labels best."""
        train, test = self.part("train"), self.part("test")
        often = train.labels.bincount().argmax()
        scores = {"chance": 1 / self.classes, "majority": (test.labels == often).double().mean().item()}
        if train.tokens.dim() == 3:
            common = by_threshold(in_both(train), train.labels, in_both(test), test.labels)
            return scores | {"groups of four in both": common}
        width = 1 + int(max(train.tokens.max(), test.tokens.max()))
        scores["nearest mean of counts"] = nearest_mean(counts(train, width), train.labels, counts(test, width), test)
        if train.mask is None:
            scores["nearest mean"] = nearest_mean(train.tokens.float(), train.labels, test.tokens.float(), test)
        return scores


class Archived(Labelled):
    """path: where the authors' archive is, or may be; url, md5: where it comes from, and its checksum, or None;
    examples: how many it holds; train, validation, test: how many of them. A task writes `read`.
    """

    archive = ""

    def __init__(self, *, path: str | None, url: str | None, md5: str | None, examples: dict, **common):
        super().__init__(**common)
        self.path, self.url, self.md5, self.examples = path, url, md5, dict(examples)

    def read(self, path: Path) -> dict[str, Examples]:
        """What `load` says, from the archive."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        official(self.path, self.archive, self.md5, self.url)

    def load(self) -> dict[str, Examples]:
        path = official(self.path, self.archive, self.md5, self.url)
        pools = self.read(path)
        found = {split: len(pool.labels) for split, pool in pools.items()}
        if found != self.examples:
            raise ValueError(f"{path} has {found} examples, not {self.examples}: get it again")
        return pools


def counts(examples: Examples, width: int) -> Tensor:
    """(N, width) float32: which share of an example's real tokens each token has."""
    real = torch.ones(examples.tokens.shape) if examples.mask is None else examples.mask.float()
    tokens = examples.tokens.long()
    return torch.zeros(len(tokens), width).scatter_add_(1, tokens, real) / real.sum(1, keepdim=True)


def nearest_mean(seen: Tensor, labels: Tensor, asked: Tensor, test: Examples) -> float:
    """The share of test whose nearest mean of the seen (N, F) is that of its own class."""
    classes = labels.unique()
    means = torch.stack([seen[labels == label].mean(0) for label in classes])
    return (classes[torch.cdist(asked, means).argmin(1)] == test.labels).double().mean().item()


def in_both(pairs: Examples) -> Tensor:
    """(N,) float: the cosine between the sets of four tokens in a row of the two sequences of each pair."""
    scores = []
    for tokens in pairs.tokens.split(500):
        t = tokens.long()
        groups = (t[..., :-3] * 1009 + t[..., 1:-2] * 9176 + t[..., 2:-1] * 76963 + t[..., 3:] * 530443) % BUCKETS
        present = torch.zeros(*tokens.shape[:2], BUCKETS).scatter_(2, groups, 1.0)
        a, b = present.unbind(1)
        scores.append((a * b).sum(1) / (a.sum(1) * b.sum(1)).sqrt())
    return torch.cat(scores)


def by_threshold(seen: Tensor, labels: Tensor, asked: Tensor, wanted: Tensor) -> float:
    """The accuracy on the asked of "1 above a threshold" that is most often right of the seen."""
    order = seen.argsort()
    right = torch.cat([labels.sum()[None], labels.sum() + (1 - 2 * labels[order]).cumsum(0)])  # the first i are 0
    edges = torch.cat([seen[order][:1] - 1, seen[order]])
    return ((asked > edges[right.argmax()]).long() == wanted).double().mean().item()


def official(directory: str | None, name: str, md5: str | None, url: str | None) -> Path:
    """directory/name, from `url` if it is not there, with its checksum verified. Raises ValueError where it is not to
    be had, or is another file."""
    if directory is None:
        raise ValueError(f"task.data.path is not set: set it to a directory that holds {name}, or may hold it")
    path = Path(directory, name)
    if not path.exists():
        remedy = f"put it there, or set task.data.path to the directory that holds {name}"
        if url is None:
            raise ValueError(f"{path} is not there: {remedy}")
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{name}-") as partial:
                    with Path(partial, name).open("wb") as part:
                        shutil.copyfileobj(answer, part, 2**20)
                    os.replace(part.name, path)
        except OSError as error:
            raise ValueError(f"{path} is not there, and {url} cannot be read ({error}): {remedy}") from error
    if md5 is not None:
        with path.open("rb") as file:
            found = file_digest(file, "md5").hexdigest()
        if found != md5:
            raise ValueError(
                f"{path} is damaged or another version (md5 {found}, not {md5}): remove it and get it again, "
                "or set task.data.md5=null to use it as it is"
            )
    return path
