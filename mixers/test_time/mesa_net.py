"""MesaNet (von Oswald et al., 2025, https://arxiv.org/abs/2506.05233, sections 2-3).

H_t = gamma_t H_{t-1} + beta_t k_t k_t^T,   E_t = gamma_t E_{t-1} + beta_t k_t v_t^T,   o_t = E_t^T s_t
s_t solves (H_t + Lambda) s = q_t,   Lambda = softplus(l) + 1/4 per channel, 1 at first
gamma_t = sigmoid(a . x_t + c),   beta_t = sigmoid(b . x_t + d)
q, k through a short convolution and silu, and of length 1;   y = W_o norm_h(o)

s_t is the result of n_steps of conjugate gradients, and its gradient is the equation's, solved in the same way. c
spreads from 3 to 6 over the heads, as mLSTM's forget gates do: memories of 20 to 400 tokens. The public code starts at
c = 0, and so forgets half in one token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide
from mixers.ops.ridge import ridge

CONV = 4
FLOOR = 0.25


class MesaNet(Mixer):
    """Reads, at each token, the exact regression of values on keys so far, not one step towards it."""

    dynamics = ("l",)

    def __init__(self, d_model: int, *, n_heads: int, n_steps: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads, self.n_steps = n_heads, n_steps
        self.qk = nn.Linear(d_model, 2 * d_model, bias=False)
        self.conv = ShortConv(2 * d_model, width=CONV, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.gates = nn.Linear(d_model, 2 * n_heads)  # gamma, beta
        with torch.no_grad():
            self.gates.bias[:n_heads] = torch.linspace(3, 6, n_heads)  # c
        self.l = nn.Parameter(torch.full((n_heads, 1, width), 1 - FLOOR).expm1().log())
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, H, E = (None, None, None) if state is None else state
        qk, tail = self.conv(self.qk(x), tail)
        wide_x = (*F.silu(qk).chunk(2, -1), self.v(x), *self.gates(x).chunk(2, -1))
        q, k, v, gamma, beta = (heads(z.to(wide(x.dtype)), self.n_heads) for z in wide_x)
        k, g, beta = l2_norm(k), F.logsigmoid(gamma), beta.sigmoid()
        Lambda = F.softplus(self.l.to(q.dtype)) + FLOOR
        s, H = ridge(l2_norm(q), k, beta * k, g, Lambda, H, n_steps=self.n_steps)
        o, E = linear_attention(s, k, beta * v, g, E)
        return self.out(merge(self.norm(o)).to(x.dtype)), (tail, H, E)
