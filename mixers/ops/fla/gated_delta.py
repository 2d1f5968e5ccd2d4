"""`mixers.ops.gated_delta.gated_delta`, whose p may be any vector, as a `dplr` that reads p through the decay:

    (I - k p^T) diag(e^g) = diag(e^g) - k (e^g p)^T

Where p is a multiple of the key, `mixers.ops.gated_delta.delta_rule` has better kernels.
"""

from torch import Tensor

from mixers.ops.fla import dplr


def serves(q, k, p, z, g=None, state=None) -> bool:
    return dplr.serves(q, k, z, k, p, g, state)


def gated_delta(q: Tensor, k: Tensor, p: Tensor, z: Tensor, g=None, state=None) -> tuple[Tensor, Tensor]:
    if g is not None:
        p = p if g.shape[1] == p.shape[1] else p.repeat_interleave(g.shape[1] // p.shape[1], 1)
        p = p * g.exp()
    return dplr.dplr(q, k, z, -k, p, g, state)
