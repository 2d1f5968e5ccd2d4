"""Pre-norm residual blocks around any mixer, a pattern of mixers tiled over depth, and the choice of direction.

    x = x + dropout(mixer(local_conv(norm(x))))
    x = x + dropout(mlp(norm(x)))

(Xiong et al., 2020, https://arxiv.org/abs/2002.04745)
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixers.base import Mixer, State
from mixers.bidirectional import Bidirectional
from mixers.layers import ShortConv
from mixers.packing import mapped

Factory = Callable[..., Mixer]


class LooksAhead(ValueError):
    """The task is causal and the mixer is not: there is no faithful way to train the pair."""


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Draws inside come from a generator seeded by `key` alone, and the global one is left as it was.

    Every module is built under its own key, so that no module's initial values depend on what another one draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(sha256(repr(key).encode()).digest()[:8], "big") >> 1)
        yield


def placed(factory: Callable[..., Any], d_model: int, place: dict[str, int]) -> Any:
    """What the factory makes, told of its place in depth if it asks."""
    wanted = {key: value for key, value in place.items() if key in inspect.signature(factory).parameters}
    return factory(d_model, **wanted)


def directed(factory: Factory, d_model: int, causal: bool, place: dict[str, int]) -> Mixer:
    """The mixer in the direction that the task wants. Raises LooksAhead where a causal task meets a mixer that is not.

    place: {"layer": i, "n_layers": n}, given to the mixers whose paper depends on depth.
    """
    mixer = placed(factory, d_model, place)
    if mixer.causal == causal:
        return mixer
    if mixer.causal:
        return Bidirectional(mixer, placed(factory, d_model, place))
    raise LooksAhead(
        f"{type(mixer).__name__} looks ahead and the task is causal: "
        "choose a causal mixer, or a task that looks both ways"
    )


def owned(x: Tensor) -> Tensor:
    """A copy, where x is a view of something larger: what is kept for the backward pass should keep nothing else."""
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


class Block(nn.Module):
    """One layer. Its state is (local_conv, mixer, mlp), any of them None."""

    def __init__(
        self, d_model: int, *, mixer: Mixer, mlp: nn.Module | None, local_conv: nn.Module | None, dropout: float
    ):
        super().__init__()
        self.local_conv, self.mixer, self.mlp = local_conv, mixer, mlp
        self.norm_mixer = nn.RMSNorm(d_model)
        self.norm_mlp = nn.RMSNorm(d_model) if mlp is not None else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        conv_state, mixer_state, mlp_state = (None, None, None) if state is None else state
        z = self.norm_mixer(x)
        if self.local_conv is not None:
            z = z if mask is None else z * mask.unsqueeze(-1)
            z, conv_state = self.local_conv(z, conv_state)
        # only a mixer that looks both ways has to be told where padding is: a causal one meets it after the real tokens
        z, mixer_state = self.mixer(z, mixer_state) if self.mixer.causal else self.mixer(z, mixer_state, mask)
        x = x + self.dropout(z)
        if self.mlp is not None and self.norm_mlp is not None:
            z, mlp_state = self.mlp(self.norm_mlp(x), mlp_state, mask)
            x = x + self.dropout(z)
        return x, (conv_state, mixer_state, mlp_state)


class Backbone(nn.Module):
    """`n_layers` blocks whose mixers are the pattern, tiled over depth. Obeys the mixers' law: see mixers/base.py.

    pattern: mixer factories, d_model -> Mixer; mlp: a factory d_model -> module (x, state, mask) -> (y,
    state), or None. Both may ask for layer and n_layers.
    piece: sequences are walked so many tokens at a time, with carried states, so that what is in work stays in the
    cache; None, all at once. By the law it changes no result; only causal models can, and states that grow cost more.
    checkpoint: blocks keep nothing but their inputs for the backward pass, and compute the rest again.
    Initial values: the backbone's depend on (seed, path), a mixer's on (seed, label, path).
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_layers: int,
        pattern: Sequence[Factory],
        causal: bool,
        mlp: Callable[..., nn.Module] | None,
        local_conv: int,
        dropout: float,
        piece: int | None,
        checkpoint: bool,
        seed: int,
        label: str,
    ):
        super().__init__()
        if piece is not None and (piece < 1 or not causal):
            reason = "choose at least 1" if piece < 1 else "the task looks both ways, which pieces cannot: choose null"
            raise ValueError(f"model.backbone.piece is {piece}: {reason}")
        if not pattern or n_layers % len(pattern):
            raise ValueError(
                f"n_layers={n_layers} is not a multiple of the pattern's length {len(pattern)}: change either, "
                "so that every mixer of the pattern occurs equally often"
            )
        self.causal, self.piece, self.checkpoint = causal, piece, checkpoint
        self.blocks = nn.ModuleList()
        for i in range(n_layers):
            place = {"layer": i, "n_layers": n_layers}
            with seeded(seed, label, f"blocks.{i}.mixer"):
                mixer = directed(pattern[i % len(pattern)], d_model, causal, place)
            with seeded(seed, f"blocks.{i}.local_conv"):
                conv = ShortConv(d_model, width=local_conv, bias=False) if local_conv else None
            with seeded(seed, f"blocks.{i}"):
                part = placed(mlp, d_model, place) if mlp else None
                self.blocks.append(Block(d_model, mixer=mixer, mlp=part, local_conv=conv, dropout=dropout))

    def forward(
        self, x: Tensor, states: tuple[State, ...] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """x (B, T, D) -> y (B, T, D), one state per block; mask (B, T) bool, True on real tokens."""
        if self.piece is None or x.shape[1] <= self.piece:
            return self.through(x, states, mask)
        parts = x.split(self.piece, 1)
        masks = [None] * len(parts) if mask is None else mask.split(self.piece, 1)
        out = []
        for part, its_mask in zip(parts, masks, strict=True):
            y, after = self.through(part, states, its_mask)
            states = tuple(mapped(owned, state) for state in after)
            out.append(y)
        return torch.cat(out, 1), states  # ty: ignore[invalid-explicit-return]

    def through(
        self, x: Tensor, states: tuple[State, ...] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """All blocks, one after the other."""
        again, after = self.checkpoint and torch.is_grad_enabled(), []
        for i, block in enumerate(self.blocks):
            inputs = x, None if states is None else states[i], mask
            x, state = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
            after.append(state)
        return x, tuple(after)
