"""Every check of the conformance suite is proven by a planted bug that it catches; correct mixers pass them all."""

import pickle

import pytest
import torch
from torch import nn

from mixers import testing
from mixers.base import Mixer
from mixers.testing import CHECKS, D, check_mixer


class Leaky(Mixer):
    """h_t = a h_{t-1} + W x_t, y = V h_t: correct, causal, with a state."""

    rate = 0.9

    def __init__(self):
        super().__init__()
        self.W, self.V = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, state=None, mask=None):
        h = torch.zeros_like(x[:, 0]) if state is None else state
        out = []
        for z in self.W(x).unbind(1):
            h = self.rate * h + z
            out.append(h)
        return self.V(torch.stack(out, 1)), h


class Pooled(Mixer):
    """y = x W + mean of the real tokens V: correct, looks both ways."""

    causal = False

    def __init__(self):
        super().__init__()
        self.W, self.V = nn.Linear(D, D), nn.Linear(D, D)
        self.E = nn.Parameter(torch.randn(96, D) / 8)

    def forward(self, x, state=None, mask=None):
        weight = self.E[: x.shape[1]].softmax(0)
        if x.shape[1] > 96:
            weight = torch.ones_like(x[0]) / x.shape[1]
        z = self.V(x) if mask is None else self.V(x) * mask.unsqueeze(-1)
        return self.W(x) + (z * weight).sum(1, keepdim=True) + z.roll(8, 1), None


class Identity(Mixer):
    null = True

    def forward(self, x, state=None, mask=None):
        return x, None


class WrongDtype(Leaky):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y.float(), state


class TimeFirstState(Leaky):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, None if state is None else state.mT)
        return y, state.mT


class PeeksAtAnEdge(Leaky):
    """Sees one token ahead, and only across the edge of a block of 16."""

    def forward(self, x, state=None, mask=None):
        ahead = torch.zeros_like(x)
        ahead[:, 15:-1:16] = x[:, 16::16]
        y, state = super().forward(x, state)
        return y + 1e-3 * ahead, state


class NeverLooksAhead(Leaky):
    causal = False


class LosesState(Leaky):
    def forward(self, x, state=None, mask=None):
        return super().forward(x, None)


class ReturnsOldState(Leaky):
    def forward(self, x, state=None, mask=None):
        y, new = super().forward(x, state)
        return y, new if state is None else state


class CutsTheGradient(Leaky):
    """Outputs and states are right, and the past gets no gradient: only comparing gradients shows it."""

    def forward(self, x, state=None, mask=None):
        return super().forward(x, None if state is None else state.detach())


class ModifiesState(Leaky):
    def forward(self, x, state=None, mask=None):
        y, new = super().forward(x, state)
        if state is not None:
            with torch.no_grad():
                state.mul_(1.5)
        return y, new


class SeesPadding(Pooled):
    def forward(self, x, state=None, mask=None):
        return super().forward(x)


class SeesPaddingAlone(Pooled):
    """Forgets the mask when the batch is one."""

    def forward(self, x, state=None, mask=None):
        return super().forward(x, None, mask if len(x) > 1 else None)


class MixesExamples(Leaky):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y - 1e-3 * y.mean(0, keepdim=True), state


class DeadParameter(Leaky):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class Explodes(Leaky):
    def __init__(self):
        super().__init__()
        nn.init.normal_(self.V.weight)


class Silent(Leaky):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.V.weight)
        nn.init.zeros_(self.V.bias)


class SilentInWordsOnly(Leaky):
    silent = True


class ForgetsInOneToken(Leaky):
    rate = 1e-6


class HiddenInitialValue(Leaky):
    """What outputs depend on is in no parameter and no buffer."""

    def __init__(self):
        super().__init__()
        self.scale = torch.rand(()).item()

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y * self.scale, state


class Counts(Leaky):
    calls = 0

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        self.calls += 1
        return y + 1e-3 * self.calls, state


class Draws(Leaky):
    def forward(self, x, state=None, mask=None):
        torch.rand(1)
        return super().forward(x, state)


class RoundsTheState(Leaky):
    """Sums in the dtype that autocast happens to give it."""

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y + 30 * (self.W(x).to(torch.bfloat16) * 1.0078125).float().sub(
            self.W(x)
        ) if y.dtype == torch.bfloat16 else y, state


class NoPickle(Leaky):
    def __init__(self):
        super().__init__()
        self.activation = lambda z: z


class SharesOnCopy(Leaky):
    def __deepcopy__(self, memo):
        return self


PLANTED = {
    WrongDtype: "check_shape_and_dtype",
    TimeFirstState: "check_shape_and_dtype",
    PeeksAtAnEdge: "check_causality",
    NeverLooksAhead: "check_causality",
    LosesState: "check_law",
    ReturnsOldState: "check_law",
    CutsTheGradient: "check_law",
    ModifiesState: "check_state_is_a_value",
    SeesPadding: "check_padding",
    SeesPaddingAlone: "check_padding",
    MixesExamples: "check_examples_do_not_mix",
    DeadParameter: "check_every_parameter_learns",
    Explodes: "check_scale",
    Silent: "check_scale",
    SilentInWordsOnly: "check_scale",
    ForgetsInOneToken: "check_remembers",
    HiddenInitialValue: "check_state_dict",
    Counts: "check_deterministic",
    Draws: "check_deterministic",
    RoundsTheState: "check_autocast",
    NoPickle: "check_copies",
    SharesOnCopy: "check_copies",
}


@pytest.mark.parametrize("mixer", [Leaky, Pooled, Identity])
def test_correct_mixers_pass(mixer):
    check_mixer(mixer)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda c: c.__name__)
def test_a_planted_bug_is_caught(bug):
    check = getattr(testing, PLANTED[bug])
    with pytest.raises((AttributeError, pickle.PicklingError) if bug is NoPickle else AssertionError):
        check(bug)


def test_every_check_is_proven():
    assert {c.__name__ for c in CHECKS} == set(PLANTED.values())


def test_block_like_knobs_are_made_small():
    assert testing.small({"window": 64, "n_heads": 2, "chunk": 16}) == {"window": 8, "chunk": 8}
