"""Dyck words of bounded depth (Hewitt et al., 2020, https://arxiv.org/abs/2010.07515): at every token, which kind
of bracket is open innermost and may be closed next, or that none is open.

    tokens   ( [ ] ( ) ) [ ]
    targets  ( [ ( ( ( . [ .      "." for none
"""

import torch
from torch import Tensor

from tasks.draws import Draws
from tasks.sized import Sized, at_least, latest


def dyck(n: int, length: int, kinds: int, depth: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64.

    Of k kinds, the tokens 0 ... k - 1 open and k ... 2 k - 1 close; the target k says that none is open. Where
    both are possible, with at most `depth` open and all closed at the end, opening and closing are equally likely.
    Raises ValueError where no word has this length.
    """
    at_least(1, kinds=kinds)
    at_least(1, depth=depth)
    if length < 2 or length % 2:
        raise ValueError(f"length={length} is no number of brackets that close: make it {max(2, length + 1)}")
    draws = Draws(n, seed)
    kind = draws.integers(0, kinds, length)
    coin = draws.uniform(length) < 0.5
    stack, level = torch.full((n, depth + 1), kinds), torch.zeros(n, 1, dtype=torch.int64)  # the lowest says none
    tokens, targets = [], []
    for t in range(length):
        opens = ((level == 0) | coin[:, t : t + 1]) & (level < depth) & (level < length - t - 1)
        tokens.append(kind[:, t : t + 1].where(opens, kinds + stack.gather(1, level)))
        level = level + opens.long()
        stack = stack.scatter(1, level, kind[:, t : t + 1].where(opens, stack.gather(1, level)))
        level = level - (~opens).long()
        targets.append(stack.gather(1, level))
    return torch.cat(tokens, 1), torch.cat(targets, 1)


class Dyck(Sized):
    """train, validation, test: lists of {length, depth, n}."""

    loss_on = "all"

    def __init__(self, *, kinds: int, **common):
        super().__init__(**common)
        self.kinds = kinds

    def draw(self, n: int, seed: int, length: int, depth: int) -> tuple[Tensor, Tensor]:
        return dyck(n, length, self.kinds, depth, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any kind, or none; the last bracket opened: as if nothing were ever closed."""
        return {
            "chance": 1 / (self.kinds + 1),
            "the most frequent answer": self.most_frequent(),
            "the last bracket opened": self.accuracy(lambda tokens: latest(tokens, tokens < self.kinds)),
        }
