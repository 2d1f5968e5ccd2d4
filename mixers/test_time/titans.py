"""Titans' neural memory, as a layer (Behrouz et al., 2024, https://arxiv.org/abs/2501.00663, sections 3.1-3.2).

S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2,   M_t = (1 - alpha_t) M_{t-1} + S_t,   y_t = M_t(q_t)
alpha_t, eta_t = sigmoid(w . x_t + b),   theta_t = (1 - eta_t) sigmoid(w . x_t + b) / chunk,   per head
q, k, v through a short convolution and silu, q and k of length 1;   y = W_o (norm_h(y) * silu(W_g x))

Gradients are taken at the M of the chunk's start. M is a linear map, or an MLP with GELU; the first M is learned.
Not printed in the paper and chosen here: heads; the factor (1 - eta_t) / chunk, with which equal keys cannot make
a linear M explode, whatever the gates; b, so that alpha is 0.01 and the two others 0.5 at first; and the first M,
N(0, 1 / width). Persistent tokens are persistent_memory's, and attention beside the memory is another layer of the
pattern.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import RMSNorm, ShortConv, by_chunk, heads, l2_norm, merge, per_head
from mixers.ops.inner_loop import inner_loop
from mixers.ops.precision import wide

CONV = 4
FORGET = 0.01


class Titans(Mixer):
    """Test-time training with momentum and forgetting: what surprises is written, and for a while what follows it.

    depth: the number of maps in M, 1 for a linear memory; expand: hidden widths in widths of a head.
    """

    def __init__(self, d_model: int, *, n_heads: int, depth: int, expand: int, chunk: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if depth < 1:
            raise ValueError(f"depth={depth}: a memory has at least 1 map")
        self.n_heads, self.chunk = n_heads, chunk
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConv(3 * d_model, width=CONV, bias=False)
        self.gates = nn.Linear(d_model, 3 * n_heads)  # alpha, eta, theta
        nn.init.zeros_(self.gates.bias)
        nn.init.constant_(self.gates.bias[:n_heads], math.log(FORGET / (1 - FORGET)))
        widths = [width, *[expand * width] * (depth - 1), width]
        maps = zip(widths, widths[1:], strict=False)
        self.M = nn.ParameterList(nn.Parameter(n**-0.5 * torch.randn(n_heads, n, m)) for n, m in maps)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.norm = RMSNorm(width)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        dtype = wide(x.dtype)
        tail, memory, rest = (None, None, None) if state is None else state
        if memory is None:
            M = tuple(w.to(dtype).expand(len(x), -1, -1, -1) for w in self.M)
            memory = M, tuple(torch.zeros_like(w) for w in M)
        qkv, tail = self.conv(self.qkv(x), tail)
        q, k, v = (heads(z, self.n_heads) for z in F.silu(qkv).chunk(3, -1))
        alpha, eta, theta = (heads(z, self.n_heads) for z in self.gates(x).to(dtype).chunk(3, -1))
        # the gradient of the square is twice that of its half
        theta = 2 * (-eta).sigmoid() * theta.sigmoid() / self.chunk
        items = l2_norm(k), v, theta, F.logsigmoid(-alpha), F.logsigmoid(eta)

        def step(memory, q, k, v, theta, log_a, log_m):
            return inner_loop(q, k, v, theta, *memory, log_a, log_m)

        o, state = by_chunk(l2_norm(q), items, memory, rest, self.chunk, step)
        return self.out(merge(self.norm(o)) * F.silu(self.gate(x))), (tail, *state)
