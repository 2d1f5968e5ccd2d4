"""In-context recall of MAD (Poli et al., 2024, https://arxiv.org/abs/2403.17844): keys alternate with their
values, and whenever a key comes again its value is asked for.

    tokens   a 1 b 3 a 1 c 1 b 3
    targets  . . . . 1 . . . 3 .

Every example has its own values. MAD's default is a vocabulary of 16, 128 tokens and 12,800 training examples.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized, at_least


def in_context_recall(
    n: int, length: int, vocabulary: int, seed: int, noise: float = 0.0, noise_vocabulary: int = 0
) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except under keys that have come before.

    Keys are the lower half of the vocabulary, values the upper half; the last key has always come before. With
    noise, any other pair but one is with this probability two noise tokens, the vocabulary's last
    `noise_vocabulary`. Raises ValueError where the sizes do not fit.
    """
    at_least(0, noise_vocabulary=noise_vocabulary)
    at_least(2 + noise_vocabulary, vocabulary=vocabulary)
    if length < 4 or length % 2:
        raise ValueError(f"length={length} does not hold two pairs or more: make it {max(4, length + length % 2)}")
    if not 0 <= noise < 1:
        raise ValueError(f"noise={noise} is not a share below 1: make it 0 or more and less than 1")
    if noise and not noise_vocabulary:
        raise ValueError(f"noise={noise} needs tokens of its own: make noise_vocabulary 1 or more")
    draws = Draws(n, seed)
    pairs, content = length // 2, vocabulary - noise_vocabulary
    half = content // 2
    keys = draws.integers(0, half, pairs)
    value_of = draws.integers(half, content, half)
    noisy = draws.uniform(pairs) < noise
    noisy[:, -1] = False
    noisy.scatter_(1, draws.integers(0, pairs - 1, 1), False)
    again = draws.uniform(pairs - 1).masked_fill(noisy[:, :-1], -1).argmax(1, keepdim=True)
    keys[:, -1:] = keys.gather(1, again)
    values = value_of.gather(1, keys)
    order = torch.arange(pairs).expand(n, pairs)
    first = torch.full((n, half), pairs).scatter_reduce(1, keys, order.masked_fill(noisy, pairs), "amin")
    asked = ~noisy & (first.gather(1, keys) < order)
    tokens = torch.stack([keys, values], 2)
    if noise:
        tokens = draws.integers(content, vocabulary, pairs, 2).where(noisy[..., None], tokens)
    targets = torch.full_like(tokens, IGNORE)
    targets[..., 0] = values.where(asked, IGNORE)
    return tokens.flatten(1), targets.flatten(1)


class InContextRecall(Sized):
    """train, validation, test: lists of {length, n}."""

    def __init__(self, *, vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary = vocabulary

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return in_context_recall(n, length, self.vocabulary, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any value; the value before: that of the pair before."""
        return {
            "chance": 1 / (self.vocabulary - self.vocabulary // 2),
            "the most frequent answer": self.most_frequent(),
            "the value before": self.accuracy(lambda tokens: tokens.roll(1, 1)),
        }
