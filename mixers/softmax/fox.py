"""The forgetting transformer (Lin et al., 2025, https://arxiv.org/abs/2503.02130, eqs. 5-8).

o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(D) + F_i - F_j) v_j,   F_i = log f_1 + ... + log f_i
f_t = sigmoid(w . x_t + b)

No positions: forgetting tells near from far. b is 0 at first, as in the paper: a weight halves per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import heads, merge, per_head
from mixers.ops.attention import attention
from mixers.ops.precision import wide


class ForgettingAttention(Mixer):
    """Softmax attention whose logits fade, by a rate that each token chooses for all that came before it."""

    def __init__(self, d_model: int, *, n_heads: int):
        super().__init__()
        per_head(d_model, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.forget = nn.Linear(d_model, n_heads)
        nn.init.zeros_(self.forget.bias)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        past, fade = (None, None) if state is None else state
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        logits = self.forget(x)
        log_f = F.logsigmoid(logits.to(wide(logits.dtype))).mT.cumsum(-1)  # (B, H, T)
        # F counts from the newest token, so that numbers stay small however long the past is: fade_j = F_i - F_j
        new = log_f[..., -1:] - log_f
        fade = new if fade is None else torch.cat([torch.add(fade, log_f[..., -1:]), new], -1)
        o, past = attention(q, k, v, past, bias=fade)
        return self.out(merge(o)), (past, fade)
