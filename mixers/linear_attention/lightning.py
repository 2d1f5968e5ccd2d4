"""Lightning attention (Qin et al., 2024, https://arxiv.org/abs/2401.04658; decays of Qin et al., 2023,
https://arxiv.org/abs/2307.14995, section 3.2).

S_t = e^{g_h} S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t,   g_h = -(8 / H) (1 - layer / n_layers) h,   h = 0 ... H - 1
q, k, v = silu(W x);   y = W_o (norm(o) * sigmoid(W_g x)), the norm over all heads

Norm and gate stand where MiniMax-01's released code has them, whose decays are other ones, -2^(-8 (h + 1) / H) times a
similar factor of the layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head
from mixers.ops.linear_attention import linear_attention


class LightningAttention(Mixer):
    """Linear attention with a fixed decay per head, slower in deeper layers; the first head forgets nothing."""

    def __init__(self, d_model: int, *, n_heads: int, layer: int, n_layers: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.g: Tensor
        rates = -8 / n_heads * (1 - layer / n_layers) * torch.arange(n_heads)
        self.register_buffer("g", rates, persistent=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in F.silu(self.qkv(x)).chunk(3, -1))
        g = self.g[None, :, None, None].expand(*v.shape[:3], 1)
        o, state = linear_attention(q * q.shape[-1] ** -0.5, k, v, g, state)
        return self.out(self.norm(merge(o)) * self.gate(x).sigmoid()), state
