"""In-Place Test-Time Training (Feng et al., 2026, https://arxiv.org/abs/2604.06169).

O_i = Z_i W_i^T,   W_{i+1} = W_i + eta V_i^T Z_i,   V_i = conv(H_i) W_target,   for chunks i = 0, 1, ...

H is the MLP's input, Z its hidden layer (gated in the paper), and W_0 its down-projection. The update is one
gradient step on -sum_t W z_t . v_t, with targets v_t that a depthwise convolution gathers from a few tokens on
either side of t. It may look ahead since a chunk is written after it has been read; beyond a chunk's edges it sees
zeros, or the future would leak in. conv is zero and W_target a random diagonal at first, as in the official code,
so that training starts at the plain MLP. Left out: targets from the token embeddings, and the paper's bound on W -
W_0 in evaluation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import State
from mixers.layers import by_chunk
from models.mlp import MLP


class InPlaceTTT(nn.Module):
    """An MLP that learns while it reads: its down-projection is a matrix-valued state, its hidden layer the keys.

    It reads from left to right where the task looks both ways, too; padding is not learned from.
    """

    def __init__(self, d_model: int, *, expand: float, chunk: int, eta: float, conv: int):
        super().__init__()
        if conv % 2 == 0:
            raise ValueError(f"conv={conv} is even, and the convolution is centred: choose an odd width")
        self.chunk, self.eta = chunk, eta
        self.mlp = MLP(d_model, expand=expand)
        self.conv = nn.Parameter(torch.zeros(d_model, conv))
        self.target = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():
            self.target.weight.copy_(torch.diag(0.02 * torch.randn(d_model)))

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """x (B, T, D), mask (B, T) -> y (B, T, D), and W^T with Z and H of the chunk that is not full yet."""
        z = self.mlp.hidden(x)
        read = (z, x) if mask is None else (z * mask.unsqueeze(-1), x * mask.unsqueeze(-1))
        W, tail = (self.mlp.down.weight.mT.expand(len(x), -1, -1), None) if state is None else state

        def step(W, rows, z, h):
            W = W.to(z.dtype)
            return rows @ W, lambda: W + self.eta * z.mT @ self.targets(h)

        o, state = by_chunk(z, read, W, tail, self.chunk, step)
        return o + self.mlp.down.bias.to(o.dtype), state

    def targets(self, h: Tensor) -> Tensor:
        """V of one chunk's H (B, C, D)."""
        width = self.conv.shape[1]
        seen = F.pad(h, (0, 0, width // 2, width // 2))
        gathered = sum(self.conv[:, l] * seen[:, l : l + h.shape[1]] for l in range(width))
        return F.linear(gathered.to(h.dtype), self.target.weight.to(h.dtype))


def in_place_ttt(
    d_model: int, *, every: int, expand: float, chunk: int, eta: float, conv: int, layer: int
) -> InPlaceTTT | MLP:
    """The MLP of blocks 0, every, 2 every, ... learns in place; that of all others is the plain one."""
    if layer % every:
        return MLP(d_model, expand=expand)
    return InPlaceTTT(d_model, expand=expand, chunk=chunk, eta=eta, conv=conv)
