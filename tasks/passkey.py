"""The pass key (Mohtashami and Jaggi, 2023, https://arxiv.org/abs/2305.16300, section 4.2): five digits somewhere in a
long text that says nothing, and a question at its end. Tokens are bytes.

    tokens   ...we go. The pass key is 71432. Remember it. 71432 is the pass key. There and back again. The
             grass... What is the pass key? The pass key is 7143
    targets  the last five bytes, 71432; nothing else

The filler is the paper's, repeated, and begins anywhere; so does the key, on any byte of it. The paper's first lines,
which announce a key, are left out.
"""

import torch
from torch import Tensor

from tasks.base import IGNORE
from tasks.draws import Draws
from tasks.sized import Sized

DIGITS = 5
FILLER = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = b"The pass key is #####. Remember it. ##### is the pass key. "
QUESTION = b"What is the pass key? The pass key is #####"


def passkey(n: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """n examples: tokens and targets (n, length) int64, targets IGNORE except under the key's digits at the end.

    Raises ValueError where needle and question do not fit.
    """
    room = length + 1 - len(NEEDLE) - len(QUESTION)  # for filler; the last digit is a target only
    if room < 0:
        raise ValueError(f"length={length} has no room for a key and its question: make it {length - room} or more")
    draws = Draws(n, seed)
    keys = draws.integers(ord("0"), ord("9") + 1, DIGITS)
    starts = draws.integers(0, len(FILLER), 1)
    places = draws.integers(0, room + 1, 1)
    filler = bytes_of(FILLER)[(starts + torch.arange(room)) % len(FILLER)]
    text = torch.cat([filler, bytes_of(QUESTION).expand(n, -1)], 1)
    # the needle goes in at its place, and what is behind it moves on
    source = torch.arange(length + 1).expand(n, -1) - places
    inside = (source >= 0) & (source < len(NEEDLE))
    moved = text.gather(1, torch.where(source < 0, source, (source - len(NEEDLE)).clamp(min=0)) + places)
    text = bytes_of(NEEDLE)[source.clamp(0, len(NEEDLE) - 1)].where(inside, moved)
    text[text == ord("#")] = keys.repeat(1, 3).flatten()
    targets = torch.full((n, length), IGNORE)
    targets[:, -DIGITS:] = keys
    return text[:, :-1].contiguous(), targets


def bytes_of(text: bytes) -> Tensor:
    """(len(text),) int64."""
    return torch.tensor(list(text))


class Passkey(Sized):
    """train, validation, test: lists of {length, n}."""

    look = "text"

    def draw(self, n: int, seed: int, length: int) -> tuple[Tensor, Tensor]:
        return passkey(n, length, seed)

    def baselines(self) -> dict[str, float]:
        """chance: any digit; in sight: a random one of the key's, each of them asked for."""
        keys = torch.cat([segment.targets[:, -DIGITS:] for segment in self.segments("test")])
        return {
            "chance": 0.1,
            "the most frequent answer": self.most_frequent(),
            "a digit in sight": (keys[:, :, None] == keys[:, None]).double().mean().item(),
        }
