"""Ridge regression of values on keys at every step, as far as the keys go: the weights with which a query meets them.

    H_t = e^{g_t} H_{t-1} + w_t k_t^T,   s_t solves (H_t + Lambda) s = q_t,   w_t k_t^T positive semidefinite

The engine is a fixed number of conjugate gradients from q / diag(H + Lambda), for all t at once: products with all H_t
are linear attention. Its gradient is the equation's own: another system of the same matrix is solved, in as many
steps; it is exact as far as either has converged. von Oswald et al., 2025 (https://arxiv.org/abs/2506.05233, section
3).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import exact
from mixers.ops.scan import scan


def ridge_definition(q, k, w, g, Lambda, state=None):
    """Step by step, each system by elimination. Shapes as in `ridge`."""
    H, out = k.new_zeros(*k.shape[:2], k.shape[3], k.shape[3]) if state is None else state, []
    for t in range(k.shape[2]):
        H = g[:, :, t, :, None].exp() * H + w[:, :, t, :, None] * k[:, :, t, None]
        out.append(torch.linalg.solve(H + Lambda.diag_embed().squeeze(1), q[:, :, t]))
    return torch.stack(out, 2), H


@exact
def ridge(
    q: Tensor, k: Tensor, w: Tensor, g: Tensor, Lambda: Tensor, state: Tensor | None = None, *, n_steps: int
) -> tuple[Tensor, Tensor]:
    """q, k, w (B, H, T, K), w = beta k with beta >= 0; g (B, H, T, 1), log-decay <= 0; Lambda (H, 1, K) > 0; state
    (B, H, K, K); all float32 at least. Returns s (B, H, T, K) and the last H. Time grows as T n_steps.
    """

    def product(p: Tensor) -> tuple[Tensor, Tensor]:
        o, last = linear_attention(p, k, w, g, state)
        return o + Lambda * p, last

    def solve(b: Tensor) -> Tensor:
        return conjugate_gradients(lambda p: product(p)[0], b, b / diagonal, n_steps)

    with torch.no_grad():
        first = None if state is None else state.diagonal(dim1=-2, dim2=-1)
        diagonal = scan(g.exp().transpose(1, 2), (w * k).transpose(1, 2), first)[0].transpose(1, 2) + Lambda
        s = solve(q)
    reached, last = product(s)
    return Solution.apply(q - reached, s, solve), last


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
