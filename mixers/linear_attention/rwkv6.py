"""RWKV-6's time mixing (Peng et al., 2024, https://arxiv.org/abs/2404.05892, section 4.1.2, eqs. 11-20).

S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,   o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t
g_t = -exp(w + tanh(z_w A) B);   each of r, k, v, w, gate reads z = lerp(x_t, x_{t-1}) by a mixture that x chooses:
lerp(a, b) = a + (b - a) (mu + tanh(y C) D),   y = a + (b - a) mu_x;   out = W_o (norm_h(o) * silu(W_g z_g))

u and w start as in the official code as far as known: w rises over channels from -6 to -1, decays of e^{-e^w}.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide

RANK, RANK_W = 32, 64


class RWKV6(Mixer):
    """Decay per channel and token, a bonus for the token itself, and every input a mixture with the token before."""

    dynamics = ("w",)

    def __init__(self, d_model: int, *, n_heads: int, layer: int, n_layers: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads = n_heads
        place, deep = torch.arange(d_model) / d_model, 1 - layer / n_layers
        self.mu_x = nn.Parameter(1 - place**deep)
        self.mu = nn.Parameter((1 - place**deep).repeat(5, 1))
        self.C = nn.Parameter(torch.empty(d_model, 5 * RANK).uniform_(-1e-4, 1e-4))
        self.D = nn.Parameter(torch.empty(5, RANK, d_model).uniform_(-1e-4, 1e-4))
        rho = layer / max(1, n_layers - 1)
        self.w = nn.Parameter(-6 + 5 * (torch.arange(d_model) / max(1, d_model - 1)) ** (0.7 + 1.3 * rho))
        self.A = nn.Parameter(torch.empty(d_model, RANK_W).uniform_(-1e-4, 1e-4))
        self.B = nn.Parameter(torch.empty(RANK_W, d_model).uniform_(-1e-4, 1e-4))
        zigzag = (torch.arange(d_model) + 1) % 3 - 1
        self.u = nn.Parameter((rho * (1 - place) + 0.1 * zigzag).view(n_heads, width))
        self.r, self.k, self.v, self.gate, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(5))
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        last, S = (torch.zeros_like(x[:, 0]), None) if state is None else state
        shift = torch.cat([last.unsqueeze(1), x[:, :-1]], 1) - x
        mix = torch.tanh((x + shift * self.mu_x) @ self.C).unflatten(-1, (5, RANK))
        z = x.unsqueeze(2) + shift.unsqueeze(2) * (self.mu + torch.einsum("btir,ird->btid", mix, self.D))
        z_r, z_k, z_v, z_w, z_g = z.unbind(2)
        step = torch.tanh(z_w @ self.A) @ self.B
        g = heads(-(self.w + step.to(wide(step.dtype))).exp(), self.n_heads)
        r, k, v = (heads(f(z), self.n_heads) for f, z in ((self.r, z_r), (self.k, z_k), (self.v, z_v)))
        o, S = linear_attention(r * r.shape[-1] ** -0.5, k, v, g, S, u=self.u)
        return self.out(merge(self.norm(o)) * F.silu(self.gate(z_g))), (x[:, -1], S)
