"""Packed documents and left padding for any causal mixer, block or backbone, from nothing but its law.

Documents become rows, the longest first. All rows run to the length of the shortest; those that end there are taken
out, with their outputs and states, and the rest goes on from its state to the next length. Nothing is padded: each
token is computed once, and none sees another document.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mixers.base import State

Causal = Callable[[Tensor, State], tuple[Tensor, State]]


def packed(mixer: Causal, x: Tensor, documents: Tensor) -> tuple[Tensor, list[State]]:
    """x (B, T, D); documents (B, T) int64: neighbours of a row with the same number are one document, 0 is padding.

    Returns y (B, T, D), 0 on padding, and each document's state after its last token, in the order of rows and then of
    tokens, as batches of one: states that grow differ in length. Left padding is packed(mixer, x, mask.long()).
    """
    if documents.shape != x.shape[:2] or documents.dtype != torch.int64:
        found = f"{tuple(documents.shape)} {documents.dtype}"
        raise ValueError(f"documents must be int64 numbers of shape {tuple(x.shape[:2])}, not {found}")
    starts, lengths = spans(documents)
    if not lengths:
        return torch.zeros_like(x), []
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    flat, first = x.flatten(0, 1), torch.tensor(starts, device=x.device)[order]
    places, outputs, done, state = [], [], 0, None
    states: list[State] = [None] * len(order)
    for length in sorted(set(lengths)):
        place = first.unsqueeze(1) + torch.arange(done, length, device=x.device)
        y, state = mixer(flat[place], state)
        places.append(place.flatten())
        outputs.append(y.flatten(0, 1))
        alive = sum(other > length for other in lengths)
        for row in range(alive, len(first)):
            states[order[row]] = mapped(lambda t, row=row: t[row : row + 1], state)
        state, first, done = mapped(lambda t, n=alive: t[:n], state), first[:alive], length
    y = torch.cat(outputs)
    return y.new_zeros(len(flat), y.shape[1]).index_copy(0, torch.cat(places), y).unflatten(0, x.shape[:2]), states


def spans(documents: Tensor) -> tuple[list[int], list[int]]:
    """Where documents begin in the flattened batch, and their lengths."""
    edge = torch.ones_like(documents[:, :1], dtype=torch.bool)
    begins = torch.cat([edge, documents[:, 1:] != documents[:, :-1]], 1).flatten()
    places = begins.nonzero().flatten()
    ends = torch.cat([places[1:], places.new_tensor([documents.numel()])])
    kept = documents.flatten()[places] != 0
    return places[kept].tolist(), (ends - places)[kept].tolist()


def mapped(f: Callable[..., Tensor], *states: State) -> State:
    """f of the states' tensors, in the same nesting."""
    first = states[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return f(*states)
    return tuple(mapped(f, *parts) for parts in zip(*states, strict=True))  # type: ignore[arg-type]
