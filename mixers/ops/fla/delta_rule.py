"""`mixers.ops.gated_delta.delta_rule`: what is erased is a multiple of the key, for which there are better kernels than
for any other p.

    no decay     chunk_delta_rule, in half precision, which is all it takes; chunk_kda in float32, and where that
                 is miscompiled
    scalar       chunk_gated_delta_rule; chunk_kda where that is excluded
    per channel  chunk_kda
"""

from torch import Tensor

from mixers.ops.fla import calls
from mixers.ops.fla.calls import decay, initial, kernel, returned, scalar, stream


def serves(q, k, v, beta, g=None, state=None) -> bool:
    return beta.shape == (*v.shape[:3], 1) and calls.fits((q, k), v, g, state)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g=None, state=None) -> tuple[Tensor, Tensor]:
    heads, few = v.shape[1], k.shape[1]
    v_, beta_ = stream(v, v.dtype, heads), stream(beta, beta.dtype, heads).squeeze(-1)
    options = {"scale": 1.0, "initial_state": initial(state), "output_final_state": True}
    options |= {"use_qk_l2norm_in_kernel": False, "cu_seqlens": None, "cu_seqlens_cpu": None}
    if g is None and v.dtype in calls.HALF and not calls.miscompiled(k, v):
        q_, k_ = (stream(x, v.dtype, heads) for x in (q, k))
        run = kernel("delta_rule", "chunk_delta_rule")
        return returned(*run(q=q_, k=k_, v=v_, beta=beta_.to(v.dtype), **options), v)
    q_, k_ = (stream(x, v.dtype, few) for x in (q, k))  # these share keys out to heads themselves
    options |= {"use_beta_sigmoid_in_kernel": False, "allow_neg_eigval": False, "state_v_first": False}
    options |= {"cp_context": None, "q": q_, "k": k_, "v": v_, "beta": beta_.float()}
    if g is not None and g.shape[3] == 1 and not calls.excluded():
        run = kernel("gated_delta_rule", "chunk_gated_delta_rule")
        return returned(*run(g=scalar(g, heads), chunk_indices=None, use_gate_in_kernel=False, **options), v)
    options |= {"use_gate_in_kernel": False, "safe_gate": False, "lower_bound": None, "disable_recompute": False}
    options |= {"return_intermediate_states": False, "use_graph": False, "max_num_seqs": None}
    return returned(*kernel("kda", "chunk_kda")(g=decay(g, heads, k), **options), v)
