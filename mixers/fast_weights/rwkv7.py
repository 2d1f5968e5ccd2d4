"""RWKV-7's time mixing (Peng et al., 2025, https://arxiv.org/abs/2503.14456, eqs. 3-19).

S_t = diag(e^{g_t}) S_{t-1} - (a_t * kappa_t) (kappa_t^T S_{t-1}) + k~_t v_t^T,   o_t = S_t^T r_t
g_t = -e^{-1/2} sigmoid(w_0 + tanh(z_w W_1) W_2),   a_t = sigmoid(a_0 + z_a A_1 A_2)
kappa = (k * xi) / |k * xi|,   k~ = k * (1 + (a - 1) * alpha),   each of z_r ... z_g is x_t + mu (x_{t-1} - x_t)
y = W_o (gate * (norm_h(o) + (r . (rho * k~)) v)),   gate = sigmoid(z_g G_1) G_2

Without the paper's residual of the first layer's values, which would flow between layers. Initial values are the
official code's as far as known.
"""

import math

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, l2_norm, merge, per_head
from mixers.ops.dplr import dplr
from mixers.ops.precision import wide

FASTEST = math.exp(-0.5)  # so that no decay is below e^{-0.61}: at most 45 % is forgotten in a token
READS = ("r", "w", "k", "v", "a", "g")
POWERS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}


class RWKV7(Mixer):
    """A delta rule that erases along one vector and writes along another, at rates per channel."""

    silent = True
    dynamics = ("w_0",)

    def __init__(self, d_model: int, *, n_heads: int, layer: int, n_layers: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads = n_heads
        place = torch.arange(d_model) / d_model
        line = torch.arange(d_model) / max(1, d_model - 1) - 0.5
        zigzag = (torch.arange(d_model) % width) / max(1, width - 1) * 2 - 1
        zigzag = zigzag * zigzag.abs()
        deep, depth = 1 - layer / n_layers, layer / max(1, n_layers - 1)
        self.mu = nn.Parameter(torch.stack([1 - place ** (POWERS[read] * deep) for read in READS]))
        self.w_0 = nn.Parameter(-5.5 + 6 * (line + 0.5) ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a_0 = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * line)
        self.xi = nn.Parameter(0.71 - 0.1 * line)
        self.alpha = nn.Parameter(torch.full((d_model,), 1.02))
        self.rho = nn.Parameter(torch.full((n_heads, width), -0.04))
        self.W_1, self.W_2 = low_rank(d_model, 2.5)
        self.A_1, self.A_2 = low_rank(d_model, 2.5)
        self.G_1, self.G_2 = low_rank(d_model, 5.0)
        self.r, self.k, self.v, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        for linear, gain in ((self.r, 1.0), (self.k, 0.1), (self.v, 1.0)):
            nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(self.out.weight)
        self.norm = nn.GroupNorm(n_heads, d_model, eps=width * 1e-5)
        nn.init.constant_(self.norm.weight, ((layer + 1) / n_layers) ** 0.7)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        last, S = (torch.zeros_like(x[:, 0]), None) if state is None else state
        shift = torch.cat([last.unsqueeze(1), x[:, :-1]], 1) - x
        z_r, z_w, z_k, z_v, z_a, z_g = (x + shift * mu.to(x.dtype) for mu in self.mu)
        w = self.w_0 + torch.tanh(z_w @ self.W_1) @ self.W_2
        g = heads(-FASTEST * w.to(wide(w.dtype)).sigmoid(), self.n_heads)
        a = (self.a_0 + (z_a @ self.A_1) @ self.A_2).sigmoid()
        k = self.k(z_k)
        kappa = l2_norm(heads(k * self.xi, self.n_heads))
        r, k, v, a = (heads(z, self.n_heads) for z in (self.r(z_r), k * (1 + (a - 1) * self.alpha), self.v(z_v), a))
        o, S = dplr(r, k, v, -kappa * a, kappa, g, S)
        bonus = (r * k * self.rho[:, None]).sum(-1, keepdim=True) * v
        o = self.norm(merge(o).flatten(0, 1).to(self.norm.weight.dtype)).unflatten(0, x.shape[:2])
        gate = (z_g @ self.G_1).sigmoid() @ self.G_2
        return self.out((o + merge(bonus)) * gate), (x[:, -1], S)


def low_rank(d: int, factor: float) -> tuple[nn.Parameter, nn.Parameter]:
    """(d, r) zeros and (r, d) orthogonal, r = factor sqrt(d) to the next 32."""
    rank = max(32, 32 * round(factor * d**0.5 / 32))
    return nn.Parameter(torch.zeros(d, rank)), nn.Parameter(nn.init.orthogonal_(torch.empty(rank, d), 0.1))
