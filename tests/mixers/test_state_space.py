"""State spaces and gated recurrences against their papers, step by step."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import D, agrees, conv, glu, make, rms, split

from mixers import registry
from mixers.layers import legs_normal


def softplus(x):
    return (1 + x.exp()).log()


def walk(a, b):
    """h_t = a_t h_{t-1} + b_t, a and b lists of (B, ...)."""
    h, out = torch.zeros_like(b[0]), []
    for a_t, b_t in zip(a, b, strict=True):
        h = a_t * h + b_t
        out.append(h)
    return torch.stack(out, 1)


def selective(m, x):
    x, z = m.xz(x).chunk(2, -1)
    x = F.silu(conv(m.conv, x))
    low, B, C = m.dtBC(x).split(m.split, -1)
    return x, z, softplus(m.dt(low) + m.dt_bias), B, C


def test_mamba():
    def plain(m, x):
        x, z, dt, B, C = selective(m, x)
        h, out = torch.zeros(len(x), 2 * D, 16, dtype=x.dtype), []
        for t in range(x.shape[1]):
            decay = (-dt[:, t, :, None] * m.A_log.exp()).exp()
            h = decay * h + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None]
            out.append((h * C[:, t, None]).sum(-1) + m.D * x[:, t])
        return m.out(torch.stack(out, 1) * F.silu(z))

    agrees(make("mamba"), plain)


def two_terms(m, x):
    """Mamba-3's parts, head by head: q and k turned as complex numbers, v, dt, decay, the new pair's share, z."""
    z, v, k, q, dt, A, l, angle = m.project(x).split(m.split, -1)
    n = m.n_angles
    q, k = (
        w / (w.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        for w, norm in ((q, m.norm_q), (k, m.norm_k))
    )
    parts = []
    for h, v_h in enumerate(split(v, m.n_heads)):
        step = softplus(dt[..., h] + m.dt_bias[h])
        theta = (step.unsqueeze(-1) * math.pi * angle.tanh()).cumsum(1)
        turn = torch.polar(torch.ones_like(theta), theta)
        turned = []
        for w, bias in ((q, m.bias_q[h]), (k, m.bias_k[h])):
            w = w + bias
            pairs = torch.complex(w[..., :n], w[..., n : 2 * n]) * turn
            turned.append(torch.cat([pairs.real, pairs.imag, w[..., 2 * n :]], -1))
        parts.append((*turned, v_h, step, (-softplus(A[..., h]) * step).exp(), l[..., h].sigmoid()))
    return parts, z


def test_mamba3():
    def plain(m, x):
        parts, z = two_terms(m, x)
        outputs = []
        for h, (q, k, v, dt, a, share) in enumerate(parts):
            S = last = torch.zeros(len(x), m.split[2], v.shape[-1], dtype=x.dtype)
            out = []
            for t in range(x.shape[1]):
                pair = k[:, t, :, None] * v[:, t, None]
                weights = [w[:, None, None] for w in (a[:, t], (1 - share[:, t]) * dt[:, t], share[:, t] * dt[:, t])]
                S = weights[0] * S + weights[1] * weights[0] * last + weights[2] * pair
                out.append((S * q[:, t, :, None]).sum(1) + m.D[h] * v[:, t])
                last = pair
            outputs.append(torch.stack(out, 1))
        return m.out(torch.cat(outputs, -1) * F.silu(z))

    agrees(make("mamba3", d_state=8), plain)


def test_mamba3_keeps_its_angle_below_a_turn():
    m, x = make("mamba3", d_state=8), torch.randn(2, 50, D, dtype=torch.float64)
    with torch.no_grad():
        m.dt_bias += 9
    _, (_, _, _, theta) = m(x)
    *_, dt, _, _, a = m.project(x).split(m.split, -1)
    whole = (softplus(dt + m.dt_bias).unsqueeze(-1) * math.pi * a.tanh().unsqueeze(2)).sum(1)
    assert 0 <= theta.min() and theta.max() < 2 * math.pi < whole.abs().max()
    one = torch.ones_like(whole)
    torch.testing.assert_close(torch.polar(one, theta), torch.polar(one, whole))


def test_lru():
    def plain(m, x):
        N, radius = m.nu.shape[0], (-m.nu.exp()).exp()
        eigenvalues = torch.complex(radius * m.theta.exp().cos(), radius * m.theta.exp().sin())
        B, C = torch.complex(m.B[:N], m.B[N:]), torch.complex(m.C[:, :N], m.C[:, N:])
        Bx = [m.gamma.exp() * (x[:, t].to(B.dtype) @ B.mT) for t in range(x.shape[1])]
        h = walk([eigenvalues] * len(Bx), Bx)
        return glu(m.out, (h @ C.mT).real + m.D * x)

    agrees(make("lru", d_state=6), plain)


def test_lru_starts_on_its_ring_with_states_as_large_as_inputs():
    torch.manual_seed(0)
    m = registry.build("lru", 16, d_state=512)
    radius = (-m.nu.exp()).exp()
    assert 0.9 <= radius.min() < 0.91 and 0.998 < radius.max() <= 0.999
    torch.testing.assert_close(m.gamma.exp(), (1 - radius**2).sqrt(), rtol=1e-3, atol=1e-4)
    assert 6.2 < m.theta.exp().max() <= 2 * math.pi
    assert abs(m.B.std() * 32**0.5 - 1) < 0.05 and abs(m.C.std() * 512**0.5 - 1) < 0.05


def s4d_parts(m):
    A = torch.complex(-m.log_A_real.exp(), m.A_imag)
    decay = (A * m.log_dt.exp()[:, None]).exp()
    return decay, torch.complex(m.C[..., 0], m.C[..., 1]) * (decay - 1) / A


def test_s4d_convolution_is_its_scan():
    def plain(m, x):
        decay, C = s4d_parts(m.ssm)
        h = walk([decay] * x.shape[1], [x[:, t, :, None].to(C.dtype) for t in range(x.shape[1])])
        return glu(m.out, 2 * (C * h).sum(-1).real + m.ssm.D * x)

    agrees(make("s4d", d_state=8), plain)


def test_s4_convolution_is_its_scan():
    """The whole matrix of all conjugate pairs, discretised by a dense solve."""

    def plain(m, x):
        outputs = []
        for d in range(D):
            eigenvalues = torch.complex(-m.log_real[d].exp(), m.imag[d])
            P, B, C = (torch.complex(z[d, :, 0], z[d, :, 1]) for z in (m.P, m.B, m.C))
            eigenvalues, P, B, C = (torch.cat([z, z.conj()]) for z in (eigenvalues, P, B, C))
            A, eye, dt = eigenvalues.diag() - P[:, None] * P.conj(), torch.eye(8, dtype=P.dtype), m.log_dt[d].exp()
            A_ = torch.linalg.solve(eye - dt / 2 * A, eye + dt / 2 * A)
            B_ = torch.linalg.solve(eye - dt / 2 * A, dt * B)
            h, out = torch.zeros(len(x), 8, dtype=P.dtype), []
            for t in range(x.shape[1]):
                h = h @ A_.mT + B_ * x[:, t, d, None]
                out.append((h @ C).real + m.D[d] * x[:, t, d])
            outputs.append(torch.stack(out, 1))
        return glu(m.out, torch.stack(outputs, -1))

    agrees(make("s4", d_state=8), plain)


def test_s4_starts_as_hippo():
    m = registry.build("s4", 1, d_state=10)
    _, V = legs_normal(10)
    P, B = torch.view_as_complex(m.P)[0], torch.view_as_complex(m.B)[0]
    eigenvalues = torch.complex(-m.log_real[0].exp(), m.imag[0])
    P, B = 2 * (V @ P).real, 2 * (V @ B).real
    n = torch.arange(10.0)
    torch.testing.assert_close(P, (n + 0.5).sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(B, (2 * n + 1).sqrt(), rtol=1e-4, atol=1e-4)
    A = 2 * (V * eigenvalues @ V.mH).real - P[:, None] * P
    torch.testing.assert_close(A, -torch.diag(n + 1) - (B[:, None] * B).tril(-1), rtol=1e-4, atol=1e-3)


def test_s5():
    def plain(m, x):
        half = m.log_dt.shape[0]
        eigenvalues = torch.complex(m.Lambda[:, 0], m.Lambda[:, 1])
        decay = (eigenvalues * m.log_dt.exp()).exp()
        B, C = torch.complex(m.B[:half], m.B[half:]), torch.complex(m.C[:, :half], -m.C[:, half:])
        Bx = [(decay - 1) / eigenvalues * (x[:, t].to(B.dtype) @ B.mT) for t in range(x.shape[1])]
        y = F.gelu(2 * (walk([decay] * len(Bx), Bx) @ C.mT).real + m.D * x)
        return y / (1 + (-m.gate(y)).exp())

    agrees(make("s5", d_state=12, n_blocks=2), plain)
    with pytest.raises(ValueError, match="d_state=12 does not make n_blocks=4"):
        registry.build("s5", D, d_state=12, n_blocks=4)


def test_legs_normal():
    """A = -sqrt((2n + 1)(2k + 1)) below the diagonal, -(n + 1) on it; A + P P^T has these eigenvectors."""
    n = 10
    A = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            A[i, j] = -math.sqrt((2 * i + 1) * (2 * j + 1))
        A[i, i] = -(i + 1)
    P = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    values, V = legs_normal(n)
    normal = (A + P[:, None] * P).to(torch.complex64)
    torch.testing.assert_close(normal @ V, V * values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(V.mH @ V, torch.eye(n // 2).to(V.dtype), rtol=1e-5, atol=1e-5)
    assert (values.imag > 0).all()


def test_s5_starts_from_real_matrices():
    torch.manual_seed(0)
    m = registry.build("s5", D, d_state=8, n_blocks=1)
    _, V = legs_normal(8)
    B, C = torch.complex(m.B[:4], m.B[4:]), torch.complex(m.C[:, :4], -m.C[:, 4:])
    real_B, real_C = 2 * (V @ B).real, 2 * (C @ V.mH).real  # each state and its conjugate
    torch.testing.assert_close(V.mH @ real_B.to(V.dtype), B, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(real_C.to(V.dtype) @ V, C, rtol=1e-4, atol=1e-4)
    assert abs(real_B.std().item() * D**0.5 - 1) < 0.2 and abs(real_C.std().item() * 8**0.5 - 1) < 0.2


def test_rg_lru():
    def plain(m, x):
        u, z = m.uz(x).chunk(2, -1)
        u = conv(m.conv, u)
        r, i = (
            torch.cat([u_h @ W[h] for h, u_h in enumerate(split(u, 4))], -1).add(b).sigmoid()
            for W, b in zip(m.gates, m.bias, strict=True)
        )
        a = (1 + m.Lambda.exp()) ** (-8 * r)
        first, *rest = ((1 - a**2).sqrt() * i * u).unbind(1)
        h = walk(a.unbind(1), [i[:, 0] * u[:, 0], *rest])
        return m.out(h * F.gelu(z))

    agrees(make("rg_lru"), plain)


def test_rg_lru_starts_on_its_ring():
    torch.manual_seed(0)
    m = registry.build("rg_lru", 512)
    radius = (-F.softplus(m.Lambda)).exp()
    assert 0.9 <= radius.min() < 0.91 and 0.998 < radius.max() <= 0.9991
    assert abs(m.gates.std() * 128**0.5 - 1) < 0.05 and not m.bias.any()
    assert abs(m.conv.weight.std() * 20 - 1) < 0.1 and not m.conv.bias.any()


def test_rg_lru_never_forgets_without_nan():
    m = registry.build("rg_lru", D)
    with torch.no_grad():
        m.bias[0] = -200.0  # r = 0 and a = 1, where the root has no slope
    x = torch.randn(2, 9, D, requires_grad=True)
    m(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all() and all(torch.isfinite(p.grad).all() for p in m.parameters())


def test_min_gru():
    def plain(m, x):
        z, c = m.zc(x).chunk(2, -1)
        z = z.sigmoid()
        return m.out(walk((1 - z).unbind(1), (z * c).unbind(1)))

    agrees(make("min_gru"), plain)


def test_min_lstm():
    def plain(m, x):
        f, i, c = m.fic(x).chunk(3, -1)
        f, i = f.sigmoid(), i.sigmoid()
        return m.out(walk((f / (f + i)).unbind(1), (i / (f + i) * c).unbind(1)))

    agrees(make("min_lstm"), plain)


def test_min_lstm_keeps_a_unit_when_both_gates_are_shut():
    m = registry.build("min_lstm", D)
    with torch.no_grad():
        m.fic.weight.zero_()
        m.fic.bias[: 4 * D], m.fic.bias[4 * D :] = -200.0, 1.0
    _, h = m(torch.randn(1, 1, D))
    torch.testing.assert_close(h, torch.full_like(h, 0.5))


def test_hgrn():
    def plain(m, x):
        f, c, gate = m.fcg(x).chunk(3, -1)
        low = m.bound.sigmoid()
        f = low + (1 - low) * f.sigmoid()
        h = walk(f.unbind(1), ((1 - f) * F.silu(c)).unbind(1))
        return m.out(rms(m.norm, h) * F.silu(gate))

    agrees(make("hgrn", layer=1, n_layers=4), plain)
    bounds = [registry.build("hgrn", D, layer=layer, n_layers=4).bound.sigmoid() for layer in range(4)]
    for layer, bound in enumerate(bounds, 1):
        torch.testing.assert_close(bound, torch.full_like(bound, layer / 5))


def test_qrnn():
    def plain(m, x):
        h, out = torch.zeros(len(x), D, dtype=x.dtype), []
        for t in range(x.shape[1]):
            before = x[:, t - 1] if t else torch.zeros_like(x[:, 0])
            z, f, o = m.zfo(torch.cat([before, x[:, t]], -1)).chunk(3, -1)
            h = f.sigmoid() * h + (1 - f.sigmoid()) * z.tanh()
            out.append(o.sigmoid() * h)
        return torch.stack(out, 1)

    agrees(make("qrnn"), plain)


def steps(bias):
    """The range of dt = softplus(bias)."""
    dt = F.softplus(bias)
    assert 1e-3 <= dt.min() * 1.001 and dt.max() <= 0.1001
    return dt.max() / dt.min()


def test_initial_steps_and_rates():
    """Steps are log-uniform in 0.001 ... 0.1; times rates of 1 to 16, memories are 0.6 to 1000 tokens."""
    torch.manual_seed(0)
    mamba, mamba3, s4d = (registry.build(name, 256) for name in ("mamba", "mamba3", "s4d"))
    assert steps(mamba.dt_bias) > 50 and (mamba.D == 1).all()
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 17).expand(512, -1))
    assert mamba.dt.weight.shape == (512, 16)
    assert -0.25 <= mamba.dt.weight.min() < -0.24 and 0.24 < mamba.dt.weight.max() <= 0.25
    steps(mamba3.dt_bias)
    assert (mamba3.D == 1).all() and (mamba3.bias_q == 1).all() and (mamba3.bias_k == 1).all()
    for module in (s4d.ssm, registry.build("s4", 256), registry.build("s5", 16, d_state=512)):
        dt = module.log_dt.exp()
        assert 1e-3 <= dt.min() < 1.2e-3 and 0.08 < dt.max() <= 0.1
    for module in (s4d.ssm, registry.build("s4", 256)):
        assert abs(module.C.square().sum(-1).mean() - 1) < 0.05  # complex, of variance 1
    torch.testing.assert_close(s4d.ssm.log_A_real.exp(), torch.full((256, 32), 0.5))
    torch.testing.assert_close(s4d.ssm.A_imag, (math.pi * torch.arange(32)).expand(256, -1))


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("mamba3", {"d_state": 6}, "d_state=6 is not divisible by 4"),
        ("mamba3", {"n_heads": 3}, "n_heads=3"),
        ("rg_lru", {"n_heads": 3}, "n_heads=3"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_so(name, knobs, words):
    with pytest.raises(ValueError, match=words):
        registry.build(name, D, **knobs)
