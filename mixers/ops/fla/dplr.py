"""`mixers.ops.dplr.dplr` by chunk_dplr_delta_rule, whose a reads and whose b writes.

In half precision only, for which it is made. Inside of its chunks of 16 it multiplies what a mask then takes away by
exp(-g), which must not overflow: decays that are stronger are left to torch.
"""

from torch import Tensor

from mixers.ops.fla import calls
from mixers.ops.fla.calls import decay, initial, kernel, returned, stream

STRONGEST = -5.0  # times 15, still within float32's exponents


def serves(q, k, v, a, b, g=None, state=None) -> bool:
    return calls.fits((q, k, a, b), v, g, state, calls.HALF) and bounded(g)


def bounded(g: Tensor | None) -> bool:
    """Waits for the device."""
    return g is None or bool(g.amin() >= STRONGEST)


def dplr(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g=None, state=None) -> tuple[Tensor, Tensor]:
    heads = v.shape[1]
    q_, k_, v_, a_, b_ = (stream(x, v.dtype, heads) for x in (q, k, v, a, b))
    options = {"scale": 1.0, "initial_state": initial(state), "output_final_state": True, "cu_seqlens": None}
    options |= {"cu_seqlens_cpu": None, "safe_gate": False, "chunk_size": 16, "disable_recompute": False}
    run = kernel("generalized_delta_rule.dplr", "chunk_dplr_delta_rule")
    o, S = run(q=q_, k=k_, v=v_, a=b_, b=a_, gk=decay(g, heads, k), cp_context=None, **options)
    return returned(o, S, v)
