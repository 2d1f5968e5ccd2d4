"""The null baseline: no mixing at all.

y = x
"""

from torch import Tensor

from mixers.base import Mixer, State


class Identity(Mixer):
    """Passes its input on: what a model scores with it, it scores without looking at any other token."""

    null = True

    def __init__(self, d_model: int, *, causal: bool):
        super().__init__()
        self.causal = causal

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        return x, None
