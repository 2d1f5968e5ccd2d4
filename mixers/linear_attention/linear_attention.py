"""Linear attention (Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236).

S_t = S_{t-1} + phi(k_t) v_t^T,   n_t = n_{t-1} + phi(k_t),   o_t = S_t^T phi(q_t) / (n_t . phi(q_t) + eps),   phi =
elu + 1
"""

from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.feature_maps import elu1
from mixers.layers import heads, merge, normalised, per_head


class LinearAttention(Mixer):
    """Attention whose kernel is a product of positive features, so that the past is one matrix."""

    def __init__(self, d_model: int, *, n_heads: int, causal: bool):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        o, state = normalised(elu1(q), elu1(k), v, state, mask, self.causal)
        return self.out(merge(o)), state
