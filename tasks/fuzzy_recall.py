"""Fuzzy in-context recall of MAD (Poli et al., 2024, https://arxiv.org/abs/2403.17844): keys and values are motifs
of one or more tokens, and whenever a key comes again all of its value is asked for.

    tokens   a b 1 2 3 b 2 a a 3 1 a b 1 2 3 -      three different keys, the first of them twice; - pads
    targets  . . . . . . . . . . . . 1 2 3 . .

MAD's default is a vocabulary of 16, 128 tokens and motifs of 1 to 3 tokens; its motifs repeat no token and it pads
on the left.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, at_least, latest


def fuzzy_recall(n: int, length: int, motif: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except before a value that comes again.

    Motifs have 1 ... motif tokens, all sizes equally likely. The last token of the vocabulary pads; of the others
    the lower half makes keys and the upper half values. At least one key comes again. Raises ValueError where two
    pairs do not fit.
    """
    at_least(1, motif=motif)
    at_least(3, vocabulary=vocabulary)
    sure = length // (2 * motif)  # so many pairs fit, however long they are
    if sure < 2:
        raise ValueError(f"length={length} has no room for two pairs of motifs of {motif}: make it {4 * motif}")
    draws = Draws(n, seed)
    pad, half, shape = vocabulary - 1, (vocabulary - 1) // 2, (n, length // 2, motif)
    every = torch.arange(motif)
    keys, values = (draws.integers(*bounds, *shape[1:]) for bounds in ((0, half), (half, pad)))
    in_key, in_value = (every < draws.integers(1, motif + 1, shape[1], 1) for _ in range(2))
    again = draws.integers(0, sure - 1)
    for of_keys in (keys, in_key):
        of_keys[:, sure - 1] = of_keys[torch.arange(n), again]
    first = first_alike(((keys + 1) * in_key * (half + 1) ** every).sum(2))
    rows = torch.arange(n)[:, None]
    values, in_value = values[rows, first], in_value[rows, first]
    ends = (in_key.sum(2) + in_value.sum(2)).cumsum(1)[..., None]
    begins = ends - in_value.sum(2, keepdim=True)  # of values
    fits = ends <= length
    tokens, targets = torch.full((n, length + 1), pad), torch.full((n, length + 1), IGNORE)  # one place for what is not

    def put(where: Tensor, places: Tensor, what: Tensor, into: Tensor) -> None:
        into.scatter_(1, places.where(where, length).flatten(1), what.flatten(1))

    put(in_key & fits, begins - in_key.sum(2, keepdim=True) + every, keys, tokens)
    put(in_value & fits, begins + every, values, tokens)
    asked = (first < torch.arange(shape[1]))[..., None]
    put(in_value & fits & asked, begins - 1 + every, values, targets)
    return tokens[:, :-1].contiguous(), targets[:, :-1].contiguous()


def first_alike(codes: Tensor) -> Tensor:
    """codes (n, m) int64 -> for every entry the first place in its row that has the same code."""
    ordered, places = codes.sort(dim=1, stable=True)
    begins = torch.arange(codes.shape[1]).repeat(len(codes), 1)
    begins[:, 1:].masked_fill_(ordered[:, 1:] == ordered[:, :-1], 0)
    return torch.empty_like(codes).scatter_(1, places, places.gather(1, begins.cummax(1).values))


class FuzzyRecall(Sized):
    """train, validation, test: lists of {length, motif, n}; motif: the most tokens of a key, and of a value."""

    def __init__(self, *, vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary = vocabulary

    def draw(self, n: int, seed: int, length: int, motif: int) -> tuple[Tensor, Tensor]:
        return fuzzy_recall(n, length, motif, self.vocabulary, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any of the tokens that make values; the last of them: it comes twice."""
        pad = self.vocabulary - 1
        half = pad // 2
        return {
            "chance": 1 / (pad - half),
            "the most frequent answer": self.most_frequent(),
            "the last token of a value": self.accuracy(
                lambda tokens: latest(tokens, (half <= tokens) & (tokens < pad))
            ),
        }
