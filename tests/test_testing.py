"""Every check of the conformance suite is proven by a planted bug that it catches; correct mixers pass them all."""

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


class HeadsFirstState(Leaky):
    """(H, B, D) with two heads: batch first in a batch of two only."""

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, None if state is None else state.transpose(0, 1).flatten(1))
        return y, state.unflatten(1, (2, -1)).transpose(0, 1)


class NotFinite(Leaky):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return (y / 0 if x.shape[1] == 1 else y), state


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


class PeeksInALongSequence(Leaky):
    """Sees one token ahead at edges of 16 that short sequences do not show."""

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        if x.shape[1] <= 48:
            return y, state
        ahead = torch.zeros_like(x)
        ahead[:, 47] = x[:, 48]
        return y + 1e-6 * ahead, state


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


SEGMENT = 64


class LosesStateBetweenSegments(Leaky):
    """Right while a call fits in one segment: only a small SEGMENT shows it in a short sequence."""

    def forward(self, x, state=None, mask=None):
        y, last = super().forward(x, state)
        for piece in x.split(SEGMENT, 1):
            last = super().forward(piece, state)[1]
        return y, last


class ModifiesStateWhenDecoding(Leaky):
    def forward(self, x, state=None, mask=None):
        y, new = super().forward(x, state)
        if state is not None and x.shape[1] == 1:
            with torch.no_grad():
                state.copy_(new)
        return y, new


class ModifiesInput(Leaky):
    def forward(self, x, state=None, mask=None):
        y, new = super().forward(x, state)
        with torch.no_grad():
            x.mul_(0.5)
        return y, new


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


class MaskChangesEverything(Pooled):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, None, mask)
        return y if mask is None else 2 * y, state


class MixesExamples(Leaky):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y - 1e-3 * y.mean(0, keepdim=True), state


class DeadParameter(Leaky):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class InfiniteGradient(Leaky):
    """The square root's at 0."""

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y + (0 * y.square()).sqrt(), state


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
    """A gate of sigmoid(-2): 4e-8 is left after 8 tokens."""

    rate = 0.12


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


class SumsLogDecaysInBfloat16(Leaky):
    """h_t = sum_s e^{G_t - G_s} W x_s, G in the dtype that autocast happens to give, and as large as late in a text."""

    def forward(self, x, state=None, mask=None):
        z = self.W(x)
        G = -100 - torch.arange(x.shape[1], device=x.device) / 1.7
        G = G.to(z.dtype)
        h = (G.unsqueeze(1) - G).tril().exp().tril() @ z
        return self.V(h), h[:, -1]


class OverflowsInBackward(Leaky):
    """Right outputs, and under autocast a gradient of 0 times infinity."""

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y + (0 * y.square()).sqrt() if y.dtype == torch.bfloat16 else y, state


class NoPickle(Leaky):
    def __init__(self):
        super().__init__()
        self.activation = lambda z: z


class SharesOnCopy(Leaky):
    def __deepcopy__(self, memo):
        return self


PLANTED = {
    WrongDtype: "check_shape_and_dtype",
    HeadsFirstState: "check_shape_and_dtype",
    NotFinite: "check_shape_and_dtype",
    TimeFirstState: "check_shape_and_dtype",
    PeeksAtAnEdge: "check_causality",
    PeeksInALongSequence: "check_causality",
    NeverLooksAhead: "check_causality",
    LosesState: "check_law",
    ReturnsOldState: "check_law",
    CutsTheGradient: "check_law",
    LosesStateBetweenSegments: "check_law",
    ModifiesState: "check_state_is_a_value",
    ModifiesStateWhenDecoding: "check_state_is_a_value",
    ModifiesInput: "check_state_is_a_value",
    SeesPadding: "check_padding",
    SeesPaddingAlone: "check_padding",
    MaskChangesEverything: "check_padding",
    MixesExamples: "check_examples_do_not_mix",
    DeadParameter: "check_every_parameter_learns",
    InfiniteGradient: "check_every_parameter_learns",
    Explodes: "check_scale",
    Silent: "check_scale",
    SilentInWordsOnly: "check_scale",
    ForgetsInOneToken: "check_remembers",
    HiddenInitialValue: "check_state_dict",
    Counts: "check_deterministic",
    Draws: "check_deterministic",
    SumsLogDecaysInBfloat16: "check_autocast",
    OverflowsInBackward: "check_autocast",
    NoPickle: "check_copies",
    SharesOnCopy: "check_copies",
}


@pytest.mark.parametrize("mixer", [Leaky, Pooled, Identity])
def test_correct_mixers_pass(mixer):
    check_mixer(mixer)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda c: c.__name__)
def test_a_planted_bug_is_caught(bug):
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        getattr(testing, PLANTED[bug])(bug)


def test_every_check_is_proven():
    assert {c.__name__ for c in CHECKS} == set(PLANTED.values())


def test_block_like_knobs_are_made_small():
    assert testing.small({"window": 64, "n_heads": 2, "chunk": 16}) == {"window": 8, "chunk": 8}
