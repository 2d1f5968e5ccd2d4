"""inner_loop against its definition, whose gradients are torch's: outputs, weights, momenta, and second derivatives."""

import pytest
import torch

from mixers.ops.gated_delta import delta_rule
from mixers.ops.inner_loop import inner_loop, inner_loop_definition

B, H, C, D = 2, 3, 6, 4


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(depth, momentum, norm, bias):
    widths = [D, *[7] * (depth - 1), D]
    shapes = [(B, H, n + bias, m) for n, m in zip(widths, widths[1:], strict=False)]
    given = {"q": noise(B, H, C, D), "k": noise(B, H, C, D, seed=1), "v": noise(B, H, C, D, seed=2)}
    given["eta"] = 0.2 * noise(B, H, C, 1, seed=3).sigmoid()
    given["W"] = tuple(0.5 * noise(*shape, seed=4) for shape in shapes)
    if momentum:
        given["S"] = tuple(0.5 * noise(*shape, seed=5) for shape in shapes)
        given["log_a"], given["log_m"] = -noise(B, H, C, 1, seed=6).abs(), -noise(B, H, C, 1, seed=7).abs()
    if norm:
        given["norm"] = (1 + 0.3 * noise(H, 1, D, seed=8), 0.3 * noise(H, 1, D, seed=9))
        given["r"] = noise(C + 2, seed=10).abs()
    return given


def engine(**given):
    o, write = inner_loop(**given)
    return o, *write()


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for part in value or () for t in flat(part)]


@pytest.mark.parametrize("bias", [0, 1])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_inner_loop(depth, momentum, norm, bias):
    results = []
    for f in (engine, inner_loop_definition):
        given = inputs(depth, momentum, norm, bias)
        leaves = [t.requires_grad_() for t in flat(list(given.values()))]
        outputs = flat(list(f(**given)))[: 1 + (1 + momentum) * depth]  # the definition makes momenta either way
        loss = sum((t * noise(*t.shape, seed=11)).sum() for t in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_fewer_queries_are_the_last_rows():
    given = inputs(2, True, False, 0)
    o = inner_loop(**given)[0]
    torch.testing.assert_close(inner_loop(**given | {"q": given["q"][:, :, 4:]})[0], o[:, :, 4:])


def test_a_gate_that_forgets_all_is_finite():
    given = inputs(2, True, False, 0)
    given["log_a"] = torch.full_like(given["log_a"], -1e4).requires_grad_()
    o, W, S = engine(**given)
    (gradient,) = torch.autograd.grad(o.sum() + sum(w.sum() for w in (*W, *S)), [given["log_a"]])
    assert all(torch.isfinite(t).all() for t in (o, *W, *S, gradient))


def test_one_token_at_a_time_in_a_linear_map_is_the_delta_rule():
    q, k, v, beta = (noise(B, H, 9, n, seed=seed) for seed, n in enumerate((D, D, D, 1)))
    k, beta = k / k.norm(dim=-1, keepdim=True), beta.sigmoid()
    W, out = (torch.zeros(B, H, D, D, dtype=torch.float64),), []
    for t in range(9):
        o, write = inner_loop(*(x[:, :, t : t + 1] for x in (q, k, v, beta)), W)
        out, (W, _) = [*out, o], write()
    o, S = delta_rule(q, k, v, beta)
    torch.testing.assert_close(torch.cat(out, 2), o)
    torch.testing.assert_close(W[0], S)
