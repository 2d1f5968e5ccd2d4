"""Test-time training, TTT-Linear and TTT-MLP (Sun et al., 2024, https://arxiv.org/abs/2407.04620, sections 2.3-2.7).

W_i = W - sum_{j <= i} eta_ij grad |f(k_j; W) - v_j|^2 / 2,   o_i = f(q_i; W_i),   f(x; W) = x + LN(map(x; W))
eta_ij = max(1 / i + r_i, 0) base_lr sigmoid(w . x_j + c) / D,   j <= i = 1 ... chunk

All gradients of a chunk are taken at the W that it began with. map is W x + b, or W2 gelu(W1 x + b1) + b2.
Everything is learned: the first W, the LN, and r, which is 0 at first. q and k are rotated by their places in the
chunk, and y = W_o LN(o), the second LN over all heads, as in the official code; its gated variant with short
convolutions is left out. base_lr is 1 for the map and 0.1 for the MLP, as in the official scripts; those of the MLP
begin at 0.01 and rise to it in the first tenth of training, which is left out.
"""

import functools

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import by_chunk, heads, merge, per_head, rope
from mixers.ops.inner_loop import EPS, inner_loop
from mixers.ops.precision import wide

STD = 0.02


class TTT(Mixer):
    """The state is a small model, and a token is read by training it to tell the token's value from its key.

    expand: the hidden width of the inner MLP in widths of a head, 0 for a linear map.
    """

    dynamics = ("r",)

    def __init__(self, d_model: int, *, n_heads: int, expand: int, chunk: int, base_lr: float):
        super().__init__()
        width = per_head(d_model, n_heads)
        if width % 2:
            raise ValueError(f"d_model={d_model} over n_heads={n_heads} is odd, and rotations turn pairs: change it")
        self.n_heads, self.chunk, self.base_lr = n_heads, chunk, base_lr
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.lr = nn.Linear(d_model, n_heads)
        nn.init.normal_(self.lr.weight, std=STD)
        nn.init.zeros_(self.lr.bias)
        self.r = nn.Parameter(torch.zeros(chunk))
        widths = [width, *([expand * width] if expand else []), width]
        self.W = nn.ParameterList(initial(n_heads, n, m) for n, m in zip(widths, widths[1:], strict=False))
        self.scale = nn.Parameter(torch.ones(n_heads, 1, width))
        self.shift = nn.Parameter(torch.zeros(n_heads, 1, width))
        self.norm = nn.LayerNorm(d_model, eps=EPS)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        dtype = wide(x.dtype)
        W, tail = (None, None) if state is None else state
        if W is None:
            W = tuple(w.to(dtype).expand(len(x), -1, -1, -1) for w in self.W)
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        steps = torch.arange(x.shape[1], device=x.device) + (0 if tail is None else tail[0].shape[2])
        steps = (steps % self.chunk).expand(len(x), -1)
        eta = self.base_lr * heads(self.lr(x), self.n_heads).to(dtype).sigmoid() / q.shape[-1]
        r = (1 / torch.arange(1, self.chunk + 1, device=x.device, dtype=dtype) + self.r.to(dtype)).clamp(min=0)
        learn = functools.partial(inner_loop, r=r, norm=(self.scale.to(dtype), self.shift.to(dtype)))

        def step(W, q, k, v, eta):
            o, write = learn(q, k, v, eta, W)
            return o, lambda: write()[0]

        o, state = by_chunk(rope(q, steps), (rope(k, steps), v, eta), W, tail, self.chunk, step)
        return self.out(self.norm(merge(o)).to(x.dtype)), state


def initial(n_heads: int, n: int, m: int) -> nn.Parameter:
    """A map's matrix, with its bias, 0, as the last row."""
    return nn.Parameter(torch.cat([STD * torch.randn(n_heads, n, m), torch.zeros(n_heads, 1, m)], 1))
