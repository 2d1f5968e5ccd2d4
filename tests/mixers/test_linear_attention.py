"""Linear-attention mixers against their papers, step by step."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import HEADS, D, agrees, conv, make, rms, split, unit

from mixers import feature_maps
from mixers.feature_maps import FEATURE_MAPS


def walk(q, k, v, decay=None, read=None):
    """S <- decay(t) S + k v^T for one head, o = S^T q."""
    S, out = torch.zeros(len(q), q.shape[-1], v.shape[-1], dtype=q.dtype), []
    for t in range(q.shape[1]):
        S = S if decay is None else decay(t) * S
        S = S + k[:, t, :, None] * v[:, t, None]
        out.append(torch.einsum("bkv,bk->bv", S, q[:, t]))
    return torch.stack(out, 1)


def kernel(weigh, values, q, k, causal=True):
    """Row by row: sum_j weigh(q_i, k_j, i, j) v_j over the sum of weights, for one head."""
    rows = []
    for i in range(q.shape[1]):
        n = i + 1 if causal else q.shape[1]
        w = torch.stack([weigh(q[:, i], k[:, j], i, j) for j in range(n)], -1)
        rows.append(torch.einsum("bj,bjd->bd", w, values[:, :n]) / (w.sum(-1, keepdim=True) + 1e-6))
    return torch.stack(rows, 1)


def dot(a, b):
    return (a * b).sum(-1)


def elu1(x):
    return torch.where(x > 0, x + 1, x.exp())


def softplus(x):
    return (1 + x.exp()).log()


def fused(m, x, *sizes):
    return [split(z) for z in (m.qkv(x).split(sizes, -1) if sizes else m.qkv(x).chunk(3, -1))]


both = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


@both
@pytest.mark.parametrize("name", ["linear_attention", "kernel_attention"])
def test_linear_attention(name, causal):
    def weigh(a, b, i, j):
        return dot(elu1(a), elu1(b))

    def plain(m, x):
        return m.out(torch.cat([kernel(weigh, v, q, k, causal) for q, k, v in zip(*fused(m, x), strict=True)], -1))

    agrees(make(name, causal=causal), plain)


WIDTH = D // HEADS
KERNELS = {  # of two rows (B, d) at i and j, as each paper has it
    "relu": lambda a, b, i, j: dot(a.relu(), b.relu()),
    "squared_relu": lambda a, b, i, j: dot(a.relu() ** 2, b.relu() ** 2),
    "softmax": lambda a, b, i, j: dot(a.softmax(-1), b.softmax(-1)),
    "taylor": lambda a, b, i, j: 1 + dot(a, b) * WIDTH**-0.5 + (dot(a, b) * WIDTH**-0.5) ** 2 / 2,
    "power": lambda a, b, i, j: dot(a, b) ** 2 / WIDTH,
    "cosformer": lambda a, b, i, j: dot(a.relu(), b.relu()) * math.cos(math.pi / 2 * (i - j) / 256),
}


@both
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name, causal):
    def plain(m, x):
        weigh = KERNELS[name]
        return m.out(torch.cat([kernel(weigh, v, q, k, causal) for q, k, v in zip(*fused(m, x), strict=True)], -1))

    agrees(make("kernel_attention", feature_map=name, causal=causal), plain, 1e-7)


@both
@pytest.mark.parametrize("name", ["exp", "positive_random"])
def test_exponential_features_need_no_epsilon(name, causal):
    def plain(m, x):
        rows = []
        for q, k, v in zip(*fused(m, x), strict=True):
            if name == "positive_random":
                q, k = (z @ m.phi_q.omega.double().T - dot(z, z)[..., None] / 2 for z in (q * 8**-0.25, k * 8**-0.25))
            w = torch.einsum("bid,bjd->bij", q.exp(), k.exp())
            w = w.tril() if causal else w
            rows.append(w @ v / w.sum(-1, keepdim=True))
        return m.out(torch.cat(rows, -1))

    agrees(
        make("kernel_attention", feature_map=name, causal=causal), plain, 1e-5
    )  # the engine's quotient has 1e-6 in it


def test_learned_maps():
    def hedgehog(phi, h, x):
        y = x @ phi.weight[h] + phi.bias[h]
        e = torch.cat([y, -y], -1).exp()
        return e / e.sum(-1, keepdim=True)

    def t2r(phi, h, x):
        return (x @ phi.weight[h] + phi.bias[h]).clamp(min=0)

    for name, features in (("hedgehog", hedgehog), ("t2r", t2r)):

        def plain(m, x, features=features):
            heads = []
            for h, (q, k, v) in enumerate(zip(*fused(m, x), strict=True)):
                heads.append(kernel(lambda a, b, i, j: dot(a, b), v, features(m.phi_q, h, q), features(m.phi_k, h, k)))
            return m.out(torch.cat(heads, -1))

        agrees(make("kernel_attention", feature_map=name), plain)


def test_rebased():
    def normed(phi, x):
        x = x - x.mean(-1, keepdim=True)
        return phi.norm.weight * x / (x.square().mean(-1, keepdim=True) + phi.norm.eps).sqrt() + phi.norm.bias

    def plain(m, x):
        heads = [
            kernel(lambda a, b, i, j: dot(a, b) ** 2 / 8, v, normed(m.phi_q, q), normed(m.phi_k, k))
            for q, k, v in zip(*fused(m, x, 16, 16, D), strict=True)
        ]
        return m.out(torch.cat(heads, -1))

    agrees(make("rebased", d_key=8), plain, 1e-7)


def test_dpfp_multiplies_neighbours():
    def phi(x):
        r = torch.cat([x, -x], -1).clamp(min=0)
        n = r.shape[-1]
        return torch.stack([r[..., i] * r[..., (i + j) % n] for j in (1, 2, 3) for i in range(n)], -1)

    def plain(m, x):
        heads = [
            kernel(lambda a, b, i, j: dot(a, b), v, phi(q), phi(k))
            for q, k, v in zip(*fused(m, x, 8, 8, D), strict=True)
        ]
        return m.out(torch.cat(heads, -1))

    agrees(make("dpfp", d_key=4), plain)


@both
@pytest.mark.parametrize("name", ["identity", "silu", "trigonometric_random"])
def test_maps_that_may_be_negative_are_normed(name, causal):
    def plain(m, x):
        heads = []
        for q, k, v in zip(*fused(m, x), strict=True):
            if name == "silu":
                q, k = q * q.sigmoid(), k * k.sigmoid()
            elif name == "trigonometric_random":
                q, k = trigonometric(m.phi_q.omega, q), trigonometric(m.phi_q.omega, k)
            heads.append(rms(m.norm, walk(q, k, v) if causal else q @ (k.mT @ v)))
        return m.out(torch.cat(heads, -1))

    agrees(make("kernel_attention", feature_map=name, causal=causal), plain)


def trigonometric(omega, x):
    x = x * x.shape[-1] ** -0.25
    z = x @ omega.double().T
    return (x.square().sum(-1, keepdim=True) / 2).exp() * torch.cat([z.cos(), z.sin()], -1) * omega.shape[0] ** -0.5


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_every_map_says_what_it_is(name):
    torch.manual_seed(0)
    phi = feature_maps.build(name, 4, n_heads=HEADS, max_length=64).double()
    x, steps = torch.randn(2, HEADS, 9, 4).double(), torch.arange(9).expand(2, -1)
    y = phi(x, steps)
    assert y.shape == (2, HEADS, 9, phi.dim)
    y = y.exp() if phi.log else y
    kernels = y @ y.mT
    assert phi.positive == bool((kernels >= 0).all()), "it says otherwise of the sign of its kernel"
    assert phi.learned == any(True for _ in phi.parameters())
    moved = phi(x, steps + 5)
    assert phi.placed == (not torch.equal(moved, phi(x, steps)))


def test_performer_that_looks_both_ways():
    """Keys share one constant, the largest of all; there is no past on whose scale anything was written."""

    def plain(m, x):
        heads, eps = [], 1e-4 * m.omega.shape[0] ** 0.5
        for q, k, v in zip(*fused(m, x), strict=True):
            a, b = (z @ m.omega.double().T - dot(z, z)[..., None] / 2 for z in (q * WIDTH**-0.25, k * WIDTH**-0.25))
            a = (a - a.detach().amax(-1, keepdim=True)).exp() + eps
            b = (b - b.detach().amax((1, 2), keepdim=True)).exp() + eps
            heads.append(kernel(lambda f, h, i, j: dot(f, h), v, a, b, causal=False))
        return m.out(torch.cat(heads, -1))

    agrees(make("performer", n_features=12, causal=False), plain)


def test_performer():
    def phi(omega, x):
        x = x * x.shape[-1] ** -0.25
        return x @ omega.double().T - x.square().sum(-1, keepdim=True) / 2

    def plain(m, x):
        heads = []
        eps = 1e-4 * m.omega.shape[0] ** 0.5
        for q, k, v in zip(*fused(m, x), strict=True):
            a, b = phi(m.omega, q), phi(m.omega, k)
            a = (a - a.detach().amax(-1, keepdim=True)).exp() + eps
            c = b.detach().amax(-1).cummax(1).values  # the largest value so far
            rows = []
            for i in range(q.shape[1]):
                # eps was added when key j was written, on the scale of that time
                f = torch.stack([((b[:, j] - c[:, j, None]).exp() + eps) * (c[:, j] - c[:, i]).exp()[:, None]
                                 for j in range(i + 1)], 1)  # fmt: skip
                w = torch.einsum("bd,bjd->bj", a[:, i], f)
                rows.append(torch.einsum("bj,bjd->bd", w, v[:, : i + 1]) / (w.sum(-1, keepdim=True) + 1e-6))
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    agrees(make("performer", n_features=12), plain)


def test_retnet():
    def turned(x):
        half = x.shape[-1] // 2
        z = torch.complex(x[..., :half], x[..., half:])
        angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        z = z * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], -1)

    def plain(m, x):
        (q, k), v, gate = (split(z) for z in m.qk(x).chunk(2, -1)), split(m.v(x)), split(F.silu(m.gate(x)))
        heads = []
        for h in range(HEADS):
            o = walk(turned(q[h]) * WIDTH**-0.5, turned(k[h]), v[h], lambda t, h=h: 1 - 2.0 ** (-5 - h))
            heads.append(rms(m.norm, o) * gate[h])
        return m.out(torch.cat(heads, -1))

    mixer = make("retnet")
    mixer.log_gamma.copy_(torch.log1p(-(2.0 ** -(5 + torch.arange(HEADS).double()))))  # it was rounded to float32
    agrees(mixer, plain)


def test_lightning():
    def plain(m, x):
        q, k, v = (split(F.silu(z)) for z in m.qkv(x).chunk(3, -1))
        heads = []
        for h in range(HEADS):
            rate = math.exp(-8 / HEADS * (1 - 1 / 4) * h)
            heads.append(walk(q[h] * WIDTH**-0.5, k[h], v[h], lambda t, rate=rate: rate))
        return m.out(rms(m.norm, torch.cat(heads, -1)) * m.gate(x).sigmoid())

    agrees(make("lightning", layer=1, n_layers=4), plain)


def test_gla():
    def plain(m, x):
        (q, k), v = (split(z) for z in m.qk(x).chunk(2, -1)), split(m.v(x))
        a = split(m.forget(x).sigmoid() ** (1 / 16))
        heads = []
        for h in range(HEADS):
            o = walk(q[h] * (WIDTH // 2) ** -0.5, k[h], v[h], lambda t, h=h: a[h][:, t, :, None])
            heads.append(rms(m.norm, o))
        return m.out(F.silu(m.gate(x)) * torch.cat(heads, -1))

    agrees(make("gla"), plain)


def test_hgrn2():
    def plain(m, x):
        q, f, v = m.qfv(x).chunk(3, -1)
        low = m.bound.sigmoid()
        q, f, v = split(F.silu(q)), split(low + (1 - low) * f.sigmoid()), split(v)
        heads = [walk(q[h], 1 - f[h], v[h], lambda t, h=h: f[h][:, t, :, None]) for h in range(HEADS)]
        return m.out(rms(m.norm, torch.cat(heads, -1)))

    agrees(make("hgrn2", layer=1, n_layers=3), plain)


def test_mlstm():
    def plain(m, x):
        (q, k), v = (split(z) for z in m.qk(x).chunk(2, -1)), split(m.v(x))
        gates = 15 * torch.tanh(m.gates(x) / 15)
        heads = []
        for h in range(HEADS):
            f, i = gates[..., h].sigmoid(), gates[..., HEADS + h].exp()
            C, n, rows = 0, 0, []
            for t in range(x.shape[1]):
                key = k[h][:, t] * (WIDTH // 2) ** -0.5
                C = f[:, t, None, None] * C + i[:, t, None, None] * key[:, :, None] * v[h][:, t, None]
                n = f[:, t, None] * n + i[:, t, None] * key
                size = dot(n, q[h][:, t]).abs().clamp(min=1)
                rows.append(torch.einsum("bkv,bk->bv", C, q[h][:, t]) / size[:, None])
            heads.append(rms(m.norm, torch.stack(rows, 1)))
        return m.out(torch.cat(heads, -1) * m.gate(x).sigmoid())

    agrees(make("mlstm"), plain, 1e-6)


def slots(q, k, v, write, keep):
    """Slots of keys and values that fade and are written to; o = V^T softmax(K q)."""
    K = torch.zeros(len(q), write.shape[-1], k.shape[-1], dtype=q.dtype)
    V, out = torch.zeros(len(q), write.shape[-1], v.shape[-1], dtype=q.dtype), []
    for t in range(q.shape[1]):
        K = keep[:, t, :, None] * K + write[:, t, :, None] * k[:, t, None]
        V = keep[:, t, :, None] * V + write[:, t, :, None] * v[:, t, None]
        p = torch.einsum("bmk,bk->bm", K, q[:, t]).softmax(-1)
        out.append(torch.einsum("bmv,bm->bv", V, p))
    return torch.stack(out, 1)


def test_gsa():
    def plain(m, x):
        q, k, v = (split(F.silu(z)) for z in m.qkv(x).chunk(3, -1))
        f = split(m.forget(x).sigmoid() ** (1 / 8))
        o = torch.cat([slots(q[h], k[h], v[h], 1 - f[h], f[h]) for h in range(HEADS)], -1)
        return m.out(rms(m.norm, F.silu(o)))

    agrees(make("gsa", n_slots=5), plain)


def test_abc():
    def plain(m, x):
        s = split(m.slots(x))
        heads = []
        for h, (q, k, v) in enumerate(zip(*fused(m, x), strict=True)):
            total = s[h].exp().cumsum(1)
            before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], 1)
            heads.append(slots(q * WIDTH**-0.5, k, v, s[h].exp() / total, before / total))
        return m.out(torch.cat(heads, -1))

    agrees(make("abc", n_slots=5), plain)


def test_rwkv6():
    def plain(m, x):
        past = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)

        def mixed(i):
            y = x + (past - x) * m.mu_x
            low = torch.tanh(y @ m.C[:, 32 * i : 32 * (i + 1)])
            return x + (past - x) * (m.mu[i] + low @ m.D[i])

        r, k, v, gate = (split(f(mixed(i))) for i, f in ((0, m.r), (1, m.k), (2, m.v), (4, m.gate)))
        w = split((-(m.w + torch.tanh(mixed(3) @ m.A) @ m.B).exp()).exp())
        heads = []
        for h in range(HEADS):
            S, rows = torch.zeros(len(x), WIDTH, WIDTH, dtype=x.dtype), []
            for t in range(x.shape[1]):
                write = k[h][:, t, :, None] * v[h][:, t, None]
                rows.append(torch.einsum("bkv,bk->bv", S + m.u[h][:, None] * write, r[h][:, t] * WIDTH**-0.5))
                S = w[h][:, t, :, None] * S + write
            heads.append(rms(m.norm, torch.stack(rows, 1)) * F.silu(gate[h]))
        return m.out(torch.cat(heads, -1))

    agrees(make("rwkv6", layer=1, n_layers=3), plain)


def test_mamba2():
    def plain(m, x):
        z, xBC, dt = m.zxbcdt(x).split([2 * D, 2 * D + 2 * 6, HEADS], -1)
        u, B, C = F.silu(conv(m.conv, xBC)).split([2 * D, 6, 6], -1)
        heads = []
        for h, u_h in enumerate(split(u)):
            step = softplus(dt[..., h] + m.dt_bias[h])
            decay = (-m.A_log[h].exp() * step).exp()
            y = walk(C, B, step[..., None] * u_h, lambda t, decay=decay: decay[:, t, None, None])
            heads.append(y + m.D[h] * u_h)
        return m.out(rms(m.norm, torch.cat(heads, -1) * F.silu(z)))

    agrees(make("mamba2", d_state=6, n_heads=HEADS), plain)


@pytest.mark.parametrize("name", ["log_linear", "log_linear_delta"])
def test_log_linear(name):
    """By the paper's mask: level l >= 1 holds the 2^{l-1} tokens before i - i mod 2^{l-1}, where i mod 2^l is at least
    2^{l-1}."""

    def level(i, j):
        if i == j:
            return 0
        for l in range(1, 10):
            half = 2 ** (l - 1)
            stop = i - i % half
            if i % (2 * half) >= half and stop - half <= j < stop:
                return l
        raise AssertionError((i, j))

    def plain(m, x):
        q, k, v = (split(F.silu(z)) for z in conv(m.conv, m.qkv(x)).chunk(3, -1))
        step = softplus(m.a(x) + m.dt_bias)
        weight = [softplus(m.L[h] * w) for h, w in enumerate(split(m.levels(x)))]
        gate, heads = split(F.silu(m.gate(x))), []
        for h in range(HEADS):
            a = (-m.A_log[h].exp() * step[..., h]).exp()
            keys, queries = unit(k[h]), unit(q[h]) * WIDTH**-0.5
            b = m.beta(x).sigmoid()[..., h] if m.beta is not None else step[..., h]
            written, rows = [], []  # what each token has written, as it is now
            for i in range(x.shape[1]):
                written = [a[:, i, None, None] * S for S in written]
                if m.beta is not None:
                    written = [
                        S
                        - b[:, i, None, None] * keys[:, i, :, None] * torch.einsum("bk,bkv->bv", keys[:, i], S)[:, None]
                        for S in written
                    ]
                written.append(b[:, i, None, None] * keys[:, i, :, None] * v[h][:, i, None])
                rows.append(
                    sum(
                        weight[h][:, i, level(i, j), None] * torch.einsum("bkv,bk->bv", S, queries[:, i])
                        for j, S in enumerate(written)
                    )
                )
            heads.append(rms(m.norm, torch.stack(rows, 1)) * gate[h])
        return m.out(torch.cat(heads, -1))

    agrees(make(name), plain)
