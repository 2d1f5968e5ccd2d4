"""Word problems of permutation groups (Barrington, 1989, https://doi.org/10.1016/0022-0000%2889%2990037-8; Merrill
et al., 2024, https://arxiv.org/abs/2404.08819; Grazzi et al., 2024, https://arxiv.org/abs/2411.12537): every token
is an element of the group, and every target the product so far. S3 is a solvable group; the problems of A5 and S5
are complete for NC1.

    tokens   213 132 213       S3, elements written as what 1 2 3 become
    targets  213 312 321

The first factor acts first. Elements are numbered in lexicographic order: 0 is the identity.
"""

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from tasks.draws import Draws
from tasks.sized import Sized, at_least

GROUPS = {"S3": (3, False), "A5": (5, True), "S5": (5, False)}  # degree, and whether only even permutations count
WINDOW = 8  # of a baseline


@cache
def elements(group: str) -> Tensor:
    """(order of the group, degree) int64: what 0, 1, ... become, in lexicographic order. Raises ValueError for
    groups that are not there.
    """
    if group not in GROUPS:
        raise ValueError(f"group='{group}' is not there: take one of {', '.join(GROUPS)}")
    degree, even = GROUPS[group]
    pairs = [(i, j) for j in range(degree) for i in range(j)]
    found = [p for p in permutations(range(degree)) if not even or sum(p[i] > p[j] for i, j in pairs) % 2 == 0]
    return torch.tensor(found)


@cache
def products(group: str) -> Tensor:
    """(order, order) int64: [a, b] is the number of a followed by b."""
    members = elements(group)
    order, degree = members.shape
    digits = degree ** torch.arange(degree - 1, -1, -1)
    followed = members.expand(order, order, degree).gather(2, members[:, None].expand(order, order, degree))
    return torch.searchsorted(members @ digits, followed @ digits)


def permutation(n: int, length: int, group: str, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, numbers of elements of "S3", "A5" or "S5"."""
    at_least(1, length=length)
    table = products(group)
    tokens = Draws(n, seed).integers(0, len(table), length)
    product, targets = torch.zeros(n, dtype=torch.int64), []
    for token in tokens.T:
        product = table[product, token]
        targets.append(product)
    return tokens, torch.stack(targets, 1)


class Permutation(Sized):
    """train, validation, test: lists of {length, n}."""

    loss_on = "all"

    def __init__(self, *, group: str, **common):
        super().__init__(**common)
        self.group = group

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return permutation(n, length, self.group, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any element; the last 8 elements: their product, which is right at the first 8 tokens."""
        table = products(self.group)

        def window(tokens: Tensor) -> Tensor:
            product = torch.zeros_like(tokens)
            for back in range(WINDOW - 1, -1, -1):
                earlier = tokens.roll(back, 1)
                earlier[:, :back] = 0
                product = table[product, earlier]
            return product

        return {
            "chance": 1 / len(table),
            "the most frequent answer": self.most_frequent(),
            "the element itself": self.accuracy(lambda tokens: tokens),
            f"the last {WINDOW} elements": self.accuracy(window),
        }
