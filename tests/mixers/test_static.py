"""Static mixers against their papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import D, T, agrees, make

from mixers import registry


def noise():
    return torch.randn(2, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_fnet_is_two_transforms():
    transforms = []
    for n in (T, D):
        places = torch.arange(n).double()
        transforms.append(torch.exp(-2j * math.pi * torch.outer(places, places) / n))
    rows, columns = transforms
    agrees(make("fnet"), lambda m, x: (rows @ x.to(rows.dtype) @ columns).real / (T * D) ** 0.5)


def test_gfnet_is_a_circular_convolution():
    n = 24

    def plain(m, x):
        frequencies = torch.view_as_complex(m.W)
        filters = torch.fft.irfft(frequencies, n, dim=0)  # (n, D)
        padded = torch.cat([x, torch.zeros(2, n - T, D, dtype=x.dtype)], 1)
        rows = [sum(filters[(t - j) % n] * padded[:, j] for j in range(n)) for t in range(T)]
        return torch.stack(rows, 1)

    agrees(make("gfnet", causal=False, max_length=n), plain)


def test_mlp_mixer():
    def plain(m, x):
        first, last = m.mlp[0], m.mlp[2]
        hidden = F.gelu(torch.einsum("nt,btd->bnd", first.weight[:, :T], x) + first.bias[:, None])
        return torch.einsum("tn,bnd->btd", last.weight[:T], hidden) + last.bias[:T, None]

    agrees(make("mlp_mixer", causal=False, n_hidden=7, max_length=30), plain)


@pytest.mark.parametrize("causal", [True, False])
def test_gmlp(causal):
    def plain(m, x):
        u, z = F.gelu(m.inner(x)).chunk(2, -1)
        z = z - z.mean(-1, keepdim=True)
        z = m.norm.weight * z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() + m.norm.bias
        rows = []
        for t in range(T):
            seen = range(t + 1 if causal else T)
            rows.append(u[:, t] * (sum(m.W[t, j] * z[:, j] for j in seen) + m.b[t]))
        return m.out(torch.stack(rows, 1))

    agrees(make("gmlp", causal=causal, max_length=30), plain)


def test_null_baselines():
    agrees(make("causal_mean"), lambda m, x: torch.stack([x[:, : t + 1].mean(1) for t in range(T)], 1))
    agrees(make("shift"), lambda m, x: torch.stack([0 * x[:, 0], *x.unbind(1)[:-1]], 1))
    agrees(make("identity"), lambda m, x: x)


def test_initial_values():
    torch.manual_seed(0)
    W = registry.build("gfnet", 64, max_length=99).W
    assert W.shape == (50, 64, 2) and 0.019 < W.std() < 0.021
    gate = registry.build("gmlp", D, max_length=100)
    assert 0.9e-5 < gate.W.abs().max() <= 1e-5 and (gate.b == 1).all()


@pytest.mark.parametrize("name", ["gfnet", "mlp_mixer", "gmlp", "linformer"])
def test_fixed_lengths_are_errors_beyond(name):
    mixer = make(name, causal=False, max_length=T - 1)
    with pytest.raises(ValueError, match=f"max_length={T - 1} and got {T} steps: raise task.max_length"):
        mixer(noise())


def test_a_causal_gmlp_ends_at_max_length_in_pieces_too():
    mixer = make("gmlp", max_length=T)
    _, state = mixer(noise())
    with pytest.raises(ValueError, match=f"max_length={T} and got {T + 1} steps"):
        mixer(noise()[:, :1], state)
