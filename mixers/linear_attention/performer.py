"""Performer, FAVOR+ (Choromanski et al., 2020, https://arxiv.org/abs/2009.14794, lemma 1 and section 2.4).

    phi(x) = exp(Omega x - |x|^2 / 2 - c) / sqrt(m) + eps,   E[phi(q) . phi(k)] = exp(q . k) up to c and eps
    o_t = S_t^T phi(q_t) / (n_t . phi(q_t))

The stabiliser c, the largest value so far, cancels in the quotient, and so does sqrt(m).
"""

from torch import Generator, Tensor, nn

from mixers.base import Mixer, State
from mixers.feature_maps import orthogonal_features, random_logits
from mixers.layers import heads, log_normalised, merge, per_head

EPS = 1e-4


class Performer(Mixer):
    """Linear attention whose random features estimate the softmax kernel without bias."""

    sizes = ("n_features",)

    def __init__(self, d_model: int, *, n_heads: int, n_features: int, causal: bool):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.omega: Tensor
        self.register_buffer("omega", orthogonal_features(n_features, width))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        q, k = (random_logits(z, self.omega) for z in (q, k))
        o, state = log_normalised(q, k, v, state, mask, self.causal, EPS * self.omega.shape[0] ** 0.5)
        return self.out(merge(o)), state

    def resample(self, generator: Generator) -> None:
        self.omega.copy_(orthogonal_features(*self.omega.shape, generator))
