"""Mixers that learn while they read, against their papers: every inner gradient is torch's, token by token."""

import pytest
import torch
import torch.nn.functional as F
from plain import HEADS, agrees, attend, conv, make, rms, rotate, split, unit

from compare import budget
from mixers import registry
from mixers.test_time.lact import NEWTON_SCHULZ, muon
from models.backbone import Backbone

FAMILIES = ("test_time", "memory")


def layer_norm(z, eps=1e-6):
    centred = z - z.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def gradients(f, W, k, v):
    """Of |f(k; W) - v|^2 / 2 in each matrix of W, (B, n, m) each: rows are independent."""
    with torch.enable_grad():
        return torch.autograd.grad((f(k, W) - v).square().sum() / 2, W, create_graph=True)


def ttt(m, x, chunk):
    q, k, v = (split(z) for z in m.qkv(x).chunk(3, -1))
    lr, heads = m.lr(x).sigmoid() * m.base_lr / (x.shape[-1] // HEADS), []
    places = torch.arange(x.shape[1]) % chunk
    for h in range(HEADS):

        def f(z, W, h=h):
            inner = torch.einsum("bn,bnm->bm", z, W[0][:, :-1]) + W[0][:, -1]
            if len(W) == 2:
                inner = F.gelu(inner, approximate="tanh")
                inner = torch.einsum("bn,bnm->bm", inner, W[1][:, :-1]) + W[1][:, -1]
            return z + m.scale[h] * layer_norm(inner) + m.shift[h]

        # rotated by the place in the chunk: a chunk at a time
        qh, kh = (torch.cat([rotate(part) for part in z[h].split(chunk, 1)], 1) for z in (q, k))
        W = [w[h].expand(len(x), -1, -1) for w in m.W]
        out = []
        for t in range(x.shape[1]):
            i = int(places[t])
            if i == 0:
                start, total = (W, [torch.zeros_like(w) for w in W])
            G = gradients(f, start, kh[:, t], v[h][:, t])
            total = [s + lr[:, t, h, None, None] * g for s, g in zip(total, G, strict=True)]
            scale = torch.relu(1 / (i + 1) + m.r[i])
            W = [w - scale * s for w, s in zip(start, total, strict=True)]
            out.append(f(qh[:, t], W))
        heads.append(torch.stack(out, 1))
    o = torch.cat(heads, -1)
    return m.out(layer_norm(o) * m.norm.weight + m.norm.bias)


def test_ttt_linear():
    mixer = make("ttt_linear", chunk=5)
    assert len(mixer.W) == 1 and mixer.base_lr == 1.0
    with torch.no_grad():
        mixer.r[2] = -2  # a rate below 0 is 0
    agrees(mixer, lambda m, x: ttt(m, x, 5))


def test_ttt_mlp():
    mixer = make("ttt_mlp", chunk=4)
    assert [tuple(w.shape) for w in mixer.W] == [(HEADS, 9, 32), (HEADS, 33, 8)] and mixer.base_lr == 0.1
    agrees(mixer, lambda m, x: ttt(m, x, 4))


def test_ttt_starts_as_the_official_code_does():
    torch.manual_seed(0)
    mixer = registry.build("ttt_mlp", 256)
    for W in mixer.W:
        assert 0.019 < W[:, :-1].std() < 0.021 and not W[:, -1].any()
    assert 0.018 < mixer.lr.weight.std() < 0.022 and not mixer.lr.bias.any() and not mixer.r.any()
    assert (mixer.scale == 1).all() and not mixer.shift.any()


def titans(m, x, chunk):
    q, k, v = (split(z) for z in F.silu(conv(m.conv, m.qkv(x))).chunk(3, -1))
    alpha, eta, theta = (split(z, HEADS) for z in m.gates(x).sigmoid().chunk(3, -1))
    gate, heads = split(F.silu(m.gate(x))), []

    def f(z, M):
        for l, w in enumerate(M):
            z = torch.einsum("bn,bnm->bm", F.gelu(z, approximate="tanh") if l else z, w)
        return z

    for h in range(HEADS):
        M, start, out = [w[h].expand(len(x), -1, -1) for w in m.M], [], []
        S = [torch.zeros_like(w) for w in M]
        for t in range(x.shape[1]):
            start = M if t % chunk == 0 else start
            a, e, th = (z[h][:, t, :, None] for z in (alpha, eta, theta))
            G = gradients(f, start, unit(k[h][:, t]), v[h][:, t])
            S = [e * s - (1 - e) * th / chunk * 2 * g for s, g in zip(S, G, strict=True)]
            M = [(1 - a) * w + s for w, s in zip(M, S, strict=True)]
            out.append(f(unit(q[h][:, t]), M))
        heads.append(rms(m.norm, torch.stack(out, 1)) * gate[h])
    return m.out(torch.cat(heads, -1))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_titans(depth):
    mixer = make("titans", depth=depth, chunk=5)
    assert len(mixer.M) == depth
    agrees(mixer, lambda m, x: titans(m, x, 5))


@pytest.mark.parametrize("momentum", [-20.0, 0.0, 3.0, 20.0])
def test_equal_keys_do_not_make_titans_explode(momentum):
    torch.manual_seed(0)
    mixer = registry.build("titans", 16, depth=1, chunk=16)
    with torch.no_grad():  # no forgetting, full steps
        mixer.gates.weight.zero_()
        mixer.gates.bias.copy_(torch.tensor([-20.0, -20, momentum, momentum, 20, 20]))
    _, (_, (M, _), _) = mixer(torch.ones(1, 1024, 16))
    assert M[0].abs().max() < 10


def test_memories_are_long_at_first():
    """What is left after a token: of titans' weights, of its momentum, of MesaNet's pairs."""
    alpha, eta, theta = registry.build("titans", 16).gates.bias.sigmoid().chunk(3)
    torch.testing.assert_close(alpha, torch.full_like(alpha, 0.01))
    assert (eta == 0.5).all() and (theta == 0.5).all()
    gamma = registry.build("mesa_net", 16, n_heads=4).gates.bias[:4].sigmoid()
    ages = -1 / gamma.log()
    assert 20 < ages.min() < 21 and 400 < ages.max() < 410


def mesa(m, x):
    """Ridge regression, with all past pairs at hand."""
    q, k = (split(z) for z in F.silu(conv(m.conv, m.qk(x))).chunk(2, -1))
    gamma, beta = (split(z) for z in m.gates(x).sigmoid().chunk(2, -1))
    v, heads = split(m.v(x)), []
    for h in range(HEADS):
        ridge, rows = (1 + m.l[h].exp()).log() + 0.25, []
        for t in range(x.shape[1]):
            age = torch.cat([gamma[h][:, s + 1 : t + 1].prod(1, keepdim=True) for s in range(t + 1)], 1)
            weight = (age * beta[h][:, : t + 1]).mT  # (B, 1, t + 1)
            keys, values = unit(k[h][:, : t + 1]), v[h][:, : t + 1]
            H = (keys.mT * weight) @ keys + torch.diag(ridge[0])
            W = torch.linalg.solve(H, (keys.mT * weight) @ values)
            rows.append(torch.einsum("bkv,bk->bv", W, unit(q[h][:, t])))
        heads.append(rms(m.norm, torch.stack(rows, 1)))
    return m.out(torch.cat(heads, -1))


def test_mesa_net_is_ridge_regression():
    agrees(make("mesa_net"), mesa)


def test_mesa_net_starts_with_a_ridge_of_one():
    mixer = registry.build("mesa_net", 16)
    torch.testing.assert_close(F.softplus(mixer.l) + 0.25, torch.ones_like(mixer.l))


def lact(m, x):
    q, k, v = m.qkv(x).chunk(3, -1)
    q, k = rms(m.norm_q, q), rms(m.norm_k, k)

    def outside(i, j):
        return torch.full((len(x),), -torch.inf if i - j >= m.window else 0.0, dtype=x.dtype)

    near = []
    for a, b, c in zip(split(q), split(k), split(v), strict=True):
        a, b = rotate(a), rotate(b)
        near.append(attend(a, b, c, outside))
    q, k = (split(F.silu(z * m.qk_scale[i] + m.qk_shift[i])) for i, z in enumerate((q, k)))
    v, eta, keep, scale = split(F.silu(v)), split((1 + m.eta(x).exp()).log()), split(m.m(x).sigmoid()), m.scale(x)

    def f(z, W):
        gate = z @ W[0]
        return (gate * gate.sigmoid() * (z @ W[2])) @ W[1]

    def length(w):
        return w.square().sum(1, keepdim=True).sqrt()

    def orthogonal(d):
        x = d / (d.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
        for a, b, c in NEWTON_SCHULZ:
            x = a * x + b * x @ x.mT @ x + c * x @ x.mT @ x @ x.mT @ x
        return x

    heads = []
    for h in range(HEADS):
        first = [w[h].expand(len(x), -1, -1) for w in m.W]
        W, D, out = first, [torch.zeros_like(w) for w in first], []
        fast_q, fast_k = rotate(unit(q[h])), rotate(unit(k[h]))
        for start in range(0, x.shape[1], m.chunk):
            part = slice(start, start + m.chunk)
            out.append(f(fast_q[:, part], W))
            new = []
            for i in range(3):
                with torch.enable_grad():
                    gain = (eta[h][:, part, i] * (f(fast_k[:, part], W) * v[h][:, part]).sum(-1)).sum()
                    (G,) = torch.autograd.grad(gain, W[i], create_graph=True)
                new.append(G + keep[h][:, part].mean(1, keepdim=True) * D[i])
            D = new
            W = [w + orthogonal(d) for w, d in zip(W, D, strict=True)]
            W = [w * length(u) / (length(w) + 1e-5) for w, u in zip(W, first, strict=True)]
        o = rms(m.norm, torch.cat(out, 1))
        heads.append(near[h] + o * F.silu(scale[..., h : h + 1]))
    return m.out(torch.cat(heads, -1))


def test_lact():
    agrees(make("lact", chunk=5, window=4), lact)


def test_lacts_steps_are_nearly_orthogonal():
    d = torch.randn(3, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in (d, d.mT):
        sizes = torch.linalg.svdvals(muon(step))
        assert 0.9 < sizes.min() and sizes.max() < 1.1


def test_lacts_steps_begin_small():
    mixer = registry.build("lact", 16)
    torch.testing.assert_close(F.softplus(mixer.eta.bias), torch.full((6,), 1e-3))


OURS = [n for n in registry.names() if registry.target_of(registry.knobs(n)).__module__.split(".")[1] in FAMILIES]


@pytest.mark.parametrize("name", OURS)
def test_the_state_on_meta_is_the_real_one_and_work_is_counted(name):
    (causal, *_), T = registry.directions(name), 40

    def stack():
        factory = registry.factory(name, causal=causal)
        return Backbone(
            32,
            n_layers=1,
            pattern=[factory],
            causal=causal,
            mlp=None,
            local_conv=0,
            dropout=0.0,
            piece=None,
            checkpoint=False,
            seed=0,
            label="",
        )

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = stack()

        def forward(self, tokens, states=None):
            return self.backbone(torch.ones(*tokens.shape, 32, device=tokens.device), states)

    _, states = stack()(torch.ones(1, T, 32))
    assert budget.state_bytes(Model, T) == sum(t.numel() * t.element_size() for t in budget.tensors(states))
    work = budget.flops(Model, T)
    assert work["forward_per_token"] > 32 * 32 and (work["decode_per_token"] is None) == (not causal)
