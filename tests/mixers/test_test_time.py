"""Mixers that learn while they read, against their papers: every inner gradient is torch's, token by token."""

import torch
import torch.nn.functional as F
from plain import HEADS, agrees, make, rotate, split


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
    agrees(mixer, lambda m, x: ttt(m, x, 5))


def test_ttt_mlp():
    mixer = make("ttt_mlp", chunk=4)
    assert [tuple(w.shape) for w in mixer.W] == [(HEADS, 9, 32), (HEADS, 33, 8)] and mixer.base_lr == 0.1
    agrees(mixer, lambda m, x: ttt(m, x, 4))
