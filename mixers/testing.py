"""The conformance suite: what every mixer promises, checked, for this repository's mixers and anybody else's.

    from mixers.testing import check_mixer
    check_mixer(lambda: MyMixer(D, n_heads=2))

A factory makes a fresh mixer of width D. Block-like knobs (window, chunk, block, segment) belong at 8, so that
sequences of 37 have several blocks; module constants of that kind (CHUNK, SEGMENT, ...) are 16 in those checks that cut
or perturb, and as they are in their run at T = 130.
"""

import copy
import functools
import io
import math
import pickle
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers import registry
from mixers.base import Mixer, State

D = 32
BATCH = 3  # not 2: a state with two heads in front would pass for batch first
SMALL, LONG = 37, 130
BLOCK_KNOBS = ("window", "chunk", "block", "segment")
BLOCK_CONSTANTS = ("CHUNK", "CHANNEL_CHUNK", "BLOCK", "SEGMENT")
Factory = Callable[[], Mixer]
CHECKS: list[Callable[[Factory], None]] = []


class Setting(NamedTuple):
    """Where mixers are checked, and in which precision they must agree with themselves.

    float64 is exact. float32 allows for the tf32 of tensor cores. bfloat16 is float32 parameters under autocast, as a
    Trainer runs them.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float64

    @property
    def computed_in(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def within(self, exact: float) -> float:
        """The tolerance in this precision, of what is `exact` in float64."""
        return {torch.float64: exact, torch.float32: 5e-3, torch.bfloat16: 1e-1}[self.dtype]


_setting = Setting()


def check_mixer(
    factory: Factory, checks: list[Callable[[Factory], None]] | None = None, setting: Setting = _setting
) -> None:
    """Runs every check, in bfloat16 those that are about numbers. Raises AssertionError, which says what is wrong and
    by how much.
    """
    global _setting
    if checks is None and setting.dtype == torch.bfloat16:
        checks = ABOUT_NUMBERS
    before, _setting = _setting, setting
    try:
        for check in CHECKS if checks is None else checks:
            half = setting.dtype == torch.bfloat16 and check is not check_autocast
            # without the cache, which would keep the weights of the first of several steps
            with torch.autocast(setting.device, dtype=torch.bfloat16, enabled=half, cache_enabled=False):
                check(factory)
    finally:
        _setting = before


def _check(function: Callable[[Factory], None]) -> Callable[[Factory], None]:
    CHECKS.append(function)
    return function


@_check
def check_shape_and_dtype(factory: Factory) -> None:
    """y is shaped and typed as x; states are tensors or tuples of them, batch first; so it is at T = 1, 2, 37, 130."""
    for dtype in (torch.float32, torch.float64):
        mixer = _make(factory).to(dtype)
        for T in (1, 2, SMALL, LONG):
            x = _noise(BATCH, T, dtype=dtype)
            y, state = mixer(x)
            assert y.shape == x.shape, f"y is {tuple(y.shape)} for x {tuple(x.shape)}"
            assert y.dtype == dtype, f"y is {y.dtype} for x {dtype}"
            assert torch.isfinite(y).all(), f"y is not finite at T={T}"
            for tensor in _tensors(state):
                assert tensor.shape[0] == BATCH, f"a state of shape {tuple(tensor.shape)} is not batch first"


@_check
def check_causality(factory: Factory) -> None:
    """What is declared causal does not move before a change, at each multiple of 8 and 16, +-2; what is not does look
    ahead.
    """
    mixer = _exact(factory)
    if not mixer.causal:
        x, other = _noise(1, SMALL), _noise(1, SMALL, seed=1)
        other[:, :-1] = x[:, :-1]
        with torch.autocast(_setting.device, enabled=False):  # which would round away what is small at first
            moved = (mixer(x)[0] - mixer(other)[0])[:, :-1].abs().max().item()
        assert mixer.null or moved > 1e-8, "it is declared causal=False and yet never looks ahead"
        return
    tolerance = _setting.within(1e-10)
    for T, chunk, edges in ((SMALL, 16, range(8, SMALL, 8)), (LONG, None, range(16, LONG, 16))):
        with _chunks(mixer, chunk):
            places = sorted({edge + by for edge in edges for by in (-2, -1, 0, 1, 2) if edge + by < T})
            x, other = _noise(1, T), _noise(1, T, seed=1)
            rows = torch.cat([x, *(torch.cat([x[:, :t], other[:, t:]], 1) for t in places)])  # each its own change
            y = mixer(rows)[0].detach()
            size = (other - x).abs().max().item()
            for t, row in zip(places, y[1:], strict=True):
                moved = (row - y[0])[:t].abs().max().item()
                assert moved <= tolerance * size, f"a change at t={t} of T={T} moved an earlier output by {moved:.1e}"


@_check
def check_law(factory: Factory) -> None:
    """However x is cut, the carried state gives the same outputs, final state and gradients."""
    mixer = _exact(factory)
    if not mixer.causal:
        return
    small = [[1] * SMALL, [1, 36], [36, 1], [2, 35], [8, 29], [16, 21], [15, 1, 21], [17, 3, 17]]
    for T, chunk, cuts in ((SMALL, 16, small), (LONG, None, [[64, 66], [63, 67], [65, 64, 1]])):
        with _chunks(mixer, chunk):
            x = _noise(2, T)
            whole = _run(mixer, x, [T])
            for cut in cuts:
                for name, a, b in zip(("y", "state", "gradient"), _run(mixer, x, cut), whole, strict=True):
                    assert len(a) == len(b), f"cut at {cut}, the {name} has {len(a)} tensors and not {len(b)}"
                    for ours, theirs in zip(a, b, strict=True):
                        assert ours.shape == theirs.shape, f"cut at {cut}, a {name} is {tuple(ours.shape)}"
                        error = _error(ours, theirs)
                        assert error < _setting.within(1e-8), f"cut at {cut}, a {name} is off by {error:.1e}"


@_check
def check_state_is_a_value(factory: Factory) -> None:
    """A state that was handed in is as it was, and can be used again, by one step or by several; so is x."""
    mixer = _exact(factory)
    _, state = mixer(_noise(2, SMALL))
    before = copy.deepcopy([t.detach() for t in _tensors(state)])
    for T in (1, 5):
        x = _noise(2, T, seed=1)
        given = x.clone()
        first = mixer(x, state)[0]
        assert torch.equal(x, given), f"forward modified its input at T={T}"
        for tensor, was in zip(_tensors(state), before, strict=True):
            assert torch.equal(tensor, was), f"forward modified the state that it was given at T={T}"
        again = _error(mixer(x, state)[0], first)
        assert again == 0, f"the same state gives another output the second time, by {again:.1e} at T={T}"


@_check
def check_padding(factory: Factory) -> None:
    """What stands on padding does not show at real positions, on either side, in a batch of one too."""
    mixer = _exact(factory)
    if mixer.causal:
        return
    masks = torch.ones(3, SMALL, dtype=torch.bool, device=_setting.device)
    masks[0, 20:] = False
    masks[1, :9] = False
    for rows in (slice(0, 1), slice(1, 2), slice(0, 3)):
        mask = masks[rows]
        x = _noise(len(mask), SMALL)
        other = torch.where(mask.unsqueeze(-1), x, 1e4 * _noise(len(mask), SMALL, seed=1))
        moved = (mixer(x, None, mask)[0] - mixer(other, None, mask)[0])[mask].abs().max().item()
        assert moved < _setting.within(1e-8), f"padding moved a real position by {moved:.1e} in a batch of {len(mask)}"
        error = _error(mixer(x, None, torch.ones_like(mask))[0], mixer(x)[0])
        assert error < _setting.within(1e-8), f"a mask without any padding differs from no mask by {error:.1e}"


@_check
def check_examples_do_not_mix(factory: Factory) -> None:
    """A row of the batch depends on no other row."""
    mixer = _exact(factory)
    x = _noise(3, SMALL)
    together = mixer(x)[0]
    for row in range(3):
        error = _error(mixer(x[row : row + 1])[0], together[row : row + 1])
        assert error < _setting.within(1e-10), f"row {row} alone differs from itself in a batch by {error:.1e}"


@_check
def check_every_parameter_learns(factory: Factory) -> None:
    """After three optimiser steps each parameter has had a finite gradient that is not zero."""
    mixer = _make(factory)
    parameters = dict(mixer.named_parameters())
    if not parameters:
        return
    alive, optimizer = set(), torch.optim.AdamW(parameters.values(), lr=1e-2)
    length = getattr(mixer, "max_length", 2 * SMALL)
    for step in range(3):
        x, target = _noise(2, length, seed=step, dtype=torch.float32), _noise(2, length, seed=9, dtype=torch.float32)
        optimizer.zero_grad()
        F.mse_loss(mixer(x)[0].float(), target).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite at step {step}"
                if parameter.grad.abs().max() > 0:
                    alive.add(name)
        optimizer.step()
    dead = sorted(parameters.keys() - alive)
    assert not dead, f"no gradient ever reached {', '.join(dead)}"


@_check
def check_scale(factory: Factory) -> None:
    """At initialisation a unit input gives an output of std in [1e-3, 3], or exactly 0 where that is declared
    (silent).
    """
    mixer = _make(factory)
    std = mixer(_noise(4, 2 * SMALL, dtype=torch.float32))[0].std().item()
    if mixer.silent:
        assert std == 0, f"it is declared silent and its output has std {std:.1e}"
    else:
        assert 1e-3 <= std <= 3, f"the output has std {std:.1e} for a unit input"


@_check
def check_remembers(factory: Factory) -> None:
    """At most 100 steps on "repeat the token of 8 steps ago" bring the loss below 0.9 of chance, unless it is null.

    Two blocks, since a window of 8 does not reach 8 back in one. Batches are fresh, so that below chance is memory.
    """
    if _make(factory).null:
        return
    vocabulary, delay, length = 4, 8, 16
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        embed, place, head = nn.Embedding(vocabulary, D), nn.Embedding(length, D), nn.Linear(D, vocabulary)
        mlps = [nn.Sequential(nn.RMSNorm(D), nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D)) for _ in range(2)]
        norms = [nn.RMSNorm(D) for _ in range(2)]
    blocks = list(zip(norms, [_make(factory, seed) for seed in range(2)], mlps, strict=True))
    modules = nn.ModuleList([embed, place, head, *(part for block in blocks for part in block)]).to(_setting.device)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-2)
    chance, losses = math.log(vocabulary), []
    for _ in range(100):
        tokens = torch.randint(vocabulary, (32, length), generator=generator).to(_setting.device)
        x = embed(tokens) + place.weight
        for norm, mixer, mlp in blocks:
            x = x + mixer(norm(x))[0]
            x = x + mlp(x)
        logits = head(x)[:, delay:]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, :-delay].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if sum(losses[-5:]) < 5 * 0.9 * chance and len(losses) > 5:
            return
    raise AssertionError(
        f"after 100 steps the loss is {sum(losses[-5:]) / 5:.2f} and chance is {chance:.2f}: it forgets"
    )


@_check
def check_state_dict(factory: Factory) -> None:
    """Its state_dict, saved, loaded without pickled code into another one, carries everything that outputs depend
    on.
    """
    mixer, other = _make(factory), _make(factory, seed=1)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = _noise(2, SMALL, dtype=torch.float32)
    assert torch.equal(mixer(x)[0], other(x)[0]), "a mixer loaded from a state_dict gives other outputs"


@_check
def check_deterministic(factory: Factory) -> None:
    """The same input gives the same bits, in training mode too, and no random number is drawn."""
    mixer, x = _make(factory).train(), _noise(2, SMALL, dtype=torch.float32)
    before = _random_state()
    first, second = mixer(x)[0], mixer(x)[0]
    assert torch.equal(first, second), "the same input gives another output the second time"
    assert torch.equal(before, _random_state()), "forward drew from the global random state"


@_check
def check_autocast(factory: Factory) -> None:
    """Under bfloat16 autocast the output is within 5 % of float32's, in norm, and gradients are finite."""
    mixer, x = _make(factory), _noise(2, SMALL, dtype=torch.float32)
    expected = mixer(x)[0]
    with torch.autocast(_setting.device, dtype=torch.bfloat16):
        y = mixer(x)[0]
    error = ((y.float() - expected).norm() / expected.norm().clamp(min=1e-12)).item()
    assert error < 0.05, f"bfloat16 autocast is off by {error:.1%}"
    if y.requires_grad:
        y.float().square().mean().backward()
    for name, parameter in mixer.named_parameters():
        finite = parameter.grad is None or torch.isfinite(parameter.grad).all()
        assert finite, f"under bfloat16 autocast the gradient of {name} is not finite"


@_check
def check_copies(factory: Factory) -> None:
    """deepcopy and pickle give the same mixer, with parameters of its own."""
    mixer, x = _make(factory), _noise(2, SMALL, dtype=torch.float32)
    expected = mixer(x)[0]
    ways: dict[str, Callable[[Mixer], Mixer]] = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    }
    for how, twice in ways.items():
        try:
            twin = twice(mixer)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise AssertionError(f"{how} fails: {error}") from error
        assert torch.equal(twin(x)[0], expected), f"{how} gives a mixer with other outputs"
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert torch.equal(mixer(x)[0], expected), f"{how} shares parameters with the original"


ABOUT_NUMBERS: list[Callable[[Factory], None]] = [
    check_causality,
    check_law,
    check_padding,
    check_examples_do_not_mix,
    check_every_parameter_learns,
    check_remembers,
    check_deterministic,
    check_autocast,
]


def small(values: dict[str, Any]) -> dict[str, Any]:
    """Of a mixer's knobs the block-like ones, at 8."""
    return {key: 8 for key in values if key in BLOCK_KNOBS}


def variants(name: str, **overrides: Any) -> Iterator[tuple[str, Factory]]:
    """A mixer of the registry, as the suite wants it, in each direction that it has: (label, factory)."""
    ways = [overrides.pop("causal")] if "causal" in overrides else registry.directions(name)
    values = small(registry.knobs(name)) | overrides
    for causal in ways:
        make = registry.factory(name, causal=causal, **values)
        yield f"{name}-{'causal' if causal else 'bidirectional'}", functools.partial(make, D)


def _make(factory: Factory, seed: int = 0) -> Mixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory().to(_setting.device)


def _exact(factory: Factory) -> Mixer:
    mixer = _make(factory)  # not .to(dtype), which takes complex parameters for real ones
    return mixer.double() if _setting.computed_in == torch.float64 else mixer.float()


def _noise(batch: int, length: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(batch, length, D, generator=generator, dtype=torch.float64)
    return x.to(_setting.device, _setting.computed_in if dtype is None else dtype)


def _random_state() -> Tensor:
    return torch.get_rng_state() if _setting.device == "cpu" else torch.cuda.get_rng_state()


@contextmanager
def _chunks(mixer: Mixer, size: int | None) -> Generator[None]:
    """Block-like constants of this package's modules, and of those that the mixer is from, at `size`; None leaves
    them.
    """
    own = {type(module).__module__ for module in mixer.modules()}
    modules = [module for name, module in list(sys.modules.items()) if name in own or name.startswith("mixers.")]
    places = [(m, name, getattr(m, name)) for m in modules for name in BLOCK_CONSTANTS if hasattr(m, name)]
    try:
        for module, name, value in places:
            setattr(module, name, size or value)
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)


def _tensors(state: State) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        assert isinstance(state, tuple), f"a state holds a {type(state).__name__}: only tensors, tuples and None may be"
        for part in state:
            yield from _tensors(part)


def _run(mixer: Mixer, x: Tensor, cuts: list[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, final state and gradients when x is fed in pieces."""
    x = x.clone().requires_grad_()
    pieces, state = [], None
    for piece in x.split(cuts, 1):
        y, state = mixer(piece, state)
        pieces.append(y)
    y, last = torch.cat(pieces, 1), list(_tensors(state))
    loss = (y * _noise(*y.shape[:2], seed=2)).sum()
    for tensor in last:
        if tensor.requires_grad:
            value = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            weight = torch.linspace(-1, 1, value.numel(), dtype=value.dtype, device=value.device)
            loss = loss + (value * weight.view(value.shape)).sum()
    inputs = [x, *(p for p in mixer.parameters())]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return [y.detach()], [t.detach() for t in last], list(gradients)


def _error(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|; integers count as they are."""
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b).any())
    same = a == b  # equal infinities too
    difference = torch.where(same, torch.zeros_like(a), a - b).abs().max().item()
    return difference / max(b[torch.isfinite(b)].abs().max().item() if torch.isfinite(b).any() else 0.0, 1e-6)
