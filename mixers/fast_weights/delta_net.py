"""DeltaNet (Schlag et al., 2021, https://arxiv.org/abs/2102.11174, eq. 23-24; Yang et al., 2024, https://arxiv.org/abs/2406.06484).

S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T q_t,   beta_t = beta_max sigmoid(w . x_t)
q, k, v through a short convolution and silu, q and k of length 1;   y = W_o norm_h(o)

beta_max is 1; with 2 the transition can have negative eigenvalues, and then track parity (Grazzi et al., 2024,
https://arxiv.org/abs/2411.12537, section 4).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, merge, per_head
from mixers.ops.gated_delta import delta_rule

CONV = 4


class DeltaNet(Mixer):
    """Overwrites what a key held before, where linear attention adds to it."""

    def __init__(self, d_model: int, *, n_heads: int, beta_max: float):
        super().__init__()
        width = per_head(d_model, n_heads)
        if not 0 < beta_max <= 2:
            raise ValueError(f"beta_max={beta_max}: above 2 the state explodes, choose 1 or 2")
        self.n_heads, self.beta_max = n_heads, beta_max
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConv(3 * d_model, width=CONV, bias=False)
        self.beta = nn.Linear(d_model, n_heads, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, S = (None, None) if state is None else state
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = (heads(z, self.n_heads) for z in F.silu(qkv).chunk(3, -1))
        beta = self.beta_max * heads(self.beta(x).sigmoid(), self.n_heads)
        o, S = delta_rule(l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k), v, beta, None, S)
        return self.out(merge(self.norm(o))), (tail, S)
