"""embed -> backbone -> head: a prediction per step, per sequence (mean-pooled), or per pair of sequences."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixers.base import State
from mixers.packing import packed
from models.backbone import Backbone, seeded


class Model(nn.Module):
    """The one model that every mixer is compared in.

    pool: "none" (logits at each step), "mean" (over the real tokens) or "pair" (two sequences (B, 2, T), one encoder, a
    head on [a, b, a * b, a - b]). One rule for all mixers: no class token, which a causal mixer could not use.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_inputs: int,
        n_outputs: int,
        pool: str,
        backbone: Callable[..., Backbone],
        local_conv: int,
        seed: int,
        label: str,
    ):
        super().__init__()
        if pool not in ("none", "mean", "pair"):
            raise ValueError(f"task.pool is '{pool}': it must be none, mean or pair")
        self.pool = pool
        with seeded(seed, "embed"):
            self.embed = nn.Embedding(n_inputs, d_model)
            nn.init.normal_(self.embed.weight, std=d_model**-0.5)
        self.backbone = backbone(d_model, local_conv=local_conv, seed=seed, label=label)
        self.norm = nn.RMSNorm(d_model)
        with seeded(seed, "head"):
            self.head = nn.Linear(4 * d_model if pool == "pair" else d_model, n_outputs)

    def forward(
        self,
        tokens: Tensor,
        states: tuple[State, ...] | None = None,
        mask: Tensor | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """tokens (B, T) int64, mask (B, T) bool, True on real tokens -> logits and one state per block.

        Int64 numbers instead are packed documents (see mixers/packing.py), and states are then one per document.
        Logits are (B, T, n_outputs), or (n, n_outputs) at the n positions where `at` (B, T) is True; (B, n_outputs)
        when pooled. Pairs are (B, 2, T), and so is their mask.
        """
        x, states = self.features(tokens, states, mask, at)
        return self.head(x), states

    def features(
        self,
        tokens: Tensor,
        states: tuple[State, ...] | None = None,
        mask: Tensor | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, tuple[State, ...]]:
        """What the head makes logits of, with the arguments of `forward`."""
        if self.pool == "pair":
            mask = None if mask is None else mask.flatten(0, 1)
            x, states = self.encode(tokens.flatten(0, 1), states, mask)
            a, b = mean(x, mask).unflatten(0, (-1, 2)).unbind(1)
            return torch.cat([a, b, a * b, a - b], -1), states
        x, states = self.encode(tokens, states, mask)
        if self.pool == "mean":
            x = mean(x, mask)
        elif at is not None:
            x = x[at]
        return x, states

    def encode(self, tokens: Tensor, states=None, mask: Tensor | None = None) -> tuple[Tensor, tuple[State, ...]]:
        """tokens (B, T) -> (B, T, D), normalised, and one state per block."""
        x = self.embed(tokens)
        if mask is not None and mask.dtype == torch.int64:
            x, last = packed(self.backbone, x, mask)
            states = tuple(last)
        else:
            x, states = self.backbone(x, states, mask)
        return self.norm(x), states


def mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of x (B, T, D) over the real tokens: (B, D)."""
    if mask is None:
        return x.mean(1)
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)
