"""Multi-query associative recall, as Zoology defines it (Arora et al., 2023, https://arxiv.org/abs/2312.04927,
section 3 and appendix E.1): keys with their values come first, then each key is asked for once, at a distance drawn
from a power law, in random filler.

    tokens   k1 v1 k2 v2 |  .  k2  .   .  k1  .
    targets   .  .  .  . |  .  v2  .   .  v1  .

Two harder variants are our own. Compositional (key_length 2): a key is two tokens, each of which other keys have too.
Forgetting (rewritten): some keys are written twice, in any order, and the latest value counts.

    tokens   a b v1 a c v2 |  .  .  .  a  b  .        k1 v1 k2 v2 k1 v3 |  k1  .
    targets  . . .  . . .  |  .  .  .  .  v1 .         .  .  .  .  .  . |  v3  .
"""

import math

import torch
from torch import Tensor

from tasks.base import IGNORE, Segment, Task, cached, seed_of
from tasks.draws import Draws

POWER = 0.01  # the exponent of the distances' law: most questions come soon


def recall(
    n: int, length: int, pairs: int, vocabulary: int, seed: int, key_length: int = 1, rewritten: int = 0
) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except under each question's last token.

    Keys are of the tokens 1 ... vocabulary / 2 - 1, values the upper half; filler is any token. `rewritten` of the keys
    are written twice. Raises ValueError where the pairs do not fit.
    """
    half, stride, writes = vocabulary // 2, key_length + 1, pairs + rewritten
    room = (length - stride * writes) // stride
    if pairs < 1 or pairs > half - 1 or writes > vocabulary - half:
        raise ValueError(f"pairs={pairs} need as many keys and values: raise vocabulary={vocabulary} or ask for fewer")
    if room < pairs:
        least = stride * (writes + pairs)
        raise ValueError(f"length={length} has no room for {pairs} pairs and their questions: make it {least}")
    if key_length < 1 or not 0 <= rewritten <= pairs:
        raise ValueError(f"key_length={key_length} must be 1 or more, and rewritten={rewritten} at most pairs={pairs}")
    draws = Draws(n, seed)
    # a key is `key_length` digits of a number, in a base that is as small as leaves half of the numbers unused
    base = half - 1 if key_length == 1 else min(half - 1, math.ceil((2 * pairs) ** (1 / key_length)))
    numbers = draws.distinct(pairs, base**key_length)
    keys = 1 + torch.stack([numbers // base**i % base for i in range(key_length)], 2)  # (n, pairs, key_length)
    values = half + draws.distinct(writes, vocabulary - half)
    tokens = draws.integers(0, vocabulary, length)
    owner, latest = torch.arange(writes).fmod(pairs).expand(n, writes), values
    if rewritten:
        owner = owner.gather(1, draws.distinct(writes, writes))
        places = torch.zeros(n, pairs, dtype=torch.int64)
        latest = values.gather(1, places.scatter_reduce(1, owner, torch.arange(writes).expand(n, writes), "amax"))
    written = torch.cat([keys[torch.arange(n)[:, None], owner], values[..., None]], 2)
    tokens[:, : stride * writes] = written.flatten(1)
    # without replacement, the gap g with weight g^(a - 1): the largest of weight-scaled exponentials (Gumbel's trick)
    weight = (POWER - 1) * torch.arange(1, room + 1, dtype=torch.float64).log()
    gumbel = -torch.log(-torch.log(draws.uniform(room)))
    places = stride * writes + stride * (weight + gumbel).topk(pairs, 1).indices
    targets = torch.full((n, length), IGNORE)
    for i in range(key_length):
        tokens.scatter_(1, places + i, keys[..., i])
    targets.scatter_(1, places + key_length - 1, latest)
    return tokens, targets


class Recall(Task):
    """train, validation, test: lists of {length, pairs, n}; each entry of test is a slice. key_length: tokens of a key;
    rewritten: the share of keys that are written twice.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        key_length: int,
        rewritten: float,
        train: list,
        validation: list,
        test: list,
        **common: int,
    ):
        super().__init__(**common)
        self.vocabulary, self.sizes = vocabulary, {"train": train, "validation": validation, "test": test}
        self.key_length, self.rewritten = key_length, rewritten

    def generate(self, split: str) -> list[Segment]:
        made = []
        for i, size in enumerate(self.sizes[split]):
            length, pairs = size["length"], size["pairs"]
            seed = seed_of("recall", self.seed, split, i)
            more = {"key_length": self.key_length, "rewritten": round(self.rewritten * pairs), "seed": seed}
            sizes = {"n": size["n"], "length": length, "pairs": pairs, "vocabulary": self.vocabulary}
            tokens, targets = cached(recall, **sizes, **more)
            values = {"length": length, "pairs": pairs}
            made.append(Segment(f"length {length}, {pairs} pairs", tokens, targets, values=values))
        return made

    def baselines(self) -> dict[str, float]:
        """chance: any value; in sight: the value of a random pair of the example, as if keys were not read; and where
        keys are written twice, the first value of each."""
        asked = sight = first = 0.0
        for segment in self.segments("test"):
            pairs = int(segment.values["pairs"])
            twice = round(self.rewritten * pairs)
            asked += len(segment) * pairs
            sight += len(segment) * pairs / (pairs + twice)  # each value that is asked for is one of those in sight
            first += len(segment) * (pairs - twice)
        values = self.vocabulary - self.vocabulary // 2
        scores = {"chance": 1 / values, "a value in sight": sight / asked}
        return scores | ({"the key's first value": first / asked} if self.rewritten else {})
