"""Nystromformer (Xiong et al., 2021, https://arxiv.org/abs/2102.03902, eqs. 13-16).

o = softmax(q K~^T) Z softmax(Q~ k^T) v + conv(v),   Q~, K~ the means of m segments,   Z ~ softmax(Q~ K~^T)^+
Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, six times, from A^T over the largest sums of columns and rows

Those sums are of each matrix of its own: a maximum over the batch would mix examples.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head
from mixers.ops.precision import exact, wide

STEPS, KERNEL = 6, 33


class Nystromformer(Mixer):
    """Softmax attention through m landmarks. It looks ahead by nature: there is no causal version."""

    causal = False
    sizes = ("n_landmarks",)

    def __init__(self, d_model: int, *, n_heads: int, n_landmarks: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads, self.n_landmarks = n_heads, n_landmarks
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = nn.Conv1d(n_heads, n_heads, KERNEL, padding=KERNEL // 2, groups=n_heads, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        v = v.masked_fill(~real[:, None, :, None], 0)
        o = nystrom(q * q.shape[-1] ** -0.5, k, v, real, self.n_landmarks)
        near = self.conv(v.permute(0, 3, 1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).permute(0, 2, 3, 1)
        return self.out(merge(o.to(x.dtype) + near.to(x.dtype))), None


@exact
def nystrom(q: Tensor, k: Tensor, v: Tensor, real: Tensor, m: int) -> Tensor:
    """q, k, v (B, H, T, D), q scaled; real (B, T) bool, True on real tokens; m segments of real tokens, some of them
    empty where there are fewer tokens.
    """
    q, k, v = (z.to(wide(z.dtype)) for z in (q, k, v))
    order, count = real.cumsum(1) - 1, real.sum(1, keepdim=True).clamp(min=1)
    segment = (order * m).div(count, rounding_mode="floor")
    P = (segment.unsqueeze(1) == torch.arange(m, device=q.device)[:, None]) & real.unsqueeze(1)  # (B, m, T)
    size = P.sum(-1)
    P = (P.to(q.dtype) / size.clamp(min=1).unsqueeze(-1)).unsqueeze(1)
    there = (size > 0)[:, None]  # (B, 1, m)
    lowest = torch.finfo(q.dtype).min
    Q, K = P @ q, P @ k
    left = (q @ K.mT).masked_fill(~there.unsqueeze(-2), lowest).softmax(-1)
    right = (Q @ k.mT).masked_fill(~real[:, None, None], lowest).softmax(-1)
    A = (Q @ K.mT).masked_fill(~there.unsqueeze(-2), lowest).softmax(-1)
    A = torch.where(there.unsqueeze(-1), A, torch.eye(m, dtype=A.dtype, device=A.device))  # empty ones stand aside
    return left @ (pseudo_inverse(A) @ (right @ v))


def pseudo_inverse(A: Tensor) -> Tensor:
    """Of (..., m, m), by the paper's iteration of third order."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Z = A.mT / (A.sum(-2).amax(-1) * A.sum(-1).amax(-1))[..., None, None]
    for _ in range(STEPS):
        AZ = A @ Z
        Z = Z @ (13 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ))) / 4
    return Z
