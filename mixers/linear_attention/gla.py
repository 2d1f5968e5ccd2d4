"""Gated linear attention (Yang et al., 2023, https://arxiv.org/abs/2312.06635, eqs. 3-4 and section 4.4).

S_t = diag(a_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t,   a_t = sigmoid(W_2 W_1 x_t + b)^(1/16) per key channel
y = W_o (swish(W_g x) * norm_h(o))
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head
from mixers.ops.linear_attention import linear_attention

RANK, TEMPERATURE = 16, 16.0


class GatedLinearAttention(Mixer):
    """Linear attention that learns, per key channel and per token, how fast to forget; 16 tokens at first."""

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if width % 2:
            raise ValueError(
                f"d_model={d_model} over n_heads={n_heads} is odd, and keys are half as wide: change either"
            )
        self.n_heads = n_heads
        self.qk = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.forget = nn.Sequential(nn.Linear(d_model, RANK, bias=False), nn.Linear(RANK, d_model // 2))
        nn.init.zeros_(self.forget[1].bias)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k = (heads(z, self.n_heads) for z in self.qk(x).chunk(2, -1))
        g = heads(F.logsigmoid(self.forget(x).to(self.forget[1].bias.dtype)) / TEMPERATURE, self.n_heads)
        o, state = linear_attention(q * q.shape[-1] ** -0.5, k, heads(self.v(x), self.n_heads), g, state)
        return self.out(merge(self.norm(o)) * F.silu(self.gate(x))), state
