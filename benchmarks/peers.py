"""What a user would run instead of our engines, called with our layout: (B, H, T, D) for attention-like operations.

Each function returns the outputs alone, or raises ImportError where its package is not installed. FLA's references are
loaded from their files, since importing the package itself asks for Triton.
"""

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F


def sdpa(q, k, v, g=None):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def performer_pytorch(q, k, v, g=None):
    from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda

    return causal_linear_attention_noncuda(q.exp(), k.exp(), v)  # it normalises, and needs positive features


def fast_transformers(q, k, v, g=None):
    """Its features are positive; the cost does not depend on that. Without decay, which it does not have."""
    from fast_transformers.causal_product import causal_dot_product

    return causal_dot_product(q.contiguous(), k.contiguous(), v.contiguous())


def fla_chunk_linear(q, k, v, g=None):
    return reference("linear_attn").naive_chunk_linear_attn(*map(swap, (q, k, v)))


def fla_chunk_scalar(q, k, v, g):
    return reference("simple_gla").naive_chunk_simple_gla(*map(swap, (q, k, v)), swap(g).squeeze(-1))[0]


def fla_recurrent_channel(q, k, v, g):
    return reference("gla").naive_recurrent_gla(*map(swap, (q, k, v, g)))[0]


def fla_chunk_delta(q, k, v, beta, g):
    return reference("gated_delta_rule").naive_chunk_gated_delta_rule(
        *map(swap, (q, k, v)), g=swap(g).squeeze(-1), beta=swap(beta).squeeze(-1)
    )[0]


def transformers_mamba2(q, k, v, g):
    """Its dt x is our v and its A dt our g, so that dt = 1 and A cannot vary: a step of |g| and A = -1, v / |g|."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    step = -swap(g).squeeze(-1)
    A = -torch.ones(q.shape[1])
    return mamba2_chunk_scan(swap(v) / step.unsqueeze(-1), step, A, swap(k), swap(q), chunk_size=64)


def transformers_delta(q, k, v, beta, g):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return torch_chunk_gated_delta_rule(
        *map(swap, (q, k, v)), g=swap(g).squeeze(-1), beta=swap(beta).squeeze(-1), chunk_size=64
    )[0]


def mambapy_selective_scan(x, dt, A, B, C, D):
    from mambapy.pscan import pscan

    h = pscan((dt.unsqueeze(-1) * A).exp(), (dt * x).unsqueeze(-1) * B.unsqueeze(2))
    return (h @ C.unsqueeze(-1)).squeeze(-1) + D * x


def mambapy_scan(a, b):
    from mambapy.pscan import pscan

    return pscan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1)


@cache
def s5(width: int) -> torch.nn.Module:
    from s5.s5_model import S5

    return S5(width, width)


def s5_layer(x):
    return s5(x.shape[-1])(x)


def swap(x):
    return x.transpose(1, 2)


@cache
def reference(name: str):
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        raise ImportError("fla-core is not installed")
    path = f"{package.submodule_search_locations[0]}/ops/{name}/naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
