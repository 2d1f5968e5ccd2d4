"""MesaNet (von Oswald et al., 2025, https://arxiv.org/abs/2506.05233, sections 2-3).

H_t = gamma_t H_{t-1} + beta_t k_t k_t^T,   E_t = gamma_t E_{t-1} + beta_t k_t v_t^T,   o_t = E_t^T s_t
s_t solves (H_t + Lambda) s = q_t,   Lambda = softplus(l) + 1/4 per channel, 1 at first
gamma_t = sigmoid(a . x_t + c),   beta_t = sigmoid(b . x_t + d)
q, k through a short convolution and silu, and of length 1;   y = W_o norm_h(o)

The solution is n_steps of conjugate gradients from q / diag(H + Lambda), in which the products with all H_t at
once are linear attention. Its gradient is the equation's own: another system of the same matrix is solved, in
as many steps; it is exact as far as either has converged. c spreads from 3 to 6 over the heads, as mLSTM's forget
gates do: memories of 20 to 400 tokens. The public code starts at c = 0, and so forgets half in one token.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, heads, l2_norm, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide
from mixers.ops.scan import scan

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
        ridge = F.softplus(self.l.to(q.dtype)) + FLOOR
        solution, H = regress(l2_norm(q), k, beta * k, g, ridge, H, self.n_steps)
        o, E = linear_attention(solution, k, beta * v, g, E)
        return self.out(merge(self.norm(o)).to(x.dtype)), (tail, H, E)


def regress(
    q: Tensor, k: Tensor, write: Tensor, g: Tensor, ridge: Tensor, state: Tensor | None, n_steps: int
) -> tuple[Tensor, Tensor]:
    """The solutions s_t of (H_t + Lambda) s = q_t: (B, H, T, K), and the last H (B, H, K, K)."""

    def product(p: Tensor) -> tuple[Tensor, Tensor]:
        o, last = linear_attention(p, k, write, g, state)
        return o + ridge * p, last

    def solve(b: Tensor) -> Tensor:
        return conjugate_gradients(lambda p: product(p)[0], b, b / diagonal, n_steps)

    with torch.no_grad():
        first = None if state is None else state.diagonal(dim1=-2, dim2=-1)
        diagonal = scan(g.exp().transpose(1, 2), (write * k).transpose(1, 2), first)[0].transpose(1, 2) + ridge
        x = solve(q)
    reached, last = product(x)
    return Solution.apply(q - reached, x, solve), last


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, n_steps: int) -> Tensor:
    """n_steps from x towards the solution of product(x) = b, for each row of its own."""
    tiny = torch.finfo(b.dtype).tiny
    r = b - product(x)
    p, size = r, r.square().sum(-1, keepdim=True)
    for _ in range(n_steps):
        Ap = product(p)
        step = size / (p * Ap).sum(-1, keepdim=True).clamp(min=tiny)
        x, r = x + step * p, r - step * Ap
        before, size = size, r.square().sum(-1, keepdim=True)
        p = r + size / before.clamp(min=tiny) * p
    return x


class Solution(torch.autograd.Function):
    """x, which solves A x = b, as a function of b - A x with that x held: its differential is A^{-1} d(b - A x)."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve = solve
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:
        return ctx.solve(dx), None, None
