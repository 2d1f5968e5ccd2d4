"""Associative retrieval (Schlag et al., 2021, https://arxiv.org/abs/2102.11174, section 6.1): how many values a memory
holds, and whether it can overwrite one. Keys are written with their values, and then one of them is asked for. In the
paper's first setting each key is written once and no value comes twice:

    tokens   k1 v1 k2 v2 k3 v3 k2
    targets   .  .  .  .  .  . v2

In its second, twice as many pairs as there are keys are drawn with replacement, and the latest value counts:

    tokens   k1 v1 k2 v2 k1 v3 k2 v1 k1
    targets   .  .  .  .  .  .  .  . v3

The paper gives a model key and value in one step, trains one per number of keys, and scores the squared distance to a
one-hot value; here they are two tokens, a score is an accuracy, and the numbers of keys are slices. The question is one
of the keys that were written, in training and in test (the paper's code asks for fewer keys in its evaluation).
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.sized import Sized, at_least


def associative_retrieval(n: int, keys: int, vocabulary: int, replace: bool, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, 2 * pairs + 1) int64, with as many pairs as keys, or twice as many (replace).

    Keys are the lower half of the vocabulary, values the upper. Raises ValueError where these are too few.
    """
    at_least(1, keys=keys)
    half = vocabulary // 2
    if keys > half:
        raise ValueError(f"keys={keys} need as many values: raise vocabulary={vocabulary} to {2 * keys}")
    generator = torch.Generator().manual_seed(seed)
    written = torch.rand(n, half, generator=generator).argsort(1)[:, :keys]
    if replace:
        written = written.gather(1, torch.randint(keys, (n, 2 * keys), generator=generator))
        values = torch.randint(half, vocabulary, (n, 2 * keys), generator=generator)
    else:
        values = half + torch.rand(n, half, generator=generator).argsort(1)[:, :keys]
    pairs = written.shape[1]
    latest = torch.full((n, half), -1).scatter_reduce(1, written, torch.arange(pairs).expand(n, pairs), "amax")
    asked = torch.rand(n, half, generator=generator).where(latest >= 0, -1.0).argmax(1, keepdim=True)
    tokens = torch.cat([torch.stack([written, values], 2).flatten(1), asked], 1)
    targets = torch.full_like(tokens, IGNORE)
    targets[:, -1:] = values.gather(1, latest.gather(1, asked))
    return tokens, targets


class AssociativeRetrieval(Sized):
    """train, validation, test: lists of {keys, n}; replace: the second setting."""

    def __init__(self, *, vocabulary: int, replace: bool, **common):
        super().__init__(**common)
        self.vocabulary, self.replace = vocabulary, replace

    def draw(self, n: int, seed: int, keys: int) -> tuple[Tensor, Tensor]:
        return associative_retrieval(n, keys, self.vocabulary, self.replace, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any value; in sight: that of a random pair of the example; and, where keys are written again, of a
        random pair with the key."""
        sums = torch.zeros(3, dtype=torch.float64)
        for segment in self.segments("test"):
            keys, values, asked = segment.tokens[:, 0:-1:2], segment.tokens[:, 1::2], segment.tokens[:, -1:]
            right = (values == segment.targets[:, -1:]).double()
            own = (keys == asked).double()
            sums += torch.stack([right.mean(1), (right * own).sum(1) / own.sum(1), torch.ones(len(right))], 1).sum(0)
        scores = {
            "chance": 1 / (self.vocabulary - self.vocabulary // 2),
            "the most frequent answer": self.most_frequent(),
            "the last value": self.accuracy(lambda tokens: tokens.roll(1, 1)),
            "a value in sight": (sums[0] / sums[2]).item(),
        }
        return scores | ({"a value of the key": (sums[1] / sums[2]).item()} if self.replace else {})
