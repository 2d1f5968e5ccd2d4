"""Attention with bounded memory control (Peng et al., 2021, https://arxiv.org/abs/2110.02488, sections 2-4).

K_t = sum_{j <= t} w_tj k_j^T,   V_t = sum_{j <= t} w_tj v_j^T,   w_tj = softmax_{j <= t}(W_s x_j) per slot, M slots
o_t = V_t^T softmax(K_t q_t / sqrt(D))

Two passes of linear attention: a softmax over time so far is a decay of all that came before.
"""

from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head, running_softmax
from mixers.ops.linear_attention import linear_attention


class ABC(Mixer):
    """Softmax attention over a fixed number of slots, each of which is a softmax over the whole past."""

    sizes = ("n_slots",)

    def __init__(self, d_model: int, *, n_heads: int, n_slots: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.slots = nn.Linear(d_model, n_heads * n_slots, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        total, keys, values = (None, None, None) if state is None else state
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        w, g, total = running_softmax(heads(self.slots(x), self.n_heads), total)
        logits, keys = linear_attention(q * q.shape[-1] ** -0.5, k, w, state=keys, gv=g)
        o, values = linear_attention(logits.softmax(-1), w, v, g, values)
        return self.out(merge(o)), (total, keys, values)
