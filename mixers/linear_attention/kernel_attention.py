"""Kernel attention over any feature map (Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 4-5).

S_t = S_{t-1} + phi(k_t) v_t^T,   o_t = S_t^T phi(q_t) / sum_{j <= t} phi(q_t) . phi(k_j)

Maps whose kernel may be negative are not divided by that sum: o_t = norm_h(S_t^T phi(q_t)) instead.
"""

from torch import Generator, Tensor, nn

from mixers import feature_maps
from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, log_normalised, merge, normalised, per_head, positions
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide


class KernelAttention(Mixer):
    """Attention by phi(q) . phi(k), for a phi chosen by its name."""

    sizes = ("d_key",)

    def __init__(
        self, d_model: int, *, n_heads: int, causal: bool, feature_map: str, d_key: int | None, max_length: int
    ):
        super().__init__()
        width = per_head(d_model, n_heads)
        d_key = width if d_key is None else d_key
        self.n_heads, self.causal, self.split = n_heads, causal, (n_heads * d_key, n_heads * d_key, d_model)
        self.qkv = nn.Linear(d_model, sum(self.split), bias=False)
        self.phi_q = self.phi_k = feature_maps.build(feature_map, d_key, n_heads=n_heads, max_length=max_length)
        if self.phi_q.learned:
            self.phi_k = feature_maps.build(feature_map, d_key, n_heads=n_heads, max_length=max_length)
        self.norm = None if self.phi_q.positive else RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        start, past = (None, None) if state is None else state
        steps, after = positions(x, start)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).split(self.split, -1))
        q, k = self.phi_q(q, steps), self.phi_k(k, steps)
        if self.phi_q.log:
            o, past = log_normalised(q, k, v, past, mask, self.causal)
        elif self.norm is None:
            o, past = normalised(q, k, v, past, mask, self.causal)
        else:
            o, past = self.norm_of(q, k, v, past, mask)
        if not self.causal:
            return self.out(merge(o)), None
        return self.out(merge(o)), (after if self.phi_q.placed else None, past)

    def norm_of(self, q, k, v, S, mask):
        if self.causal:
            o, S = linear_attention(q.to(wide(q.dtype)), k.to(wide(k.dtype)), v, None, S)
        else:
            k = k if mask is None else k.masked_fill(~mask[:, None, :, None], 0)
            o = q.to(wide(q.dtype)) @ (k.to(wide(k.dtype)).mT @ v.to(wide(v.dtype)))
        return self.norm(o.to(v.dtype)), S

    def resample(self, generator: Generator) -> None:
        self.phi_q.resample(generator)
