"""The algebra behind linear mixers (Wang et al., 2025, https://arxiv.org/abs/2501.12352, section 3), made runnable: one
can walk between the named mixers, an ingredient at a time.

S_t = (I - beta_t k_t k_t^T) diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T      write: delta
S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T                                    write: sum
o_t = S_t^T q_t, divided by the sum of its weights, or norm_h(o_t);   y = W_o (o * silu(W_g x))

decay: none | constant, RetNet's | scalar, Gated DeltaNet's | channel, GLA's
q, k = phi(W x), with a short convolution and silu before phi, rotations after it; for the delta rule, of length 1
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixers import feature_maps
from mixers.base import Mixer, State
from mixers.layers import (
    RMSNorm,
    ShortConv,
    heads,
    l2_norm,
    log_decay,
    log_normalised,
    merge,
    normalised,
    positions,
    rope,
    step_bias,
)
from mixers.ops.gated_delta import delta_rule
from mixers.ops.linear_attention import linear_attention
from mixers.ops.precision import wide

RANK, TEMPERATURE = 16, 16.0
DECAYS, WRITES = ("none", "constant", "scalar", "channel"), ("sum", "delta")


class Recipe(Mixer):
    """Any combination of a feature map, a decay, a write rule, a normaliser, a convolution and a gate."""

    sizes = ("d_key", "d_value")
    dynamics = ("A_log", "dt_bias")

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int,
        d_key: int,
        d_value: int,
        feature_map: str,
        decay: str,
        write: str,
        normalise: bool,
        conv: int,
        gate: bool,
        rotate: bool,
        max_length: int,
    ):
        super().__init__()
        for key, value, known in (("decay", decay, DECAYS), ("write", write, WRITES)):
            if value not in known:
                raise ValueError(f"{key} is '{value}': it must be one of {', '.join(known)}")
        self.n_heads, self.decay, self.write, self.normalise, self.rotate = n_heads, decay, write, normalise, rotate
        self.split = (n_heads * d_key, n_heads * d_key, n_heads * d_value)
        self.qkv = nn.Linear(d_model, sum(self.split), bias=False)
        self.conv = ShortConv(sum(self.split), width=conv, bias=False) if conv else None
        self.phi_q = self.phi_k = feature_maps.build(feature_map, d_key, n_heads=n_heads, max_length=max_length)
        if self.phi_q.learned:
            self.phi_k = feature_maps.build(feature_map, d_key, n_heads=n_heads, max_length=max_length)
        if normalise and not (self.phi_q.positive and write == "sum"):
            raise ValueError(
                f"normalise=true divides by a sum of weights, which feature_map={feature_map} with write={write} may "
                "make negative: choose a positive map and write=sum, or normalise=false"
            )
        if self.phi_q.log and not (normalise and decay == "none"):
            raise ValueError(
                f"feature_map={feature_map} needs a common factor taken out: normalise=true, decay=none, or another map"
            )
        if rotate and normalise:
            raise ValueError("rotate=true makes weights negative: set normalise=false")
        self.forget = self.beta = self.gate = None
        if decay == "constant":
            self.log_gamma: Tensor
            self.register_buffer("log_gamma", torch.log1p(-(2.0 ** -(5 + torch.arange(n_heads)))), persistent=False)
        elif decay == "scalar":
            self.forget = nn.Linear(d_model, n_heads, bias=False)
            self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(0, 16).clamp(min=1e-3).log())
            self.dt_bias = nn.Parameter(step_bias(n_heads))
        elif decay == "channel":
            low, high = nn.Linear(d_model, RANK, bias=False), nn.Linear(RANK, n_heads * self.phi_q.dim)
            nn.init.zeros_(high.bias)
            self.forget = nn.Sequential(low, high)
        if write == "delta":
            self.beta = nn.Linear(d_model, n_heads, bias=False)
        self.norm = None if normalise else RMSNorm(d_value)
        self.gate = nn.Linear(d_model, n_heads * d_value, bias=False) if gate else None
        self.out = nn.Linear(n_heads * d_value, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        tail, start, past = (None, None, None) if state is None else state
        steps, after = positions(x, start)
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, tail = self.conv(qkv, tail)
            qkv = F.silu(qkv)
        q, k, v = (heads(z, self.n_heads) for z in qkv.split(self.split, -1))
        q, k = self.phi_q(q, steps), self.phi_k(k, steps)
        if self.rotate:
            q, k = rope(q, steps), rope(k, steps)
        g = self.log_decays(x)
        if self.normalise:
            o, past = (
                log_normalised(q, k, v, past, None, True)
                if self.phi_q.log
                else normalised(q, k, v, past, None, True, g)
            )
        elif self.beta is not None:
            beta = heads(self.beta(x).sigmoid(), self.n_heads)
            o, past = delta_rule(l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k), v, beta, g, past)
        else:
            o, past = linear_attention(q * q.shape[-1] ** -0.5, k, v, g, past)
        o = merge(o if self.norm is None else self.norm(o))
        y = self.out(o if self.gate is None else o * F.silu(self.gate(x)))
        return y, (tail, after if self.rotate or self.phi_q.placed else None, past)

    def log_decays(self, x: Tensor) -> Tensor | None:
        """(B, H, T, 1) or (B, H, T, K), in float32 at least."""
        if self.decay == "constant":
            return self.log_gamma[None, :, None, None].expand(x.shape[0], -1, x.shape[1], 1)
        if self.forget is None:
            return None
        f = self.forget(x)
        if self.decay == "scalar":
            return heads(log_decay(self.A_log, f, self.dt_bias), self.n_heads)
        return heads(F.logsigmoid(f.to(wide(f.dtype))) / TEMPERATURE, self.n_heads)

    def resample(self, generator: Generator) -> None:
        self.phi_q.resample(generator)
