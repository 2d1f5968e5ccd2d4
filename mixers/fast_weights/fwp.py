"""Fast weight programmers with the delta rule (Schlag et al., 2021, https://arxiv.org/abs/2102.11174, eqs. 17-24).

S_t = S_{t-1} + beta_t phi(k_t) (v_t - S_{t-1}^T phi(k_t))^T,   o_t = S_t^T phi(q_t),   beta_t = sigmoid(w . x_t)
phi = DPFP divided by its sum (section 4.2)

phi sums to 1 and so is at most 1 long: with beta <= 1 no step can make the state grow.
"""

from torch import Tensor, nn

from mixers import feature_maps
from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head
from mixers.ops.gated_delta import delta_rule
from mixers.ops.precision import wide

EPS = 1e-6


class FastWeightProgrammer(Mixer):
    """The first delta rule: keys are features that sum to one, and nothing else stands around it."""

    sizes = ("d_key",)

    def __init__(self, d_model: int, *, n_heads: int, d_key: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.split = n_heads, (n_heads * d_key, n_heads * d_key, d_model)
        self.qkv = nn.Linear(d_model, sum(self.split), bias=False)
        self.beta = nn.Linear(d_model, n_heads)
        self.phi = feature_maps.DPFP(d_key, n_heads=n_heads, max_length=0)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).split(self.split, -1))
        o, state = delta_rule(
            self.features(q), self.features(k), v, heads(self.beta(x).sigmoid(), self.n_heads), None, state
        )
        return self.out(merge(o)), state

    def features(self, x: Tensor) -> Tensor:
        """Positive, and of sum 1 where they are not all 0: (B, H, T, 6 d_key)."""
        phi = self.phi(x.to(wide(x.dtype)), x)
        return phi / (phi.sum(-1, keepdim=True) + EPS)
