"""Delta-rule mixers against their papers, step by step."""

import pytest
import torch
import torch.nn.functional as F
from plain import HEADS, agrees, conv, make, rms, split, unit


def walk(q, k, v, transition, write):
    """S <- transition(t, S) + k (write(t, v))^T for one head; o = S^T q / sqrt(K)."""
    S, out = torch.zeros(len(q), q.shape[-1], v.shape[-1], dtype=q.dtype), []
    for t in range(q.shape[1]):
        S = transition(t, S) + k[:, t, :, None] * write(t, v[:, t])[:, None]
        out.append(torch.einsum("bkv,bk->bv", S, q[:, t]) * q.shape[-1] ** -0.5)
    return torch.stack(out, 1)


def erase(k, p, S):
    """(I - k p^T) S."""
    return S - k[:, :, None] * torch.einsum("bk,bkv->bv", p, S)[:, None]


def silu_conv(m, x, *sizes):
    return [split(z) for z in F.silu(conv(m.conv, m.qkv(x))).split(sizes, -1)]


def softplus(x):
    return (1 + x.exp()).log()


def scalar_decay(m, a, h):
    return (-m.A_log[h].exp() * softplus(a[..., h] + m.dt_bias[h])).exp()


@pytest.mark.parametrize(("name", "top"), [("delta_net", 1.0), ("delta_net_negative", 2.0)])
def test_delta_net(name, top):
    def plain(m, x):
        beta, heads = top * m.beta(x).sigmoid(), []
        for h, (q, k, v) in enumerate(zip(*silu_conv(m, x, 16, 16, 16), strict=True)):
            q, k, b = unit(q), unit(k), beta[..., h : h + 1]
            o = walk(
                q, k, v, lambda t, S, k=k, b=b: erase(k[:, t], b[:, t] * k[:, t], S), lambda t, v, b=b: b[:, t] * v
            )
            heads.append(rms(m.norm, o))
        return m.out(torch.cat(heads, -1))

    agrees(make(name), plain)


def test_gated_delta_net():
    def plain(m, x):
        beta, a = m.beta_a(x).chunk(2, -1)
        beta, gate, heads = beta.sigmoid(), split(F.silu(m.gate(x))), []
        for h, (q, k, v) in enumerate(zip(*silu_conv(m, x, 12, 12, 24), strict=True)):
            q, k, b, f = unit(q), unit(k), beta[..., h : h + 1], scalar_decay(m, a, h)

            def step(t, S, k=k, b=b, f=f):
                return erase(k[:, t], b[:, t] * k[:, t], f[:, t, None, None] * S)

            heads.append(rms(m.norm, walk(q, k, v, step, lambda t, v, b=b: b[:, t] * v)) * gate[h])
        return m.out(torch.cat(heads, -1))

    agrees(make("gated_delta_net"), plain)


def channel_decay(m, x):
    dt = split(softplus(m.step(x) + m.dt_bias))
    return [(-m.A_log[h].exp() * dt[h]).exp() for h in range(HEADS)]


def test_kda():
    def plain(m, x):
        beta, decay, gate, heads = m.beta(x).sigmoid(), channel_decay(m, x), split(m.gate(x).sigmoid()), []
        for h, (q, k, v) in enumerate(zip(*silu_conv(m, x, 16, 16, 16), strict=True)):
            q, k, b, f = unit(q), unit(k), beta[..., h : h + 1], decay[h]

            def step(t, S, k=k, b=b, f=f):
                return erase(k[:, t], b[:, t] * k[:, t], f[:, t, :, None] * S)

            heads.append(rms(m.norm, walk(q, k, v, step, lambda t, v, b=b: b[:, t] * v)) * gate[h])
        return m.out(torch.cat(heads, -1))

    agrees(make("kda"), plain)


def test_gdn2():
    def plain(m, x):
        b, w = split(m.erase(x).sigmoid()), split(m.write(x).sigmoid())
        decay, gate, heads = channel_decay(m, x), split(m.gate(x).sigmoid()), []
        for h, (q, k, v) in enumerate(zip(*silu_conv(m, x, 16, 16, 16), strict=True)):
            q, k = unit(q), unit(k)

            def step(t, S, k=k, h=h):
                return erase(k[:, t], b[h][:, t] * k[:, t], decay[h][:, t, :, None] * S)

            heads.append(rms(m.norm, walk(q, k, v, step, lambda t, v, h=h: w[h][:, t] * v)) * gate[h])
        return m.out(torch.cat(heads, -1))

    agrees(make("gdn2"), plain)


def test_comba():
    def plain(m, x):
        beta, a = m.beta_a(x).chunk(2, -1)
        beta, gate, heads = beta.sigmoid(), split(F.silu(m.gate(x))), []
        for h, (q, k, v) in enumerate(zip(*silu_conv(m, x, 16, 16, 16), strict=True)):
            q, k, b, f = unit(q), unit(k), beta[..., h : h + 1], scalar_decay(m, a, h)

            def step(t, S, k=k, b=b, f=f, h=h):
                p = b[:, t] * m.d[h].sigmoid() * k[:, t]
                return f[:, t, None, None] * S - k[:, t, :, None] * torch.einsum("bk,bkv->bv", p, S)[:, None]

            o = walk(q - m.D[h] * k, k, v, step, lambda t, v, b=b: b[:, t] * v)
            heads.append(rms(m.norm, o) * gate[h])
        return m.out(torch.cat(heads, -1))

    agrees(make("comba"), plain)


def test_delta_product():
    def plain(m, x):
        qkv = F.silu(conv(m.conv, m.qkv(x)))
        q, k, v = (z.unflatten(-1, (-1, HEADS, 8)) for z in qkv.split([16, 48, 48], -1))  # (B, T, step, head, 8)
        beta, a = m.beta_a(x).split([3 * HEADS, HEADS], -1)
        beta, gate, heads = 2 * beta.unflatten(-1, (3, HEADS)).sigmoid(), split(F.silu(m.gate(x))), []
        for h in range(HEADS):
            f, S, out = scalar_decay(m, a, h), torch.zeros(len(x), 8, 8, dtype=x.dtype), []
            for t in range(x.shape[1]):
                S = f[:, t, None, None] * S
                for i in range(3):
                    key, b = unit(k[:, t, i, h]), beta[:, t, i, h, None]
                    S = erase(key, b * key, S) + key[:, :, None] * (b * v[:, t, i, h])[:, None]
                out.append(torch.einsum("bkv,bk->bv", S, unit(q[:, t, 0, h])) * 8**-0.5)
            heads.append(rms(m.norm, torch.stack(out, 1)) * gate[h])
        return m.out(torch.cat(heads, -1))

    agrees(make("delta_product", n_steps=3), plain)


def test_fwp():
    def phi(x):
        r = torch.cat([x, -x], -1).clamp(min=0)
        n = r.shape[-1]
        f = torch.stack([r[..., i] * r[..., (i + j) % n] for j in (1, 2, 3) for i in range(n)], -1)
        return f / (f.sum(-1, keepdim=True) + 1e-6)

    def plain(m, x):
        beta, heads = m.beta(x).sigmoid(), []
        for h, (q, k, v) in enumerate(zip(*(split(z) for z in m.qkv(x).split([8, 8, 16], -1)), strict=True)):
            q, k, b = phi(q), phi(k), beta[..., h : h + 1]
            o = walk(
                q, k, v, lambda t, S, k=k, b=b: erase(k[:, t], b[:, t] * k[:, t], S), lambda t, v, b=b: b[:, t] * v
            )
            heads.append(o * q.shape[-1] ** 0.5)  # there is no scale
        return m.out(torch.cat(heads, -1))

    agrees(make("fwp", d_key=4), plain)


def test_rwkv7():
    def plain(m, x):
        past = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        z_r, z_w, z_k, z_v, z_a, z_g = (x + mu * (past - x) for mu in m.mu)
        w = (-0.6065306597126334 * (m.w_0 + torch.tanh(z_w @ m.W_1) @ m.W_2).sigmoid()).exp()
        a = (m.a_0 + z_a @ m.A_1 @ m.A_2).sigmoid()
        k, gate = m.k(z_k), (z_g @ m.G_1).sigmoid() @ m.G_2
        r, v, write = split(m.r(z_r)), split(m.v(z_v)), split(k * (1 + (a - 1) * m.alpha))
        kappa, w, a = [unit(z) for z in split(k * m.xi)], split(w), split(a)
        heads = []
        for h in range(HEADS):
            S, rows = torch.zeros(len(x), 8, 8, dtype=x.dtype), []
            for t in range(x.shape[1]):
                read = torch.einsum("bk,bkv->bv", kappa[h][:, t], S)
                S = w[h][:, t, :, None] * S - (a[h] * kappa[h])[:, t, :, None] * read[:, None]
                S = S + write[h][:, t, :, None] * v[h][:, t, None]
                rows.append(torch.einsum("bk,bkv->bv", r[h][:, t], S))
            o = torch.stack(rows, 1)
            o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, unbiased=False, keepdim=True) + 8e-5).sqrt()
            o = o * split(m.norm.weight)[h] + split(m.norm.bias)[h]
            heads.append(o + (r[h] * m.rho[h] * write[h]).sum(-1, keepdim=True) * v[h])
        return m.out(torch.cat(heads, -1) * gate)

    agrees(make("rwkv7", layer=1, n_layers=3), plain)
