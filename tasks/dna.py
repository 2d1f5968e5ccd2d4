"""Language modelling of DNA, in bits per base, against how far back a model can see (as in Nguyen et al., 2023,
https://arxiv.org/abs/2306.15794, section 4.1, who measure perplexity against the length of the context).

    tokens   A C G T T N A        0 1 2 3 3 4 0
    targets  C G T T . A C        1 2 3 3 . 0 1

Sequences come from FASTA files; N, and every other letter for an unknown base, is a token but not a target. Whole
blocks of every sequence are held out. The slices of test ask for the same bases, the last of each window, with more and
more bases before them. Repeats and the other strand may still occur in two splits.
"""

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

from tasks.base import IGNORE, SPLITS, Segment, Task, seed_of
from tasks.bytes import found, split_of
from tasks.draws import Draws

BASES, UNKNOWN = b"ACGT", 4
LETTERS = b"ACGTUNRYSWKMBDHV-"  # of nucleic acids, as IUPAC has them
SHARES = {"validation": 0.1, "test": 0.1}  # of blocks
ORDERS = (0, 3, 7)  # bases that the baselines look back at
MOST_UNKNOWN = 0.1  # of a window
TRIES = 100  # for a window of known bases


def fasta(path: Path) -> dict[str, Tensor]:
    """The sequences by the first word of their header: bases 0 to 3, and 4 where unknown, uint8. Plain or gzipped."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    before, *records = data.split(b">")
    if before.strip() or not records:
        raise ValueError(f"{path} does not begin with >: it is no FASTA file")
    codes = torch.full((256,), 255, dtype=torch.uint8)
    codes[list(LETTERS)] = UNKNOWN
    codes[list(BASES)] = torch.arange(4, dtype=torch.uint8)
    codes[ord("U")] = codes[ord("T")]
    sequences = {}
    for record in records:
        header, _, body = record.partition(b"\n")
        name = (header.split() or [b""])[0].decode(errors="replace")
        letters = b"".join(body.split()).upper()
        bases = codes[torch.frombuffer(bytearray(letters), dtype=torch.uint8).long()] if letters else codes[:0]
        if name in sequences or not len(bases):
            raise ValueError(f"{path} has the sequence '{name}' {'twice' if name in sequences else 'without bases'}")
        if (bases == 255).any():
            odd = chr(letters[int((bases == 255).int().argmax())])
            raise ValueError(f"{path} has the letter '{odd}' in the sequence '{name}': it is no nucleic acid")
        sequences[name] = bases
    return sequences


class Dna(Task):
    """root, pattern: which FASTA files; length: bases of a training window; block: bases that are held out together;
    contexts: how many bases of a test window are seen, one slice each; scored: how many of its last are asked for;
    train, validation, test: how many windows."""

    metric = "bits_per_byte"  # a token is a base
    loss_on = "all"
    look = tuple("ACGTN")

    def __init__(
        self,
        *,
        root: str | None,
        pattern: str,
        length: int,
        block: int,
        contexts: list,
        scored: int,
        train: int,
        validation: int,
        test: int,
        **common: int,
    ):
        super().__init__(**common)
        self.root, self.pattern, self.length, self.block = root, pattern, length, block
        self.contexts, self.scored = sorted(contexts), scored
        self.sizes = {"train": train, "validation": validation, "test": test}
        if not 1 <= scored <= self.contexts[0]:
            raise ValueError(f"scored={scored} bases do not fit into the shortest of contexts={self.contexts}")
        if max(length, self.contexts[-1]) >= block:
            raise ValueError(
                f"block={block} is shorter than a window and its target: make it longer, or the windows shorter"
            )
        self._blocks: dict[str, list[Tensor]] = {}

    def blocks(self, split: str) -> list[Tensor]:
        """The split's blocks of bases. A block's split is a function of its file, sequence, place and the seed."""
        if not self._blocks:
            parts: dict[str, list[Tensor]] = {kind: [] for kind in SPLITS}
            for path in found(self.root, self.pattern, f"FASTA files ({self.pattern})"):
                for name, bases in fasta(path).items():
                    for i, part in enumerate(bases.split(self.block)):
                        parts[split_of(f"{path.name} {name} {i}", self.seed, SHARES)].append(part)
            self._blocks = parts
        return self._blocks[split]

    def windows(self, split: str, length: int) -> Tensor:
        """(n, length + 1) int64, from places that are uniform among those that the blocks have; few bases unknown."""
        n, blocks = self.sizes[split], [block for block in self.blocks(split) if len(block) > length]
        if not blocks:
            raise ValueError(f"no block of the {split} split has {length + 1} bases: choose a shorter block or window")
        bases, draws = torch.cat(blocks), Draws(n, seed_of("dna", self.seed, split))
        sizes = torch.tensor([len(block) - length for block in blocks])  # places of each
        begins = torch.tensor([0, *map(len, blocks[:-1])]).cumsum(0)
        kept, missing = torch.empty(n, length + 1, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
        for _ in range(TRIES):
            places = draws.integers(0, int(sizes.sum()))
            block = torch.searchsorted(sizes.cumsum(0), places, right=True)
            starts = begins[block] + places - (sizes.cumsum(0) - sizes)[block]
            kept[missing] = bases[starts[missing, None] + torch.arange(length + 1)].long()
            missing = (kept == UNKNOWN).double().mean(1) > MOST_UNKNOWN
            if not missing.any():
                return kept
        raise ValueError(f"the {split} split has hardly a window of {length} known bases: look at {self.root}")

    def generate(self, split: str) -> list[Segment]:
        seen = self.windows(split, self.contexts[-1] if split == "test" else self.length)
        tokens, targets = seen[:, :-1], seen[:, 1:].where(seen[:, 1:] != UNKNOWN, IGNORE)
        if split != "test":
            return [Segment(f"length {self.length}", tokens.contiguous(), targets, None, {"length": self.length})]
        made = []
        for context in self.contexts:
            asked = targets[:, -context:].clone()
            asked[:, : -self.scored] = IGNORE
            values = {"length": context, "context": context}
            made.append(Segment(f"context {context}", tokens[:, -context:].contiguous(), asked, None, values))
        return made

    def baselines(self) -> dict[str, float]:
        """Bits per base of counts (plus one) of what follows the last 0, 3 and 7 bases, over the training blocks."""
        test, scores = self.segments("test")[-1], {"chance": math.log2(4)}
        for order in ORDERS:
            counts = torch.ones(5 ** (order + 1), dtype=torch.float64)
            for block in self.blocks("train"):
                if len(block) > order:
                    counts += torch.bincount(coded(block[None].long(), order)[0], minlength=len(counts))
            counts = counts.view(-1, 5)[:, :4]
            seen = torch.cat([test.tokens, test.targets[:, -1:].clamp(min=0)], 1)
            at = coded(seen, order)[:, -self.scored :]
            share = (counts / counts.sum(1, keepdim=True)).log2()
            asked = test.targets[:, -self.scored :]
            scored = asked != IGNORE
            bits = -share[at // 5, asked.clamp(min=0)]
            scores[f"order {order}"] = bits[scored].mean().item()
        return scores


def coded(bases: Tensor, order: int) -> Tensor:
    """(n, T) -> (n, T - order): each base and the `order` before it as one number, of base 5."""
    return sum(
        (5**i * bases[:, order - i : bases.shape[1] - i] for i in range(order + 1)), torch.zeros((), dtype=torch.int64)
    )
