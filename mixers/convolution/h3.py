"""H3, hungry hungry hippos (Fu et al., 2022, https://arxiv.org/abs/2212.14052, section 3.1 and algorithm 1).

o_t = q_t^T SSM_diag(SSM_shift(k) v^T)_t,   q, k, v = W x;   y = W_o o

The shift state space reads its last d_state inputs: a learned filter per channel, whose tap 0 is also its skip.
Its taps start with variance 1 / d_state and not 1, so that it neither shrinks nor swells a key. The diagonal one,
S4D per head, runs over each of the (d_model / n_heads)^2 products of a head's key and value, so many at a time: a
backward pass computes them again.
"""

import functools

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import S4DLin, per_head
from mixers.ops.causal_conv import causal_conv
from mixers.ops.work import again, wider

AT_ONCE = 2**24  # products


class H3(Mixer):
    """Linear attention that decays as a state space does, with keys that see the tokens before."""

    sizes = ("d_state",)

    def __init__(self, d_model: int, *, n_heads: int, d_state: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.shift = nn.Parameter(torch.randn(d_model, d_state) * d_state**-0.5)
        self.ssm = S4DLin(n_heads, d_state=d_state)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, h = (None, None) if state is None else state
        q, k, v = self.qkv(x).chunk(3, -1)
        k, tail = causal_conv(k, self.shift, tail)
        q, k, v = (z.unflatten(-1, (self.n_heads, -1)) for z in (q, k, v))
        columns = max(1, wider(AT_ONCE, x, 64) // max(1, k.numel()))
        pieces = v.split(columns, -1)
        pasts = [None] * len(pieces) if h is None else h.split(columns, 2)
        if len(pieces) == 1:
            o, h = self.read(q, k, v, h)
        else:
            read = functools.partial(again, self.read, q, k)
            outputs, states = zip(*map(read, pieces, pasts), strict=True)
            o, h = torch.cat(outputs, -1), torch.cat(states, 2)
        return self.out(o.flatten(2)), (tail, h)

    def read(self, q: Tensor, k: Tensor, v: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """q, k (B, T, H, i), v (B, T, H, j), h (B, i, j, H, d_state / 2)."""
        kv = torch.einsum("bthi,bthj->bijth", k, v)
        y, h = self.ssm(kv.flatten(0, 2), None if h is None else h.flatten(0, 2))
        return torch.einsum("bthi,bijth->bthj", q, y.view(kv.shape)), h.unflatten(0, kv.shape[:3])
