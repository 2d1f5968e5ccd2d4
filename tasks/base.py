"""What every task is: three disjoint, separately seeded splits of segments, and batches whose order depends on a seed
alone.

Data never come from global random state: the same arguments give the same bytes whatever the mixer, the order of
construction or the number of workers, and a hash per split proves it.
"""

import inspect
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import FunctionType

import lightning as L
import torch
from torch import Tensor

from tasks import draws

IGNORE = -100  # a target that is not scored
SPLITS = ("train", "validation", "test")
Batch = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Segment:
    """Examples of one kind, which are scored together: a slice of a split."""

    name: str
    tokens: Tensor  # (N, T); (N, 2, T) for pairs; any integers: a batch of them is int64
    targets: Tensor  # (N, T) int64, IGNORE where nothing is scored; (N,) for one label per example
    mask: Tensor | None = None  # shaped as tokens: bool, True on real tokens, or int64 numbers of documents
    values: dict[str, float] = field(default_factory=dict)  # where the slice lies: {"length": 64, "pairs": 8}

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Tensor | slice) -> Batch:
        return self.tokens[rows].long(), self.targets[rows], None if self.mask is None else self.mask[rows]


class Batches:
    """Training batches for ever, each from one segment; goes on exactly where a checkpoint left it.

    The order of epoch e is a function of (seed, e) alone. The last incomplete batch of a segment is left out.
    """

    def __init__(self, segments: list[Segment], batch_size: int, seed: int):
        short = [s.name for s in segments if len(s) < batch_size]
        if short:
            raise ValueError(f"the training segment '{short[0]}' has fewer examples than batch_size={batch_size}")
        self.segments, self.batch_size, self.seed = segments, batch_size, seed
        self.done = 0

    def __len__(self) -> int:
        return 10**12  # so that Lightning fetches no batch ahead of the checkpoint that counts it

    def __iter__(self) -> Iterator[Batch]:
        per_epoch = sum(len(s) // self.batch_size for s in self.segments)
        while True:
            epoch, start = divmod(self.done, per_epoch)
            for segment, rows in self.order(epoch)[start:]:
                self.done += 1
                yield segment.batch(rows)

    def order(self, epoch: int) -> list[tuple[Segment, Tensor]]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        batches = []
        for segment in self.segments:
            rows = torch.randperm(len(segment), generator=generator)
            kept = len(segment) // self.batch_size * self.batch_size
            batches += [(segment, part) for part in rows[:kept].split(self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class InOrder:
    """A segment's batches from first to last, once."""

    def __init__(self, segment: Segment, batch_size: int):
        self.segment, self.batch_size = segment, batch_size

    def __len__(self) -> int:
        return -(-len(self.segment) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.segment), self.batch_size):
            yield self.segment.batch(slice(start, start + self.batch_size))


class Task(L.LightningDataModule):
    """A data module over segments. A task writes `generate` and `baselines`.

    seed is the data's own; order_seed, the run's, moves nothing but the order of training batches.
    """

    metric = "accuracy"  # or "bits_per_byte"
    loss_on = "answers"  # or "all": which targets are scored
    look: str | tuple[str, ...] = "numbers"  # of an example: or "text", "image", or a word for each token

    def __init__(self, *, seed: int, order_seed: int, batch_size: int):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"task.data.batch_size={batch_size}: it must be at least 1")
        self.seed, self.order_seed, self.batch_size = seed, order_seed, batch_size
        self._segments: dict[str, list[Segment]] = {}

    def generate(self, split: str) -> list[Segment]:
        """The split "train", "validation" or "test": a function of the task's own arguments and nothing else."""
        raise NotImplementedError

    def baselines(self) -> dict[str, float]:
        """What needs no learning, in the task's metric, computed on the test split; "chance" comes first."""
        raise NotImplementedError

    def protocol(self) -> dict:
        """What must be equal between compared runs and is not in the hashes."""
        return {"task": type(self).__name__, "batch_size": self.batch_size, "loss_on": self.loss_on}

    def segments(self, split: str) -> list[Segment]:
        if split not in self._segments:
            self._segments[split] = self.generate(split)
        return self._segments[split]

    def hashes(self) -> dict[str, str]:
        """sha256 of each split's bytes, names and shapes included."""
        return {split: digest(self.segments(split)) for split in SPLITS}

    def overlap(self) -> dict[str, float]:
        """The share of validation's examples whose tokens also occur in training, and of test's in either of them."""
        seen: set[bytes] = set()
        shares = {}
        for split in SPLITS:
            rows = [sha256(row.numpy()).digest() for s in self.segments(split) for row in s.tokens.contiguous()]
            shares[split] = sum(row in seen for row in rows) / len(rows)
            seen.update(rows)
        return {split: shares[split] for split in SPLITS[1:]}

    def train_dataloader(self) -> Batches:
        return Batches(self.segments("train"), self.batch_size, self.order_seed)

    def val_dataloader(self) -> list[InOrder]:
        return [InOrder(segment, self.batch_size) for segment in self.segments("validation")]

    def test_dataloader(self) -> list[InOrder]:
        return [InOrder(segment, self.batch_size) for segment in self.segments("test")]


def seed_of(*key: object) -> int:
    """A 63-bit seed that is a function of the key."""
    return int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big") >> 1


def cached(make: FunctionType, **arguments: object) -> tuple[Tensor, ...]:
    """make(**arguments), kept in a file under $SEQMIX_CACHE, or ~/.cache/seqmix; in none if that is empty. For what
    takes ten seconds or more to make, at published sizes; what takes less is made again.

    Its name is a hash of the function, the arguments and the source of the function's module and of tasks.draws. It
    appears whole or not at all, so that many processes may begin at once; one that has not the hash it begins with is
    made again.
    """
    place = os.environ.get("SEQMIX_CACHE", "~/.cache/seqmix")
    if not place:
        return make(**arguments)
    source = [inspect.getsource(module) for module in (sys.modules[make.__module__], draws)]
    key = seed_of(make.__module__, make.__name__, sorted(arguments.items()), source)
    path = Path(place).expanduser() / f"{make.__name__}-{key:016x}.pt"
    saved = path.read_bytes() if path.exists() else b""
    if saved and sha256(saved[32:]).digest() == saved[:32]:
        return torch.load(io.BytesIO(saved[32:]), weights_only=True)
    made, buffer = tuple(make(**arguments)), io.BytesIO()
    torch.save(made, buffer)
    with suppress(OSError):  # a full or read-only disk: made, but not kept
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as partial:
            with Path(partial, path.name).open("wb") as part:
                part.write(sha256(buffer.getbuffer()).digest())
                part.write(buffer.getbuffer())
            os.replace(part.name, path)
    return made


def digest(segments: list[Segment]) -> str:
    """sha256 over names, shapes, dtypes and bytes."""
    total = sha256()
    for segment in segments:
        total.update(segment.name.encode())
        for tensor in (segment.tokens, segment.targets, segment.mask):
            if tensor is not None:
                total.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()
