"""Low-rank mixers against their papers."""

import pytest
import torch
from plain import HEADS, D, T, agrees, make, split

from mixers import registry
from mixers.low_rank.nystromformer import pseudo_inverse

WIDTH = D // HEADS


def parts(m, x):
    return zip(*(split(z) for z in m.qkv(x).chunk(3, -1)), strict=True)


def test_linformer():
    def plain(m, x):
        heads = []
        for q, k, v in parts(m, x):
            keys = torch.einsum("mt,btd->bmd", m.E[:, :T], k)
            values = torch.einsum("mt,btd->bmd", m.F[:, :T], v)
            heads.append((torch.einsum("btd,bmd->btm", q, keys) * WIDTH**-0.5).softmax(-1) @ values)
        return m.out(torch.cat(heads, -1))

    agrees(make("linformer", causal=False, rank=6, max_length=30), plain)


def test_linformers_projections_begin_within_a_root_of_their_rank():
    torch.manual_seed(0)
    mixer = registry.build("linformer", D, rank=16, max_length=200)
    for projection in (mixer.E, mixer.F):
        assert 0.24 < projection.abs().max() <= 0.25 and abs(projection.mean()) < 0.01


def test_efficient_attention_looks_both_ways():
    def plain(m, x):
        heads = [q.softmax(-1) @ (k.softmax(1).mT @ v) for q, k, v in parts(m, x)]
        return m.out(torch.cat(heads, -1))

    agrees(make("efficient_attention", causal=False), plain)


def test_efficient_attention_looks_back():
    def plain(m, x):
        heads = []
        for q, k, v in parts(m, x):
            rows = [
                torch.einsum("bk,btk,btv->bv", q[:, t].softmax(-1), k[:, : t + 1].softmax(1), v[:, : t + 1])
                for t in range(T)
            ]
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    agrees(make("efficient_attention"), plain)


def test_nystromformer():
    def plain(m, x):
        heads, n = [], 5
        places = [int(t * n / T) for t in range(T)]
        for h, (q, k, v) in enumerate(parts(m, x)):
            groups = [[t for t in range(T) if places[t] == s] for s in range(n)]
            Q, K = (torch.stack([z[:, g].mean(1) for g in groups], 1) for z in (q, k))
            soft = lambda a, b: (a @ b.mT * WIDTH**-0.5).softmax(-1)  # noqa: E731
            o = soft(q, K) @ pseudo_inverse(soft(Q, K)) @ soft(Q, k) @ v
            taps = m.conv.weight[h, 0]
            near = torch.stack(
                [sum(taps[16 + j - t] * v[:, j] for j in range(T) if abs(j - t) <= 16) for t in range(T)], 1
            )
            heads.append(o + near)
        return m.out(torch.cat(heads, -1))

    agrees(make("nystromformer", causal=False, n_landmarks=5), plain)


def test_the_iteration_comes_near_the_inverse():
    A = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    A = (A + torch.eye(6)) / 2
    torch.testing.assert_close(pseudo_inverse(A), A.inverse(), rtol=1e-3, atol=1e-3)


def test_landmarks_of_every_token_are_softmax_attention():
    mixer = make("nystromformer", causal=False, n_landmarks=T)
    torch.nn.init.zeros_(mixer.conv.weight)
    torch.nn.init.eye_(mixer.out.weight)
    with torch.no_grad():
        mixer.qkv.weight[: 2 * D] *= 12  # far from uniform, so that the matrix has an inverse
    x = torch.randn(2, T, D, dtype=torch.float64)
    heads = [((q @ k.mT) * WIDTH**-0.5).softmax(-1) @ v for q, k, v in parts(mixer, x)]
    far = (mixer(x)[0] - torch.cat(heads, -1)).abs().mean() / torch.cat(heads, -1).abs().mean()
    assert far < 0.1


@pytest.mark.parametrize("causal", [True, False])
def test_luna(causal):
    def plain(m, x):
        heads = []
        for h, (q, k, v) in enumerate(parts(m, x)):
            rows = []
            for t in range(T):
                seen = slice(0, t + 1 if causal else T)
                logits = torch.einsum("ld,btd->blt", m.p[h], k[:, seen]) * WIDTH**-0.5
                if causal:
                    w = torch.where(logits > 0, logits + 1, logits.exp()) / (t + 1)
                else:
                    w = logits.softmax(-1)
                packed = w @ v[:, seen]
                read = (torch.einsum("bd,bld->bl", q[:, t], packed) * WIDTH**-0.5).softmax(-1)
                rows.append(torch.einsum("bl,bld->bd", read, packed))
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    agrees(make("luna", causal=causal, n_slots=3), plain)
