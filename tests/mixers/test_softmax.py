"""Softmax mixers against their papers, row by row."""

import math

import torch
import torch.nn.functional as F
from plain import HEADS, agrees, attend, make, rms, rotate, split


def parts(m, x):
    return [split(z) for z in m.qkv(x).chunk(3, -1)]


def test_rope():
    def plain(m, x):
        heads = [attend(rotate(q), rotate(k), v) for q, k, v in zip(*parts(m, x), strict=True)]
        return m.out(torch.cat(heads, -1))

    agrees(make("softmax"), plain)


def test_alibi():
    def plain(m, x):
        heads = []
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True), 1):
            slope = 2.0 ** (-8 * h / HEADS)
            heads.append(attend(q, k, v, lambda i, j, s=slope: torch.full((len(x),), -s * (i - j), dtype=x.dtype)))
        return m.out(torch.cat(heads, -1))

    agrees(make("alibi"), plain)


def test_nope():
    agrees(make("nope"), lambda m, x: m.out(torch.cat([attend(*qkv) for qkv in zip(*parts(m, x), strict=True)], -1)))


def test_gated_attention():
    def plain(m, x):
        heads = [attend(rotate(q), rotate(k), v) for q, k, v in zip(*parts(m, x), strict=True)]
        return m.out(torch.cat(heads, -1) / (1 + (-m.gate(x)).exp()))

    agrees(make("gated_attention"), plain)


def test_fox():
    def plain(m, x):
        log_f = F.logsigmoid(m.forget(x))
        heads = []
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True)):
            heads.append(attend(q, k, v, lambda i, j, h=h: log_f[:, j + 1 : i + 1, h].sum(-1)))
        return m.out(torch.cat(heads, -1))

    agrees(make("fox"), plain)


def test_differential():
    def plain(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        q, k, heads = split(q, 2 * HEADS), split(k, 2 * HEADS), []
        lambda_init = 0.8 - 0.6 * math.exp(-0.3 * 2)
        (q1, k1), (q2, k2) = m.lambdas
        weight = (q1 @ k1).exp() - (q2 @ k2).exp() + lambda_init
        for h, value in enumerate(split(v)):
            one, two = (attend(rotate(q[2 * h + n]), rotate(k[2 * h + n]), value) for n in (0, 1))
            heads.append(rms(m.norm, one - weight * two) * (1 - lambda_init))
        return m.out(torch.cat(heads, -1))

    agrees(make("differential", layer=2, n_layers=4), plain)


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
