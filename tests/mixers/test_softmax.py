"""Softmax mixers against their papers, row by row."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import HEADS, agrees, attend, conv, make, rms, rotate, split, unit

from mixers import testing
from mixers.softmax import path


def parts(m, x):
    return [split(z) for z in m.qkv(x).chunk(3, -1)]


both = pytest.mark.parametrize("sees", [lambda i, j: j <= i, lambda i, j: True], ids=["causal", "bidirectional"])


@both
def test_rope(sees):
    def plain(m, x):
        heads = [attend(rotate(q), rotate(k), v, sees=sees) for q, k, v in zip(*parts(m, x), strict=True)]
        return m.out(torch.cat(heads, -1))

    agrees(make("softmax", causal=not sees(0, 1)), plain)


@both
def test_sliding_window(sees):
    def plain(m, x):
        heads = []
        for q, k, v in zip(*parts(m, x), strict=True):
            heads.append(attend(rotate(q), rotate(k), v, sees=lambda i, j: abs(i - j) < 5 and sees(i, j)))
        return m.out(torch.cat(heads, -1))

    agrees(make("sliding_window", window=5, causal=not sees(0, 1)), plain)


def test_alibi():
    def plain(m, x):
        heads = []
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True), 1):
            slope = 2.0 ** (-8 * h / HEADS)
            heads.append(attend(q, k, v, lambda i, j, s=slope: torch.full((len(x),), -s * (i - j), dtype=x.dtype)))
        return m.out(torch.cat(heads, -1))

    agrees(make("alibi"), plain)


@both
def test_nope(sees):
    def plain(m, x):
        return m.out(torch.cat([attend(*qkv, sees=sees) for qkv in zip(*parts(m, x), strict=True)], -1))

    agrees(make("nope", causal=not sees(0, 1)), plain)


@both
def test_gated_attention(sees):
    def plain(m, x):
        heads = [attend(rotate(q), rotate(k), v, sees=sees) for q, k, v in zip(*parts(m, x), strict=True)]
        return m.out(torch.cat(heads, -1) / (1 + (-m.gate(x)).exp()))

    agrees(make("gated_attention", causal=not sees(0, 1)), plain)


def test_fox():
    def plain(m, x):
        log_f = F.logsigmoid(m.forget(x))
        heads = []
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True)):
            heads.append(attend(q, k, v, lambda i, j, h=h: log_f[:, j + 1 : i + 1, h].sum(-1)))
        return m.out(torch.cat(heads, -1))

    agrees(make("fox"), plain)


@both
def test_differential(sees):
    def plain(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        q, k, heads = split(q, 2 * HEADS), split(k, 2 * HEADS), []
        lambda_init = 0.8 - 0.6 * math.exp(-0.3 * 2)
        (q1, k1), (q2, k2) = m.lambdas
        weight = (q1 @ k1).exp() - (q2 @ k2).exp() + lambda_init
        for h, value in enumerate(split(v)):
            one, two = (attend(rotate(q[2 * h + n]), rotate(k[2 * h + n]), value, sees=sees) for n in (0, 1))
            heads.append(rms(m.norm, one - weight * two) * (1 - lambda_init))
        return m.out(torch.cat(heads, -1))

    agrees(make("differential", layer=2, n_layers=4, causal=not sees(0, 1)), plain)


def test_mla():
    def plain(m, x):
        width, heads = x.shape[-1] // HEADS, []
        down = m.down(x)
        c, shared = rms(m.norm, down[..., : -m.d_rope]), rotate(down[..., -m.d_rope :])
        keys, values = (split(z) for z in m.up(c).chunk(2, -1))
        for q, k, v in zip(split(m.q(x)), keys, values, strict=True):
            q = torch.cat([q[..., :width], rotate(q[..., width:])], -1)
            heads.append(attend(q, torch.cat([k, shared], -1), v))
        return m.out(torch.cat(heads, -1))

    agrees(make("mla", d_latent=6, d_rope=4), plain)


def test_moba():
    def plain(m, x):
        heads, block = [], 4
        for q, k, v in zip(*parts(m, x), strict=True):
            q, k, rows = rotate(q), rotate(k), []
            for i in range(x.shape[1]):
                scores = [(q[:, i] * k[:, n * block : (n + 1) * block].mean(1)).sum(-1) for n in range(i // block)]
                allowed = torch.zeros(len(x), i + 1, dtype=torch.bool)
                allowed[:, i // block * block :] = True
                if scores:
                    best = torch.stack(scores, -1).topk(min(1, len(scores)), -1).indices
                    for b in range(len(x)):
                        for n in best[b].tolist():
                            allowed[b, n * block : (n + 1) * block] = True
                logits = torch.einsum("bd,bjd->bj", q[:, i], k[:, : i + 1]) * q.shape[-1] ** -0.5
                w = logits.masked_fill(~allowed, -math.inf).softmax(-1)
                rows.append(torch.einsum("bj,bjd->bd", w, v[:, : i + 1]))
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    agrees(make("moba", block=4, top=2), plain)


def test_nsa():
    block, top, window = 4, 3, 5

    def plain(m, x):
        T, qs = x.shape[1], [rotate(q) for q in split(m.q(x))]
        kc, vc, ks, vs, kw, vw = m.kv(x).chunk(6, -1)
        kc, ks, kw = rotate(kc), rotate(ks), rotate(kw)
        of_k, of_v = m.place.softmax(-1)
        n = T // block
        summary_k = torch.stack(
            [torch.einsum("p,bpd->bd", of_k, kc[:, c * block : (c + 1) * block]) for c in range(n)], 1
        )
        summary_v = torch.stack(
            [torch.einsum("p,bpd->bd", of_v, vc[:, c * block : (c + 1) * block]) for c in range(n)], 1
        )
        gates = m.gate(x).sigmoid().unflatten(-1, (HEADS, 3))
        rows = [[] for _ in qs]
        for i in range(T):
            done, own = (i + 1) // block, i // block
            weights, o_c = [], []
            for q in qs:
                if not done:
                    weights.append(None)
                    o_c.append(torch.zeros_like(q[:, 0]))
                    continue
                w = (torch.einsum("bd,bcd->bc", q[:, i], summary_k[:, :done]) * q.shape[-1] ** -0.5).softmax(-1)
                weights.append(w)
                o_c.append(torch.einsum("bc,bcd->bd", w, summary_v[:, :done]))
            allowed = torch.zeros(len(x), i + 1, dtype=torch.bool)
            allowed[:, own * block :] = True
            if own:
                shared = sum(weights)[:, :own].clone()
                shared[:, 0] = math.inf
                for b in range(len(x)):
                    for c in shared[b].topk(min(top - 1, own)).indices.tolist():
                        allowed[b, c * block : (c + 1) * block] = True
            near = torch.zeros(i + 1, dtype=torch.bool)
            near[max(0, i - window + 1) :] = True
            for h, q in enumerate(qs):
                o = gates[:, i, h, :1] * o_c[h]
                for g, k, v, seen in ((1, ks, vs, allowed), (2, kw, vw, near.expand_as(allowed))):
                    logits = torch.einsum("bd,bjd->bj", q[:, i], k[:, : i + 1]) * q.shape[-1] ** -0.5
                    w = logits.masked_fill(~seen, -math.inf).softmax(-1)
                    o = o + gates[:, i, h, g, None] * torch.einsum("bj,bjd->bd", w, v[:, : i + 1])
                rows[h].append(o)
        return m.out(torch.cat([torch.stack(row, 1) for row in rows], -1))

    agrees(make("nsa", block=block, top=top, window=window), plain)


@pytest.mark.parametrize("segment", [path.SEGMENT, 8])  # shorter than the sequence: computed again, backwards
def test_path(segment, monkeypatch):
    monkeypatch.setattr(path, "SEGMENT", segment)

    def plain(m, x):
        qkv, w, beta = parts(m, x), split(F.silu(conv(m.conv, m.w(x)))), 2 * m.beta(x).sigmoid()
        heads = []
        for h, (q, k, v) in enumerate(zip(*qkv, strict=True)):
            u, keys, rows = unit(w[h]), [], []
            for i in range(x.shape[1]):
                # every earlier key goes through the reflection of this step
                keys = [z - beta[:, i, h, None] * u[:, i] * (u[:, i] * z).sum(-1, keepdim=True) for z in keys]
                keys.append(k[:, i])
                logits = torch.stack([(q[:, i] * z).sum(-1) for z in keys], -1) * q.shape[-1] ** -0.5
                rows.append(torch.einsum("bj,bjd->bd", logits.softmax(-1), v[:, : i + 1]))
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    agrees(make("path"), plain)


def test_paths_law_holds_across_segments(monkeypatch):
    monkeypatch.setattr(path, "SEGMENT", 8)
    testing.check_mixer(dict(testing.variants("path"))["path-causal"], [testing.check_law])
