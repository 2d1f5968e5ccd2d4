"""Ridge regression by conjugate gradients against elimination, step by step."""

import pytest
import torch
import torch.nn.functional as F

from mixers.ops.ridge import ridge, ridge_definition

B, H, K = 2, 2, 5


def inputs(T, alike, carried):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k = F.normalize(noise(B, H, T, K) + alike * noise(B, H, 1, K), dim=-1)
    given = [noise(B, H, T, K), k, noise(B, H, T, 1).sigmoid(), -noise(B, H, T, 1).abs(), noise(H, 1, K).abs() + 0.25]
    return [x.requires_grad_() for x in given + ([noise(B, H, 7, K)] if carried else [])]


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("alike", [0, 100])
@pytest.mark.parametrize("T", [1, 2, 70])
def test_ridge(T, alike, carried):
    leaves, results = inputs(T, alike, carried), []
    for op, more in ((ridge, {"n_steps": 2 * K}), (ridge_definition, {})):
        q, k, beta, g, Lambda, *before = leaves
        s, last = op(q, k, beta * k, g, Lambda, *(x.mT @ x for x in before), **more)
        loss = (s * torch.arange(s.numel()).view(s.shape).sin()).sum() + last.square().sum()
        results.append([s, last, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_fewer_steps_come_less_near():
    q, k, beta, g, Lambda = (x.detach() for x in inputs(40, 0, False))
    exact, _ = ridge_definition(q, k, beta * k, g, Lambda)
    errors = [(ridge(q, k, beta * k, g, Lambda, n_steps=n)[0] - exact).abs().max().item() for n in (0, 1, 2, 5)]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-9
