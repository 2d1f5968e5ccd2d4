"""Noisy in-context recall of MAD (Poli et al., 2024, https://arxiv.org/abs/2403.17844): keys alternate with their
values, some pairs are noise of other tokens, and whenever a key comes again its value is asked for.

    tokens   a 1 ? ! b 3 ! ! a 1
    targets  . . . . . . . . 1 .

MAD's default is a vocabulary of 32, of which 16 are noise, 128 tokens, and noise in 0.2 of the pairs.
"""

from torch import Tensor

from tasks.in_context_recall import in_context_recall
from tasks.sized import Sized, latest


def noisy_recall(
    n: int, length: int, vocabulary: int, noise_vocabulary: int, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64; see in_context_recall. `noise` is the share of noisy
    pairs.
    """
    return in_context_recall(n, length, vocabulary, seed, noise, noise_vocabulary)


class NoisyRecall(Sized):
    """train, validation, test: lists of {length, noise, n}. noise_vocabulary: how many of the tokens are noise."""

    def __init__(self, *, vocabulary: int, noise_vocabulary: int, **common):
        super().__init__(**common)
        self.vocabulary, self.noise_vocabulary = vocabulary, noise_vocabulary

    def draw(self, n: int, seed: int, length: int, noise: float) -> tuple[Tensor, Tensor]:
        return noisy_recall(n, length, self.vocabulary, self.noise_vocabulary, noise, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any value; the value before: that of the last pair which is no noise."""
        content = self.vocabulary - self.noise_vocabulary
        half = content // 2
        return {
            "chance": 1 / (content - half),
            "the most frequent answer": self.most_frequent(),
            "the value before": self.accuracy(lambda tokens: latest(tokens, (half <= tokens) & (tokens < content))),
        }
