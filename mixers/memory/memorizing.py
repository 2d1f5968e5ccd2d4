"""The memorizing transformer (Wu et al., 2022, https://arxiv.org/abs/2203.08913, sections 3.1-3.3).

o_t = sigmoid(b) A_mem + (1 - sigmoid(b)) A_local,   a gate per head, b = 0 at first
A_local = softmax attention inside t's segment
A_mem = softmax attention to the `top` keys of earlier segments whose products with q_t are the largest
logits = a learned temperature per head times q . k, both of length 1

The memory is the newest n_memories pairs, unchanged and without gradient. Its keys have no position, local ones
are rotated by their places in the segment (the paper adds a bias by distance). The search is exact. The
temperature starts at sqrt(D): the paper's value was not verified. An empty memory reads as 0.
"""

import torch
from torch import Tensor, nn

from mixers.base import Mixer, State
from mixers.layers import by_chunk, heads, l2_norm, merge, per_head, rope
from mixers.ops.attention import attention


class Memorizing(Mixer):
    """Softmax attention inside a segment, and to the few best matches in a long memory that is not trained
    through.
    """

    sizes = ("n_memories",)

    def __init__(self, d_model: int, *, n_heads: int, segment: int, top: int, n_memories: int):
        super().__init__()
        width = per_head(d_model, n_heads)
        if not 1 <= top <= n_memories:
            raise ValueError(f"top={top} of n_memories={n_memories} cannot be found: lower top")
        self.n_heads, self.segment, self.top, self.n_memories = n_heads, segment, top, n_memories
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.temperature = nn.Parameter(torch.full((n_heads, 1, 1), width**0.5))
        self.b = nn.Parameter(torch.zeros(n_heads, 1, 1))
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        memory, tail = (None, None) if state is None else state
        q, k, v = (heads(z, self.n_heads) for z in self.qkv(x).chunk(3, -1))
        q, k = l2_norm(q) * self.temperature.to(q.dtype), l2_norm(k)
        o, state = by_chunk(q, (k, v), memory, tail, self.segment, self.attend)
        return self.out(merge(o)), state

    def attend(self, memory: tuple[Tensor, Tensor] | None, q: Tensor, k: Tensor, v: Tensor):
        """A segment's last queries over the segment so far and the memory, and the memory after the segment."""
        places = torch.arange(k.shape[2], device=k.device).expand(len(k), -1)
        local = rope(q * q.shape[-1] ** 0.5, places[:, -q.shape[2] :])  # attention divides by the root
        local, _ = attention(local, rope(k, places), v)
        gate = self.b.to(q.dtype).sigmoid()
        found = torch.zeros_like(local) if memory is None else nearest(q, *memory, self.top)

        def write():
            new = k.detach(), v.detach()
            joined = new if memory is None else (torch.cat(pair, 2) for pair in zip(memory, new, strict=True))
            return tuple(z[:, :, -self.n_memories :] for z in joined)

        return gate * found + (1 - gate) * local, write


def nearest(q: Tensor, k: Tensor, v: Tensor, top: int) -> Tensor:
    """Softmax attention of each query to the keys with the largest products, of which there are `top` at most."""
    scores, which = (q @ k.mT).topk(min(top, k.shape[2]))
    weights = torch.zeros(*q.shape[:3], k.shape[2], dtype=q.dtype, device=q.device)
    return weights.scatter(-1, which, scores.softmax(-1)) @ v
