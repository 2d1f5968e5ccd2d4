"""Infini-attention (Munkhdalai et al., 2024, https://arxiv.org/abs/2404.07143, section 2.1, eqs. 3-10).

o_t = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_local,   a gate per head, for a token t of segment s A_local =
causal softmax attention inside the segment,   A_mem = M_{s-1}^T phi(q_t) / (z_{s-1} . phi(q_t) + eps) M_s =
M_{s-1} + sum_t phi(k_t) (v_t - M_{s-1}^T phi(k_t) / (z_{s-1} . phi(k_t) + eps))^T,   z_s = z_{s-1} + sum_t
phi(k_t) phi = elu + 1

delta=False writes v_t itself. Local queries and keys are rotated by their places in the segment, those of the
memory have no position. beta is 0 at first; the paper prints no value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.feature_maps import elu1
from mixers.layers import by_chunk, heads, merge, per_head, rope
from mixers.ops.attention import attention
from mixers.ops.precision import wide

EPS = 1e-6


class InfiniAttention(Mixer):
    """Softmax attention inside a segment, and linear attention over all segments before it."""

    def __init__(self, d_model: int, *, n_heads: int, segment: int, delta: bool):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.segment, self.delta = n_heads, segment, delta
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.beta = nn.Parameter(torch.zeros(n_heads, 1, 1))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        M, tail = (None, None) if state is None else state
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        if M is None:  # z is the memory of one more value, always 1
            M = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3] + 1, dtype=wide(x.dtype), device=x.device)
        o, state = by_chunk(q, (k, v), M, tail, self.segment, self.attend)
        return self.out(merge(o)), state

    def attend(self, M: Tensor, q: Tensor, k: Tensor, v: Tensor):
        """A segment's last queries over the segment so far and the memory, and the memory after the segment."""
        places = torch.arange(k.shape[2], device=k.device).expand(len(k), -1)
        local, _ = attention(rope(q, places[:, -q.shape[2] :]), rope(k, places), v)
        gate = self.beta.to(q.dtype).sigmoid()

        def write():
            new = v - recall(M, k) if self.delta else v
            return M + elu1(k).mT @ F.pad(new, (0, 1), value=1.0)

        return gate * recall(M, q) + (1 - gate) * local, write


def recall(M: Tensor, q: Tensor) -> Tensor:
    """What the memory holds at phi(q); nothing, as long as it is empty."""
    o = elu1(q) @ M
    return o[..., :-1] / (o[..., -1:] + EPS)
