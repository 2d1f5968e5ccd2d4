"""The reduction lattice: which mixer becomes which other, with which of its parts held, and what is the same twice.

gdn2 -> kda -> gated_delta_net -> delta_net;   delta_product(1) -> gated_delta_net;   ttt_linear -> delta_net
gla -> retnet -> linear_attention;   gated delta rule, erasing nothing -> linear attention
mesa_net -> ridge regression, and -> gated linear attention
In-Place TTT, infini_attention = linear attention over earlier chunks;   sliding_window -> softmax
mamba2, mamba3, mlstm, gsa = linear attention;   mamba = linear attention with one value;   s4d: convolution = scan
performer -> softmax's kernel, over redraws

Named mixers of different widths meet in `recipe`, which is each of them with copied weights (test_recipe.py).
"""

import pytest
import torch
import torch.nn.functional as F
from plain import HEADS, D, conv, make, rms, split, unit

from mixers import feature_maps
from mixers.ops.gated_delta import delta_rule, gated_delta
from mixers.ops.inner_loop import inner_loop
from mixers.ops.linear_attention import linear_attention
from mixers.ops.scan import scan
from models.in_place_ttt import InPlaceTTT

WIDTH = D // HEADS


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(one, other, T=70, tolerance=1e-10):
    """Functions of x (B, T, D): the same outputs, and the same gradients of x."""
    results = []
    for f in (one, other):
        x = noise(2, T, D).requires_grad_()
        y = f(x)
        y = y[0] if isinstance(y, tuple) else y
        results.append((y, *torch.autograd.grad((y * noise(2, T, D, seed=2)).sum(), x)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def recipe(**knobs):
    return make("recipe", **{"d_key": WIDTH, "d_value": WIDTH} | knobs)


def give(target, **weights):
    """The target, with those of its parameters and buffers that are named as given."""
    held = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    with torch.no_grad():
        for name, value in weights.items():
            held[name].copy_(value)
    return target


def per_head(x):
    """(B, T, H d) -> (B, H, T, d)."""
    return torch.stack(split(x), 1)


def joined(o):
    return torch.cat(list(o.unbind(1)), -1)


def test_gdn2_with_equal_gates_is_kda():
    kda, gdn2 = make("kda"), make("gdn2")
    shared = {name: p for name, p in kda.named_parameters() if name != "beta.weight"}
    gates = kda.beta.weight.repeat_interleave(WIDTH, 0)
    give(gdn2, **shared, **{"erase.weight": gates, "write.weight": gates})
    same(kda, gdn2)
    for a, b in zip(kda(noise(2, 30, D))[1], gdn2(noise(2, 30, D))[1], strict=True):
        torch.testing.assert_close(a, b)


def test_kda_with_one_decay_per_head_is_gated_delta_net():
    kda, gdn = make("kda"), recipe(write="delta", decay="scalar", conv=4)
    step = noise(HEADS, WIDTH)
    give(kda, **{"step.1.weight": step.repeat_interleave(WIDTH, 0)}, dt_bias=noise(HEADS).repeat_interleave(WIDTH))
    give(kda, **{"gate.1.weight": 0 * kda.gate[1].weight, "gate.1.bias": 100 + 0 * kda.gate[1].bias})  # always open
    copied = {name: kda.get_parameter(name) for name in ("qkv.weight", "conv.weight", "beta.weight", "out.weight")}
    give(gdn, **copied, **{"forget.weight": step @ kda.step[0].weight, "norm.weight": kda.norm.weight})
    give(gdn, A_log=kda.A_log, dt_bias=kda.dt_bias[::WIDTH])
    same(kda, gdn)


def test_gated_delta_net_without_decay_is_delta_net():
    delta, gdn = make("delta_net"), recipe(write="delta", decay="scalar", conv=4)
    give(gdn, A_log=torch.full((HEADS,), -100.0), **dict(delta.named_parameters()))
    same(delta, gdn)


def test_a_gated_delta_rule_that_erases_nothing_is_linear_attention():
    q, k, z = noise(3, 2, HEADS, 70, 4).unbind(0)
    g = -noise(2, HEADS, 70, 4, seed=3).exp()
    for a, b in zip(gated_delta(q, k, torch.zeros_like(k), z, g), linear_attention(q, k, z, g), strict=True):
        torch.testing.assert_close(a, b)


def test_delta_product_of_one_step_is_gated_delta_net():
    """With equal widths and a beta in (0, 2)."""
    m = make("delta_product", n_steps=1)

    def gated_delta_net(x):
        q, k, v = (per_head(z) for z in F.silu(conv(m.conv, m.qkv(x))).chunk(3, -1))
        beta, a = (z.mT.unsqueeze(-1) for z in m.beta_a(x).chunk(2, -1))
        g = -m.A_log.exp()[:, None, None] * F.softplus(a + m.dt_bias[:, None, None])
        o, _ = delta_rule(unit(q) * WIDTH**-0.5, unit(k), v, 2 * beta.sigmoid(), g)
        return m.out(joined(rms(m.norm, o)) * F.silu(m.gate(x)))

    same(m, gated_delta_net)


def test_ttt_linear_without_its_norm_is_delta_net():
    """In chunks of one token. Its map has a bias, which is a key with one more component, always 1."""
    q, k, v = (unit(z) for z in noise(3, 2, HEADS, 12, 4).unbind(0))
    beta = noise(2, HEADS, 12, 1, seed=3).sigmoid() / 2
    W, rows = (torch.zeros(2, HEADS, 5, 4, dtype=torch.float64),), []
    for t in range(12):
        o, write = inner_loop(*(z[:, :, t : t + 1] for z in (q, k, v, beta)), W)
        rows.append(o)
        W = write()[0]
    o, S = delta_rule(F.pad(q, (0, 1), value=1.0), F.pad(k, (0, 1), value=1.0), v, beta)
    torch.testing.assert_close(torch.cat(rows, 2), o)
    torch.testing.assert_close(W[0], S)


def test_gla_with_retnets_decays_is_retnet():
    retnet, gla = make("retnet"), recipe(d_value=2 * WIDTH, decay="channel", rotate=True, gate=True)
    p = (16 * retnet.log_gamma.double()).exp()
    give(gla, **{"forget.1.weight": torch.zeros(D, 16), "forget.1.bias": (p / (1 - p)).log().repeat_interleave(WIDTH)})
    give(gla, **{"qkv.weight": torch.cat([retnet.qk.weight, retnet.v.weight]), "gate.weight": retnet.gate.weight})
    same(retnet, give(gla, **{"norm.weight": torch.ones(2 * WIDTH), "out.weight": retnet.out.weight}))


def test_retnet_that_forgets_nothing_is_linear_attention():
    retnet, sums = make("retnet"), recipe(d_value=2 * WIDTH, rotate=True, gate=True)
    give(sums, **{"qkv.weight": torch.cat([retnet.qk.weight, retnet.v.weight]), "gate.weight": retnet.gate.weight})
    give(sums, **{"norm.weight": torch.ones(2 * WIDTH), "out.weight": retnet.out.weight})
    same(give(retnet, log_gamma=torch.zeros(HEADS)), sums)
    # and with features and a normaliser, by name
    named, twin = make("linear_attention"), recipe(feature_map="elu1", normalise=True, decay="constant")
    same(named, give(twin, log_gamma=torch.zeros(HEADS), **dict(named.named_parameters())))


def test_mamba2_is_linear_attention():
    m = make("mamba2", d_state=6, n_heads=HEADS)

    def through(x):
        z, xBC, dt = m.zxbcdt(x).split([2 * D, 2 * D + 12, HEADS], -1)
        u, B, C = F.silu(conv(m.conv, xBC)).split([2 * D, 6, 6], -1)
        dt, u = F.softplus(dt + m.dt_bias).mT.unsqueeze(-1), per_head(u)
        q, k = (one.unsqueeze(1).expand(-1, HEADS, -1, -1) for one in (C, B))
        y, _ = linear_attention(q, k, dt * u, -m.A_log.exp()[:, None, None] * dt)
        return m.out(rms(m.norm, joined(y + m.D[:, None, None] * u) * F.silu(z)))

    same(m, through)


def test_the_trapezoidal_rule_of_mamba3_is_linear_attention():
    """Both terms of a pair at once, and what comes a step too early taken back."""
    T = 40
    q, k, v = noise(3, 2, HEADS, T, 4).unbind(0)
    dt, l = noise(2, 2, HEADS, T, 1, seed=3).sigmoid().unbind(0)
    a, S, rows = (-2 * dt).exp(), torch.zeros(2, HEADS, 4, 4, dtype=torch.float64), []
    pair = k.unsqueeze(-1) * v.unsqueeze(-2)
    for t in range(T):
        keep, step, share = (z[:, :, t, :, None] for z in (a, dt, l))
        before = pair[:, :, t - 1] if t else 0
        S = keep * S + (1 - share) * step * keep * before + share * step * pair[:, :, t]
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], S))
    later = F.pad(((1 - l) * dt)[:, :, 1:], (0, 0, 0, 1))
    o, last = linear_attention(q, k * (l * dt + later), v, -2 * dt)
    torch.testing.assert_close(o - later * (q * k).sum(-1, keepdim=True) * v, torch.stack(rows, 2))
    torch.testing.assert_close(last, S)


def test_mlstm_is_linear_attention_with_one_more_value():
    m = make("mlstm")

    def through(x):
        (q, k), v = (per_head(z) for z in m.qk(x).chunk(2, -1)), per_head(m.v(x))
        f, i = (15 * torch.tanh(m.gates(x) / 15)).mT.unsqueeze(-1).chunk(2, 1)
        one = torch.ones_like(f)
        h, _ = linear_attention(q, i.exp() * k * (WIDTH // 2) ** -0.5, torch.cat([v, one], -1), F.logsigmoid(f))
        h = h[..., :-1] / torch.maximum(h[..., -1:].abs(), one)
        return m.out(joined(rms(m.norm, h)) * m.gate(x).sigmoid())

    same(m, through, tolerance=1e-8)


def test_slots_are_linear_attention_twice():
    """Gated slot attention's recurrence, of which the first pass decays on the values' side."""
    q, k, v = noise(3, 2, HEADS, 40, 4).unbind(0)
    f = noise(2, HEADS, 40, 3, seed=3).sigmoid()
    K, V = torch.zeros(2, 2, HEADS, 3, 4, dtype=torch.float64)
    rows = []
    for t in range(40):
        keep, write = f[:, :, t].unsqueeze(-1), 1 - f[:, :, t].unsqueeze(-1)
        K, V = (keep * S + write * z[:, :, t].unsqueeze(-2) for S, z in ((K, k), (V, v)))
        p = torch.einsum("bhmk,bhk->bhm", K, q[:, :, t]).softmax(-1)
        rows.append(torch.einsum("bhmv,bhm->bhv", V, p))
    logits, _ = linear_attention(q, k, 1 - f, gv=f.log())
    o, _ = linear_attention(logits.softmax(-1), 1 - f, v, f.log())
    torch.testing.assert_close(o, torch.stack(rows, 2))


def test_infini_attention_without_its_local_half_is_linear_attention_over_earlier_segments():
    m = give(make("infini_attention", segment=6, delta=False), beta=torch.full((HEADS, 1, 1), 100.0))

    def earlier(x):
        q, k, v = (per_head(z) for z in m.qkv(x).chunk(3, -1))
        T = torch.arange(x.shape[1])
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT) * (T[:, None] // 6 > T // 6)
        return m.out(joined(weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)))

    same(m, earlier, T=20)


def test_in_place_ttt_is_its_mlp_and_linear_attention_over_earlier_chunks():
    torch.manual_seed(0)
    ttt = InPlaceTTT(D, expand=1.5, chunk=8, eta=3.0, conv=5).double()
    give(ttt, conv=noise(*ttt.conv.shape))

    def through(x, eta=3.0):
        z, T = F.gelu(ttt.mlp.up(x)), torch.arange(x.shape[1])
        targets = [F.conv1d(c.mT, ttt.conv.unsqueeze(1), padding=2, groups=D).mT for c in x.split(8, 1)]
        v = ttt.target(torch.cat(targets, 1))
        return ttt.mlp.down(z) + eta * ((z @ z.mT) * (T[:, None] // 8 > T // 8)) @ v

    same(ttt, through, T=27)
    ttt.eta = 0.0
    same(ttt, ttt.mlp, T=27)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_that_covers_everything_is_softmax(causal):
    softmax, window = make("softmax", causal=causal), make("sliding_window", window=70, causal=causal)
    same(softmax, give(window, **dict(softmax.named_parameters())))


def test_mesa_net_is_ridge_regression():
    """Where nothing is forgotten, of all pairs up to now with one weight."""
    m = make("mesa_net", n_steps=60)
    give(m, **{"gates.weight": 0 * m.gates.weight, "gates.bias": torch.full_like(m.gates.bias, 100.0)})
    x = noise(2, 25, D)
    q, k = (unit(per_head(z)) for z in F.silu(conv(m.conv, m.qk(x))).chunk(2, -1))
    v, ridge = per_head(m.v(x)), F.softplus(m.l).flatten(1) + 0.25
    W = torch.linalg.solve(k.mT @ k + torch.diag_embed(ridge), k.mT @ v)
    expected = m.out(joined(rms(m.norm, (q @ W)[:, :, -1:])))
    torch.testing.assert_close(m(x)[0][:, -1:], expected, rtol=1e-7, atol=1e-7)


def test_mesa_net_with_a_large_ridge_is_gated_linear_attention():
    m = give(make("mesa_net"), l=1e6)

    def through(x):
        q, k = (unit(per_head(z)) for z in F.silu(conv(m.conv, m.qk(x))).chunk(2, -1))
        gamma, beta = (z.mT.unsqueeze(-1) for z in m.gates(x).sigmoid().chunk(2, -1))
        o, _ = linear_attention(q, k, beta * per_head(m.v(x)), gamma.log())
        return m.out(joined(rms(m.norm, o / 1e6)))  # so small that the norm's epsilon shows

    same(m, through, T=20, tolerance=1e-5)


def test_mamba_is_linear_attention_with_one_value():
    """A channel is a head as wide as the state, whose value is one number and whose decay is per component."""
    m = make("mamba")

    def through(x):
        u, z = m.xz(x).chunk(2, -1)
        u = F.silu(conv(m.conv, u))
        dt, B, C = m.dtBC(u).split(m.split, -1)
        dt = F.softplus(m.dt(dt) + m.dt_bias)
        q, k = (w.unsqueeze(1).expand(-1, 2 * D, -1, -1) for w in (C, B))
        o, _ = linear_attention(q, k, (dt * u).mT.unsqueeze(-1), -dt.mT.unsqueeze(-1) * m.A_log.exp().unsqueeze(1))
        return m.out((o.squeeze(-1).mT + m.D * u) * F.silu(z))

    same(m, through)


def test_s4d_convolution_is_its_scan():
    """One call convolves; step by step, the state that it hands on is the scan's."""
    m = make("s4d", d_state=8)

    def step_by_step(x):
        rows, state = [], None
        for x_t in x.split(1, 1):
            y, state = m(x_t, state)
            rows.append(y)
        return torch.cat(rows, 1)

    same(m, step_by_step)
    x = noise(2, 30, D)
    A = torch.complex(-m.ssm.log_A_real.exp(), m.ssm.A_imag)
    h, _ = scan((A * m.ssm.log_dt.exp()[:, None]).exp(), x.unsqueeze(-1).to(A.dtype).expand(-1, -1, *A.shape))
    torch.testing.assert_close(m(x)[1], h[:, -1])


def test_performer_is_unbiased_over_redraws():
    """Of both kinds of random features, and of the mixer's own: their kernel's mean is softmax's."""
    generator = torch.Generator().manual_seed(0)
    q, k = 0.7 * noise(2, 1, 1, 6, WIDTH)
    expected = (q @ k.mT / WIDTH**0.5).exp()
    mixer = make("performer", n_features=24)
    maps = {name: feature_maps.build(name, WIDTH, n_heads=1, max_length=64).double()
            for name in ("positive_random", "trigonometric_random")}  # fmt: skip

    def kernel(name):
        if name == "performer":
            mixer.resample(generator)
            a, b = (feature_maps.random_logits(z, mixer.omega).exp() for z in (q, k))
            return a @ b.mT / mixer.omega.shape[0]
        phi = maps[name]
        phi.resample(generator)
        a, b = (phi(z, None) for z in (q, k))
        return a.exp() @ b.exp().mT if phi.log else a @ b.mT

    for name in ("performer", *maps):
        estimates = torch.stack([kernel(name) for _ in range(1000)])
        error = estimates.std(0) / len(estimates) ** 0.5
        assert ((estimates.mean(0) - expected).abs() < 5 * error).all(), name
