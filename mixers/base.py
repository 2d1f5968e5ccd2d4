"""The contract of a sequence mixer, and its one law.

However x is cut in time, feeding the pieces with the carried state gives the same y and the same final state. Training
(one call), prefill (any chunk), decoding (T = 1), truncated BPTT and streaming are therefore one function.
"""

from torch import Generator, Tensor, nn

State = None | Tensor | tuple["State", ...]  # batch first, a value: never mutated; None means "nothing seen yet"


class Mixer(nn.Module):
    """Maps x (B, T, D) and a state to y (B, T, D) and the state after the last step.

    Constructors are `__init__(self, d_model, *, ...)`, keyword-only and without defaults: values live in conf/mixer.
    `forward` is a function of (x, state, parameters, buffers): it draws nothing and counts nothing.
    """

    causal: bool = True  # y[:, t] depends on x[:, : t + 1] only
    null: bool = False  # a null baseline: not expected to remember anything
    silent: bool = False  # declares that its output is exactly 0 at initialisation
    sizes: tuple[str, ...] = ()  # integer keywords that may change to meet a budget, the largest lever first
    dynamics: tuple[str, ...] = ()  # own parameters that get the smaller learning rate, without decay
    tables: tuple[str, ...] = ()  # own parameters that get the larger learning rate, without decay

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """x (B, T, D), any float dtype; mask (B, T) bool, True on real tokens, for bidirectional mixers only."""
        raise NotImplementedError

    def resample(self, generator: Generator) -> None:
        """Redraw random features, if there are any; the Learner calls it between steps every `resample_every`."""
