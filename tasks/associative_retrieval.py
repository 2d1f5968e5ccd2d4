"""Associative retrieval (Schlag et al., 2021, https://arxiv.org/abs/2102.11174, section 6.1): how many values a memory
holds, and whether it can overwrite one. Keys are written with their values, and then one of them is asked for. In the
paper's first setting each key is written once and no value comes twice:

    tokens   k1 v1 k2 v2 k3 v3 k2
    targets   .  .  .  .  .  . v2

In its second, twice as many pairs as there are keys are drawn with replacement, and the latest value counts:

    tokens   k1 v1 k2 v2 k1 v3 k2 v1 k1
    targets   .  .  .  .  .  .  .  . v3

The paper gives a model key and value in one step, trains one per number of keys, and scores the squared distance to a
one-hot value; here they are two tokens, a score is an accuracy, and the numbers of keys are slices. Keys that were
written are asked for, in training and in test (the paper's code writes fewer in its evaluation of the second setting);
one of them in the paper, several here, one after the other, so that less training is needed.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE, cached
from tasks.draws import Draws
from tasks.sized import Sized, at_least


def associative_retrieval(
    n: int, keys: int, questions: int, vocabulary: int, replace: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, 2 * pairs + questions) int64, with as many pairs as keys, or twice as many
    (replace). No key is asked for twice; where fewer were written, others are, without a target.

    Keys are the lower half of the vocabulary, values the upper. Raises ValueError where these are too few.
    """
    at_least(1, keys=keys, questions=questions)
    half = vocabulary // 2
    if keys > half:
        raise ValueError(f"keys={keys} need as many values: raise vocabulary={vocabulary} to {2 * keys}")
    if questions > keys:
        raise ValueError(f"questions={questions} are more than keys={keys}: ask for fewer")
    draws = Draws(n, seed)
    written = draws.distinct(keys, half)
    if replace:
        written = written.gather(1, draws.integers(0, keys, 2 * keys))
        values = draws.integers(half, vocabulary, 2 * keys)
    else:
        values = half + draws.distinct(keys, half)
    pairs = written.shape[1]
    latest = torch.full((n, half), -1).scatter_reduce(1, written, torch.arange(pairs).expand(n, pairs), "amax")
    asked = draws.uniform(half).where(latest >= 0, -1.0).topk(questions, 1).indices
    places = latest.gather(1, asked)
    tokens = torch.cat([torch.stack([written, values], 2).flatten(1), asked], 1)
    targets = torch.full_like(tokens, IGNORE)
    targets[:, -questions:] = values.gather(1, places.clamp(min=0)).where(places >= 0, IGNORE)
    return tokens, targets


class AssociativeRetrieval(Sized):
    """train, validation, test: lists of {keys, n}; questions: how many keys are asked for; replace: the second
    setting.
    """

    def __init__(self, *, vocabulary: int, questions: int, replace: bool, **common):
        super().__init__(**common)
        self.vocabulary, self.questions, self.replace = vocabulary, questions, replace

    def draw(self, n: int, seed: int, keys: int) -> tuple[Tensor, Tensor]:
        knobs = {"questions": self.questions, "vocabulary": self.vocabulary, "replace": self.replace}
        tokens, targets = cached(associative_retrieval, n=n, keys=keys, seed=seed, **knobs)
        return tokens, targets

    def baselines(self) -> dict[str, float]:
        """chance: any value; in sight: that of a random pair of the example; and, where keys are written again, of a
        random pair with the key."""
        asked, last = self.questions, -1 - self.questions  # the place of the last value
        sums = torch.zeros(3, dtype=torch.float64)
        for segment in self.segments("test"):
            keys, values = segment.tokens[:, None, :-asked:2], segment.tokens[:, None, 1:-asked:2]
            wanted = segment.targets[:, -asked:, None]  # (n, questions, 1), against (n, 1, pairs)
            right, own = (values == wanted).double(), (keys == segment.tokens[:, -asked:, None]).double()
            shares = torch.stack([right.mean(2), (right * own).sum(2) / own.sum(2), torch.ones(right.shape[:2])])
            sums += shares[:, wanted[..., 0] != IGNORE].sum(1)
        scores = {
            "chance": 1 / (self.vocabulary - self.vocabulary // 2),
            "the most frequent answer": self.most_frequent(),
            "the last value": self.accuracy(lambda tokens: tokens[:, last, None]),
            "a value in sight": (sums[0] / sums[2]).item(),
        }
        return scores | ({"a value of the key": (sums[1] / sums[2]).item()} if self.replace else {})
