"""ListOps of the Long Range Arena (Nangia and Bowman, 2018, https://arxiv.org/abs/1804.06028; Tay et al., 2020,
https://arxiv.org/abs/2011.04006, section 2.1): the value of a nested expression, one of ten digits, from all of its
tokens.

    [MAX 2 9 [MIN 4 7 ] 0 ]   ->   9

MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10). The trees are the Arena's: below the depth limit
a node is a digit with probability 3/4, else an operator with 2 to 10 children; kept if min_length < tokens <
max_length.
"""

from collections import Counter
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.base import Segment, Task, cached, seed_of
from tasks.draws import GAMMA, Draws, mixed
from tasks.sized import at_least

OPERATORS = ("MIN", "MAX", "MED", "SM")
WORDS = [*map(str, range(10)), *(f"[{name}" for name in OPERATORS), "]", "pad"]
CLOSE, PAD = 14, 15
MAX_DEPTH, MAX_CHILDREN, DIGIT = 10, 10, 0.75
BLOCK = 4096  # trees that are grown at once
PATIENCE = 100_000  # trees in a row that are of no use


def value_of(operator: int, children: list[int]) -> int:
    """What an operator (0 ... 3, as in OPERATORS) makes of digits."""
    if operator == 0:
        return min(children)
    if operator == 1:
        return max(children)
    if operator == 2:
        ordered, half = sorted(children), len(children) // 2
        return ordered[half] if len(children) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return sum(children) % 10


class Level(NamedTuple):
    """The nodes at one depth of many trees, tree by tree; the children of each lie side by side in the next level."""

    tree: np.ndarray  # to which a node belongs
    token: np.ndarray  # a digit, or ten plus an operator
    children: np.ndarray  # how many: 0 for a digit

    def first(self) -> np.ndarray:
        """Where each operator's children begin, and of all operators' together the end."""
        return np.concatenate([[0], self.children[self.children > 0].cumsum()])


def grown(seed: int, start: int, min_length: int, max_length: int) -> list[Level]:
    """The trees number `start` to `start + BLOCK` that have a wanted length, each a function of seed and number: a
    node's random bits are a hash of its parent's and of which child it is."""
    bits, tree = Draws(BLOCK, seed, first=start).state, np.arange(BLOCK)
    lengths, levels = np.ones(BLOCK, np.int64), []
    for depth in range(1, MAX_DEPTH + 1):
        uniform = (bits >> np.uint64(11)) * 2.0**-53
        digit = uniform >= (1 - DIGIT if depth < MAX_DEPTH else 0)
        # what is left of a draw is uniform again: it says which digit, or which operator and how many children
        share = uniform
        if depth < MAX_DEPTH:
            share = np.where(digit, (uniform - (1 - DIGIT)) / DIGIT, uniform / (1 - DIGIT))
        choice = (share * np.where(digit, 10, len(OPERATORS) * (MAX_CHILDREN - 1))).astype(np.int64)
        token = np.where(digit, choice, 10 + choice % len(OPERATORS))
        children = np.where(digit, 0, 2 + choice // len(OPERATORS))
        levels.append(Level(tree, token, children))
        lengths += np.bincount(tree, children + ~digit, BLOCK).astype(np.int64)  # and a bracket
        wanted = children * (lengths < max_length)[tree]  # no more of what is too long already
        which = np.arange(wanted.sum()) - np.repeat(wanted.cumsum() - wanted, wanted)
        bits, tree = mixed(np.repeat(bits, wanted) + (which + 1).astype(np.uint64) * GAMMA), np.repeat(tree, wanted)
    kept = (min_length < lengths) & (lengths < max_length)
    return [Level(*(part[kept[level.tree]] for part in level)) for level in levels]


def evaluated(levels: list[Level]) -> list[np.ndarray]:
    """The value of every node, from the leaves to the roots."""
    values = [levels[-1].token]
    for level in levels[-2::-1]:
        below, own, inner = values[0], level.token.copy(), level.children > 0
        if inner.any():
            first, last = level.first()[:-1], level.first()[1:] - 1
            ordered = np.sort(np.repeat(np.arange(len(first)), level.children[inner]) * 16 + below) % 16
            middle = (ordered[(first + last) // 2] + ordered[(first + last + 1) // 2]) // 2
            total = np.add.reduceat(below, first) % 10
            own[inner] = np.choose(own[inner] - 10, [ordered[first], ordered[last], middle, total])
        values.insert(0, own)
    return values


def written(levels: list[Level]) -> list[bytes]:
    """The trees' tokens, in the order of their roots."""
    sizes = [np.ones(len(levels[-1].token), np.int64)]
    for level in levels[-2::-1]:
        total = np.concatenate([[0], sizes[0].cumsum()])[level.first()]
        own = np.ones(len(level.token), np.int64)
        own[level.children > 0] = 2 + np.diff(total)
        sizes.insert(0, own)
    ends = sizes[0].cumsum()
    tokens, places = np.full(sizes[0].sum(), CLOSE, np.uint8), ends - sizes[0]  # brackets are where nothing else is
    for level, below in zip(levels, [*sizes[1:], None], strict=True):
        tokens[places] = level.token
        if below is not None:
            before = below.cumsum() - below  # of the same level's nodes
            inner = level.children > 0
            skipped = np.repeat(before[level.first()[:-1]], level.children[inner])
            places = np.repeat(places[inner] + 1, level.children[inner]) + before - skipped
    text = tokens.tobytes()
    return [text[end - size : end] for size, end in zip(sizes[0].tolist(), ends.tolist(), strict=True)]


def listops(
    n: int, min_length: int, max_length: int, balanced: bool, seed: int, taken: set[bytes]
) -> list[tuple[bytes, int]]:
    """n different trees and their values, none of them in `taken`, to which they are added; if balanced, as many of
    each value.
    """
    if not 3 <= min_length < max_length - 1:
        raise ValueError(f"no tree has more than {min_length} and fewer than {max_length} tokens: widen the bounds")
    made: list[tuple[bytes, int]] = []
    wanted = [n // 10 + (value < n % 10) if balanced else n for value in range(10)]
    start = useful = 0  # useful: the last block with a tree that was kept
    while len(made) < n:
        levels = grown(seed, start, min_length, max_length)
        for text, value in zip(written(levels), evaluated(levels)[0].tolist(), strict=True):
            if len(made) < n and wanted[value] and text not in taken:
                wanted[value] -= 1
                useful = start
                taken.add(text)
                made.append((text, value))
        start += BLOCK
        if start - useful > PATIENCE:
            raise ValueError(f"there are too few trees of {min_length} to {max_length} tokens: widen the bounds")
    return made


def forest(
    sizes: dict[str, int], min_length: int, max_length: int, balanced: bool, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All splits' trees, none of them in two, in the order of `sizes`: tokens one after the other, lengths, values."""
    taken: set[bytes] = set()
    made: list[tuple[bytes, int]] = []
    for kind, n in sizes.items():
        made += listops(n, min_length, max_length, balanced, seed_of("listops", seed, kind), taken)
    tokens = torch.frombuffer(bytearray(b"".join(text for text, _ in made)), dtype=torch.uint8)
    return tokens, torch.tensor([len(text) for text, _ in made]), torch.tensor([value for _, value in made])


def partial_value(text: bytes, depth: int) -> int:
    """The value when operators more than `depth` below the root are left out with all they hold; -1 if nothing is
    left.
    """
    tokens = np.frombuffer(text, np.uint8)
    close = tokens == CLOSE
    level = ((tokens >= 10) & ~close).cumsum() - close.cumsum() + close
    stack: list[tuple[int, list[int]]] = [(0, [])]
    for token in tokens[level <= depth + 1].tolist():
        if token == CLOSE:
            operator, values = stack.pop()
            if values:
                stack[-1][1].append(value_of(operator, values))
        elif token >= 10:
            stack.append((token - 10, []))
        else:
            stack[-1][1].append(token)
    return stack[0][1][0] if stack[0][1] else -1


class ListOps(Task):
    """min_length, max_length: exclusive bounds on tokens; balanced: as many trees of each value; train, validation,
    test: how many trees. Padded on the right.
    """

    look = tuple(WORDS)

    def __init__(
        self,
        *,
        min_length: int,
        max_length: int,
        balanced: bool,
        train: int,
        validation: int,
        test: int,
        **common: int,
    ):
        super().__init__(**common)
        self.balanced = balanced
        self.bounds, self.sizes = (min_length, max_length), {"train": train, "validation": validation, "test": test}
        self._trees: dict[str, list[tuple[bytes, int]]] = {}

    def trees(self, split: str) -> list[tuple[bytes, int]]:
        if not self._trees:
            at_least(1, **self.sizes)
            sizes = {kind: self.sizes[kind] for kind in ("test", "validation", "train")}
            low, high = self.bounds
            facts = {"min_length": low, "max_length": high, "balanced": self.balanced, "seed": self.seed}
            tokens, lengths, values = cached(forest, sizes=sizes, **facts)
            texts = iter(zip(tokens.split(lengths.tolist()), values.tolist(), strict=True))
            for kind, n in sizes.items():
                self._trees[kind] = [(bytes(text.numpy()), value) for text, value in islice(texts, n)]
        return self._trees[split]

    def generate(self, split: str) -> list[Segment]:
        trees, width = self.trees(split), self.bounds[1]
        made, edges = [], [0, width]
        if split == "test":  # by length, in four slices
            low = self.bounds[0]
            edges = [low + (width - low) * i // 4 for i in range(4)] + [width - 1]
        for low, high in zip(edges, edges[1:], strict=False):
            chosen = [(text, value) for text, value in trees if low < len(text) <= high] if split == "test" else trees
            if not chosen:
                continue
            tokens = torch.full((len(chosen), width), PAD)
            for row, (text, _) in enumerate(chosen):
                tokens[row, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
            targets = torch.tensor([value for _, value in chosen])
            name = f"length {low + 1} to {high}" if split == "test" else f"length below {width}"
            made.append(Segment(name, tokens, targets, tokens != PAD, {"length": (low + high) / 2}))
        return made

    def baselines(self) -> dict[str, float]:
        """Predictors fitted on the training trees and scored on the test trees. "operators to depth d": the value of
        the tree without what lies deeper, and for each such value and root operator the most frequent answer."""
        train, test = self.trees("train"), self.trees("test")

        def fitted(feature) -> float:
            counts: dict = {}
            for text, value in train:
                counts.setdefault(feature(text), Counter())[value] += 1
            overall = Counter(value for _, value in train)
            guess = {key: count.most_common(1)[0][0] for key, count in counts.items()}
            common = overall.most_common(1)[0][0]
            return sum(guess.get(feature(text), common) == value for text, value in test) / len(test)

        scores = {"chance": 1 / 10, "majority": fitted(lambda text: 0), "root operator": fitted(lambda text: text[0])}
        for depth in (1, 2, 3):
            scores[f"operators to depth {depth}"] = fitted(lambda text, d=depth: (text[0], partial_value(text, d - 1)))
        return scores
