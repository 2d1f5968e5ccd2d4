"""Multi-head latent attention (DeepSeek-AI, 2024, https://arxiv.org/abs/2405.04434, section 2.1, eqs. 9-19).

c_t = norm(W_dkv x_t),   k_t = [W_uk c_t ; R W_kr x_t],   v_t = W_uv c_t,   q_t = [W_q x_t ; R W_qr x_t]
o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(D + D_r)) v_j

R rotates by the position, and the rotated key is one for all heads. The state is c and that key, D_c + D_r numbers per
token; queries come without a latent of their own, as in the paper's smaller model.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head, positions, rope
from mixers.ops.attention import attention


class LatentAttention(Mixer):
    """Softmax attention that remembers, of each token, a small vector from which all heads' keys and values follow."""

    sizes = ("d_latent",)

    def __init__(self, d_model: int, *, n_heads: int, d_latent: int, d_rope: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if d_rope % 2:
            raise ValueError(f"d_rope={d_rope} is odd, and rotations turn pairs: choose an even number")
        self.n_heads, self.d_rope = n_heads, d_rope
        self.q = nn.Linear(d_model, n_heads * (width + d_rope), bias=False)
        self.down = nn.Linear(d_model, d_latent + d_rope, bias=False)
        self.norm = RMSNorm(d_latent)
        self.up = nn.Linear(d_latent, 2 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q = heads(self.q(x), self.n_heads)
        q = torch.cat([q[..., : -self.d_rope], rope(q[..., -self.d_rope :], steps)], -1)
        c, k_r = self.down(x).split([self.norm.normalized_shape[0], self.d_rope], -1)
        new = torch.cat([self.norm(c), rope(k_r.unsqueeze(1), steps).squeeze(1)], -1)
        past = new if past is None else torch.cat([past, new], 1)
        k, v = (heads(z, self.n_heads) for z in self.up(past[..., : -self.d_rope]).chunk(2, -1))
        k = torch.cat([k, past[..., -self.d_rope :].unsqueeze(1).expand(-1, self.n_heads, -1, -1)], -1)
        # the past is in k and v already; attention takes the queries for the last positions
        o, _ = attention(q, k, v)
        return self.out(merge(o)), (after, past)
