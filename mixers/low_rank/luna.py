"""Luna, linear unified nested attention (Ma et al., 2021, https://arxiv.org/abs/2106.01540, eqs. 5-11).

pack     P' = softmax(p K^T / sqrt(D)) V,   p (l, D) per head, learned
unpack   o = softmax(q P'^T / sqrt(D)) P'

If causal (section 3.3), weights are elu(p K^T / sqrt(D)) + 1 and P'_t is the mean of what came so far, by two passes of
linear attention. In the paper P' is handed on to the next layer as its p; here each layer learns its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.feature_maps import elu1
from mixers.layers import heads, merge, per_head
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide


class Luna(Mixer):
    """The sequence is packed into l slots by attention, and read from them by attention."""

    sizes = ("n_slots",)

    def __init__(self, d_model: int, *, n_heads: int, n_slots: int, causal: bool):
        super().__init__()
        width = per_head(d_model, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.p = nn.Parameter(torch.randn(n_heads, n_slots, width))
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        p = self.p.to(k.dtype).expand(len(x), -1, -1, -1)
        if self.causal:
            o, state = self.so_far(q, k, v, p, state)
            return self.out(merge(o).to(x.dtype)), state
        packed = F.scaled_dot_product_attention(p, k, v, None if mask is None else mask[:, None, None])
        return self.out(merge(F.scaled_dot_product_attention(q, packed, packed))), None

    def so_far(self, q, k, v, p, state):
        count, S, R = (k.new_zeros(len(k), dtype=torch.int64), None, None) if state is None else state
        scale = k.shape[-1] ** -0.5
        w = elu1((k @ p.mT).to(wide(k.dtype)) * scale)  # (B, H, T, l)
        seen = (count.unsqueeze(1) + torch.arange(1, k.shape[2] + 1, device=k.device))[:, None, :, None]
        logits, S = linear_attention(q * scale, v, w, None, S)
        o, R = linear_attention((logits / seen).softmax(-1) / seen, w, v, None, R)
        return o, (count + k.shape[2], S, R)
