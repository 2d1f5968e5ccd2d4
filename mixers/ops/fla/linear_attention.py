"""`mixers.ops.linear_attention.linear_attention` by the kernel for its kind of decay.

    none         chunk_linear_attn; chunk_gla where that is miscompiled
    scalar       chunk_simple_gla; chunk_gla where that is excluded
    per channel  chunk_gla
    with a bonus chunk_rwkv6

There is none for a decay of the values.
"""

from torch import Tensor

from mixers.ops.fla import calls
from mixers.ops.fla.calls import decay, initial, kernel, returned, scalar, stream


def serves(q, k, v, g=None, state=None, u=None, gv=None) -> bool:
    return gv is None and calls.fits((q, k), v, g, state)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, g=None, state=None, *, u: Tensor | None = None, gv: None = None
) -> tuple[Tensor, Tensor]:
    heads = v.shape[1]
    q_, k_, v_ = (stream(x, v.dtype, heads) for x in (q, k, v))
    options = {"scale": 1.0, "initial_state": initial(state), "output_final_state": True, "cu_seqlens": None}
    if u is not None:
        w = decay(g, heads, k)
        run = kernel("rwkv6", "chunk_rwkv6")
        return returned(*run(r=q_, k=k_, v=v_, w=w, u=u.float(), cu_seqlens_cpu=None, **options), v)
    if g is None and not calls.miscompiled(k, v):
        run = kernel("linear_attn", "chunk_linear_attn")
        return returned(*run(q=q_, k=k_, v=v_, normalize=False, **options), v)
    options |= {"state_v_first": False, "cu_seqlens_cpu": None}
    if g is not None and g.shape[3] == 1 and not calls.excluded():
        run = kernel("simple_gla", "chunk_simple_gla")
        return returned(*run(q=q_, k=k_, v=v_, g=scalar(g, heads), g_gamma=None, **options), v)
    return returned(*kernel("gla", "chunk_gla")(q=q_, k=k_, v=v_, g=decay(g, heads, k), **options), v)
