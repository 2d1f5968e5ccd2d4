"""Performer, FAVOR+ (Choromanski et al., 2020, https://arxiv.org/abs/2009.14794, lemma 1 and section 2.4).

    phi(x) = exp(Omega x - |x|^2 / 2 - c) / sqrt(m) + eps,   E[phi(q) . phi(k)] = exp(q . k) up to c and eps
    o_t = S_t^T phi(q_t) / (n_t . phi(q_t))

The stabiliser c cancels in the quotient. Queries take their own maximum. Keys take the largest value so far, and the
past is rescaled when it grows, which is a decay by e^{c_{t-1} - c_t}: a maximum over the whole sequence would let the
future in.
"""

import torch
from torch import Generator, Tensor, nn

from mixers.base import Mixer, State
from mixers.feature_maps import orthogonal_features
from mixers.layers import heads, merge, normalised, per_head
from mixers.ops.precision import exact

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
        S, largest = (None, None) if state is None else state
        q, k = self.logits(q), self.logits(k)
        phi_q = self.features(q, q.detach().amax(-1, keepdim=True))
        if not self.causal:
            seen = k if mask is None else k.masked_fill(~mask[:, None, :, None], -torch.inf)
            c = seen.detach().amax((-2, -1), keepdim=True).clamp(min=-1e30)  # a row of padding alone has no maximum
            o, _ = normalised(phi_q, self.features(k.minimum(c), c), v, None, mask, False)
            return self.out(merge(o)), None
        own = k.detach().amax(-1, keepdim=True)
        before = torch.full_like(own[:, :, :1], -torch.inf) if largest is None else largest
        c = torch.cat([before, own], 2).cummax(2).values
        o, S = normalised(phi_q, self.features(k, c[:, :, 1:]), v, S, None, True, g=c[:, :, :-1] - c[:, :, 1:])
        return self.out(merge(o)), (S, c[:, :, -1:])

    def logits(self, x: Tensor) -> Tensor:
        """Omega x - |x|^2 / 2 for x scaled by D^(-1/4), in float32 at least: (B, H, T, m)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * x.shape[-1] ** -0.25
        return project(x, self.omega.to(x.dtype)) - (x * x).sum(-1, keepdim=True) / 2

    def features(self, logits: Tensor, c: Tensor) -> Tensor:
        return (logits - c).exp() / self.omega.shape[0] ** 0.5 + EPS

    def resample(self, generator: Generator) -> None:
        self.omega.copy_(orthogonal_features(*self.omega.shape, generator))


@exact
def project(x: Tensor, omega: Tensor) -> Tensor:
    return x @ omega.mT
