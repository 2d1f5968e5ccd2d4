"""A second direction for any causal mixer: one reads forwards, another of the same kind reads backwards, and they add.

Schuster and Paliwal, 1997 (Bidirectional recurrent neural networks).
"""

import torch
from torch import Generator, Tensor

from mixers.base import Mixer, State


class Bidirectional(Mixer):
    """y = forwards(x) + reverse(backwards(reverse(x))), where only the real tokens of a row are read, in either
    direction.
    """

    causal = False

    def __init__(self, forwards: Mixer, backwards: Mixer):
        super().__init__()
        self.forwards, self.backwards = forwards, backwards

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """x (B, T, D), mask (B, T) -> y (B, T, D) and None: what looks ahead cannot be carried. y is 0 on padding."""
        if mask is None:
            return self.forwards(x)[0] + self.backwards(x.flip(1))[0].flip(1), None
        # both directions meet the real tokens first, and padding, if at all, when nothing real follows
        order = torch.argsort(~mask, dim=1, stable=True)
        last = mask.sum(1, keepdim=True) - 1
        step = torch.arange(x.shape[1], device=x.device)
        back = order.gather(1, torch.where(step <= last, last - step, step))
        y = torch.zeros_like(x)
        for mixer, places in ((self.forwards, order), (self.backwards, back)):
            index = places.unsqueeze(-1).expand_as(x)
            y = y + torch.zeros_like(x).scatter(1, index, mixer(x.gather(1, index))[0].to(x.dtype))
        return y * mask.unsqueeze(-1), None

    def resample(self, generator: Generator) -> None:
        self.forwards.resample(generator)
        self.backwards.resample(generator)
