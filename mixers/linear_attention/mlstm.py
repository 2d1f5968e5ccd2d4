"""xLSTM's matrix memory, mLSTM (Beck et al., 2024, https://arxiv.org/abs/2405.04517, eqs. 19-27), as in the 7B model
(Beck et al., 2025, https://arxiv.org/abs/2503.13427, section 3).

C_t = f_t C_{t-1} + i_t k_t v_t^T,   n_t = f_t n_{t-1} + i_t k_t,   h_t = C_t^T q_t / max(|n_t . q_t|, 1)
f_t = sigmoid(c(w_f . x_t + b_f)),   i_t = exp(c(w_i . x_t + b_i)),   c(z) = 15 tanh(z / 15)
k / sqrt(K), half as wide as v;   y = W_o (norm_h(h) * sigmoid(W_g x))

b_f rises from 3 to 6 over the heads and b_i is N(0, 0.1^2) at first, as in the first paper's code. Users of the 7B
model start b_i at -10; its own paper was not checked for that.

Exponential gates overflow, so all is kept relative to m_t = max(log f_t + m_{t-1}, log i_t): C and n times e^{-m}.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, heads, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide

CAP = 15.0


class MLSTM(Mixer):
    """Linear attention with an exponential input gate, which can make one token outweigh all others."""

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if width % 2:
            raise ValueError(
                f"d_model={d_model} over n_heads={n_heads} is odd, and keys are half as wide: change either"
            )
        self.n_heads = n_heads
        self.qk = nn.Linear(d_model, d_model, bias=False)
        self.v = nn.Linear(d_model, d_model, bias=False)
        self.gates = nn.Linear(d_model, 2 * n_heads)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:n_heads] = torch.linspace(3, 6, n_heads)  # of f: memories of 20 to 400 tokens
            self.gates.bias[n_heads:] = 0.1 * torch.randn(n_heads)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        C, m = (None, None) if state is None else state
        q, k = (heads(z, self.n_heads) for z in self.qk(x).chunk(2, -1))
        v = heads(self.v(x), self.n_heads)
        gates = self.gates(x)
        f, i = (CAP * torch.tanh(gates.to(wide(gates.dtype)) / CAP)).mT.chunk(2, 1)  # (B, H, T)
        log_f = F.logsigmoid(f)
        m_t = running_max(log_f, i, m)
        before = torch.full_like(m_t[..., :1], -torch.inf) if m is None else m.unsqueeze(-1)
        g = (log_f + torch.cat([before, m_t[..., :-1]], -1) - m_t).unsqueeze(-1)
        k = k * (i - m_t).exp().unsqueeze(-1) * k.shape[-1] ** -0.5
        v = torch.cat([v.to(k.dtype), torch.ones_like(k[..., :1])], -1)
        h, C = linear_attention(q, k, v, g, C)
        h = h[..., :-1] / torch.maximum(h[..., -1:].abs(), (-m_t).exp().unsqueeze(-1))
        return self.out(merge(self.norm(h.to(x.dtype))) * self.gate(x).sigmoid()), (C, m_t[..., -1])


def running_max(log_f: Tensor, log_i: Tensor, m: Tensor | None) -> Tensor:
    """m_t = max(log f_t + m_{t-1}, log i_t), (B, H, T), from m (B, H) on: all at once, in float64 since sums grow."""
    F_t = log_f.double().cumsum(-1)
    highest = (log_i.double() - F_t).cummax(-1).values
    if m is not None:
        highest = torch.maximum(highest, m.double().unsqueeze(-1))
    return (F_t + highest).to(log_i.dtype)
