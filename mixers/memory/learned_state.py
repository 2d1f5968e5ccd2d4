"""A learned initial state for any recurrent mixer, the recurrent form of learned prefixes and persistent memory.

s_0 = s(x_0) + Delta,   y, s_T = mixer(x, s_0)

s(x_0) is the mixer's state after one learned token, and Delta is learned, for each of its tensors that are not
integers, and 0 at first. So the mixer needs nothing but the law, and Delta reaches every state of its kind. x_0 is
small at first, N(0, 0.02^2): at 0 a product of two parts of the state that are both 0 would never learn. It counts
as a token: positions and chunks begin one step later, and in a softmax it is one more key and value.
"""

import copy
import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn

from mixers.base import Mixer, State
from mixers.ops.precision import wide

STD = 0.02


class LearnedState(Mixer):
    """Starts from what it has learned to start from, where others start from nothing.

    mixer: d_model -> a Mixer that looks back only.
    """

    def __init__(self, d_model: int, *, mixer: Callable[..., Mixer], layer: int, n_layers: int):
        super().__init__()
        asked = inspect.signature(mixer).parameters
        facts = {"causal": True, "layer": layer, "n_layers": n_layers}
        self.mixer = mixer(d_model, **{key: value for key, value in facts.items() if key in asked})
        self.silent = self.mixer.silent
        self.x_0 = nn.Parameter(STD * torch.randn(1, 1, d_model))
        with torch.no_grad():
            first = copy.deepcopy(self).to("meta").first()  # here, the engine that will run need not be able to
            # complex ones as pairs of numbers: a module's .double() makes complex parameters real
            parts = (torch.view_as_real(t[0]) if t.is_complex() else t[0] for t in learnable(first))
            shapes = [torch.zeros_like(part, device=self.x_0.device) for part in parts]
        if not shapes or not self.mixer.causal:
            raise ValueError(f"{type(self.mixer).__name__} carries no state to begin with: choose a recurrent mixer")
        self.delta = nn.ParameterList(nn.Parameter(shape) for shape in shapes)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        return self.mixer(x, moved(self.first(), iter(self.delta), len(x)) if state is None else state)

    def first(self) -> State:
        """The mixer's state after the learned token, for a batch of one."""
        return self.mixer(self.x_0)[1]

    def resample(self, generator: Generator) -> None:
        self.mixer.resample(generator)


def learnable(state: State) -> Iterator[Tensor]:
    """The state's tensors that are not integers, nor empty."""
    if isinstance(state, Tensor):
        if state.numel() and (state.is_floating_point() or state.is_complex()):
            yield state
    else:
        for part in state or ():
            yield from learnable(part)


def moved(state: State, delta: Iterator[Tensor], batch: int) -> State:
    """state + delta, for a batch."""
    if isinstance(state, tuple):
        return tuple(moved(part, delta, batch) for part in state)
    if state is None:
        return None
    if list(learnable(state)):
        its = next(delta)
        its = torch.view_as_complex(its.to(wide(its.dtype))) if state.is_complex() else its
        state = state + its.to(state.dtype)
    return state.expand(batch, *state.shape[1:])
