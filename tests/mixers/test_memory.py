"""Mixers with a memory beside the sequence, against their papers."""

import pytest
import torch
import torch.nn.functional as F
from plain import HEADS, D, agrees, attend, make, rotate, split, unit

from mixers import registry, testing
from models.learner import groups


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(q, keys, values):
    """softmax(q . k / sqrt(d)) v of one query (B, d) over keys (B, n, d)."""
    logits = torch.einsum("bd,bnd->bn", q, keys) * q.shape[-1] ** -0.5
    return torch.einsum("bn,bnd->bd", logits.softmax(-1), values)


def parts(m, x):
    return [split(z) for z in m.qkv(x).chunk(3, -1)]


@pytest.mark.parametrize("causal", [True, False])
def test_persistent_memory(causal):
    def plain(m, x):
        heads, T = [], x.shape[1]
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True)):
            q, k, fixed = rotate(q), rotate(k), [z[h].expand(len(x), -1, -1) for z in (m.k, m.v)]
            rows = []
            for t in range(T):
                seen = t + 1 if causal else T
                keys, values = (torch.cat([f, z[:, :seen]], 1) for f, z in zip(fixed, (k, v), strict=True))
                rows.append(read(q[:, t], keys, values))
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    mixer = make("persistent_memory", n_persistent=5, causal=causal)
    assert mixer.k.shape == (HEADS, 5, 8)
    agrees(mixer, plain)


def test_persistent_memory_is_no_part_of_the_state():
    _, (after, (k, v)) = make("persistent_memory", n_persistent=5)(noise(2, 7, D))
    assert after.tolist() == [7, 7] and k.shape == v.shape == (2, HEADS, 7, 8)


def test_product_key_memory():
    """Of all n^2 pairs the best ones, without the shortcut."""

    def plain(m, x):
        total = torch.zeros_like(x)
        for q, (c, other) in zip(split(m.q(x)), m.keys, strict=True):
            mean, var = q.mean(-1, keepdim=True), q.var(-1, keepdim=True, unbiased=False)
            q = (q - mean) / (var + 1e-5).sqrt() * m.norm.weight + m.norm.bias
            one, two = q.chunk(2, -1)
            scores = ((one @ c.T)[..., :, None] + (two @ other.T)[..., None, :]).flatten(-2)
            best = scores.sort(-1, descending=True).indices[..., :3]
            weights = torch.zeros_like(scores).scatter(-1, best, scores.gather(-1, best).softmax(-1))
            total = total + weights @ m.values
        return m.out(total * F.silu(m.gate(x)))

    mixer = make("product_key_memory", n_keys=6, d_key=8, top=3)
    assert mixer.values.shape == (36, D)
    agrees(mixer, plain)


def test_product_key_memorys_values_are_a_table():
    mixer = make("product_key_memory", n_keys=6, d_key=8, top=3)
    (tables,) = [group["params"] for group in groups(mixer) if group["name"] == "tables"]
    assert [p is mixer.values for p in tables] == [True]
    mixer(noise(1, 2, D))[0].sum().backward()
    touched = int((mixer.values.grad.abs().sum(-1) > 0).sum())
    assert 3 <= touched <= 2 * HEADS * 3


def elu1(x):
    return torch.where(x > 0, x + 1, x.exp())


@pytest.mark.parametrize("delta", [True, False])
def test_infini_attention(delta):
    def plain(m, x):
        heads, n = [], m.segment
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True)):
            gate = m.beta[h].sigmoid()
            M, z = torch.zeros(len(x), 8, 8, dtype=x.dtype), torch.zeros(len(x), 8, dtype=x.dtype)

            def recall(a, M, z):
                return torch.einsum("bkv,bk->bv", M, elu1(a)) / ((z * elu1(a)).sum(-1, keepdim=True) + 1e-6)

            rows = []
            for start in range(0, x.shape[1], n):
                qs, ks, vs = (part[:, start : start + n] for part in (q, k, v))
                local = attend(rotate(qs), rotate(ks), vs)
                for t in range(qs.shape[1]):
                    rows.append(gate * recall(qs[:, t], M, z) + (1 - gate) * local[:, t])
                new_M, new_z = M, z
                for t in range(qs.shape[1]):
                    value = vs[:, t] - recall(ks[:, t], M, z) if delta else vs[:, t]
                    new_M = new_M + elu1(ks[:, t])[:, :, None] * value[:, None]
                    new_z = new_z + elu1(ks[:, t])
                M, z = new_M, new_z
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    agrees(make("infini_attention", segment=6, delta=delta), plain)


@pytest.mark.parametrize(("top", "n_memories"), [(3, 100), (3, 7), (100, 100)])
def test_memorizing(top, n_memories):
    def plain(m, x):
        heads = []
        for h, (q, k, v) in enumerate(zip(*parts(m, x), strict=True)):
            q, k, gate, rows = unit(q) * m.temperature[h], unit(k), m.b[h].sigmoid(), []
            for t in range(x.shape[1]):
                start = t // m.segment * m.segment
                local = attend(*(rotate(z[:, start : t + 1]) for z in (q * 8**0.5, k)), v[:, start : t + 1])[:, -1]
                oldest = max(0, start - n_memories)
                old_k, old_v = k[:, oldest:start].detach(), v[:, oldest:start].detach()
                found = torch.zeros_like(local)
                if start:
                    products = torch.einsum("bd,bnd->bn", q[:, t], old_k)
                    best = products.sort(-1, descending=True).values[:, :top][:, -1:]
                    weights = products.masked_fill(products < best, -torch.inf).softmax(-1)
                    found = torch.einsum("bn,bnd->bd", weights, old_v)
                rows.append(gate * found + (1 - gate) * local)
            heads.append(torch.stack(rows, 1))
        return m.out(torch.cat(heads, -1))

    mixer = make("memorizing", segment=4, top=top, n_memories=max(top, n_memories))
    agrees(mixer, plain)
    (k, v), _ = mixer(noise(2, 40, D))[1]
    assert k.shape == v.shape == (2, HEADS, min(40, n_memories), 8) and not k.requires_grad


def test_a_learned_state_is_where_a_recurrence_begins():
    def plain(m, x):
        (tail, S), (tail_delta, S_delta) = m.mixer(m.x_0)[1], m.delta
        return m.mixer(x, tuple(torch.cat([z] * len(x)) for z in (tail + tail_delta, S + S_delta)))[0]

    mixer = make("learned_state", mixer=registry.factory("delta_net"))
    assert [tuple(d.shape) for d in mixer.delta] == [(3, 3 * D), (HEADS, 8, 8)]
    agrees(mixer, plain)


@pytest.mark.parametrize("inner", ["gla", "mlstm", "s4d", "performer", "softmax", "rwkv6", "ttt_linear", "titans"])
def test_a_learned_state_for_any_mixer(inner):
    def wrapped():
        return registry.build("learned_state", testing.D, mixer=registry.factory(inner))

    testing.check_law(wrapped)
    testing.check_every_parameter_learns(wrapped)
    # at first it is the mixer after the learned token
    mixer, x = wrapped().double(), noise(2, 9, testing.D)
    prefixed = torch.cat([mixer.x_0.expand(2, 1, -1), x], 1)
    torch.testing.assert_close(mixer(x)[0], mixer.mixer(prefixed)[0][:, 1:])


def test_a_learned_state_looks_back_only_and_knows_its_place():
    mixer = registry.build("learned_state", D, causal=False, mixer=registry.factory("softmax", causal=False))
    assert mixer.causal and mixer.mixer.causal
    deep = registry.build("learned_state", D, mixer=registry.factory("lightning"), layer=3, n_layers=4)
    first = registry.build("learned_state", D, mixer=registry.factory("lightning"), layer=0, n_layers=4)
    assert not torch.equal(deep(noise(1, 9, D).float())[1], first(noise(1, 9, D).float())[1])


@pytest.mark.parametrize("inner", ["fnet", "identity"])
def test_without_a_state_there_is_nothing_to_learn(inner):
    with pytest.raises(ValueError, match="carries no state to begin with"):
        registry.build("learned_state", D, mixer=registry.factory(inner))


@pytest.mark.parametrize(("n_rounds", "n_buckets"), [(3, 4), (2, 8), (1, 32)])
def test_reformer(n_rounds, n_buckets):
    """Dense softmax over the union of what the rounds see."""

    def plain(m, x):
        B, T = x.shape[:2]
        heads = []
        for h, (q, v) in enumerate(zip(split(m.q(x)), split(m.v(x)), strict=True)):
            q = rotate(q)
            seen = torch.zeros(B, T, T, dtype=torch.bool)
            for R in m.R[h]:
                turned = q @ R
                bucket = torch.cat([turned, -turned], -1).argmax(-1)
                for b in range(B):
                    order = sorted(range(T), key=lambda t, b=b, bucket=bucket: (int(bucket[b, t]), t))
                    for at, i in enumerate(order):
                        first = max(0, at // m.chunk - 1) * m.chunk
                        for j in order[first : (at // m.chunk + 1) * m.chunk]:
                            seen[b, i, j] |= bucket[b, i] == bucket[b, j]
            self_only = seen.sum(-1, keepdim=True) == 1
            seen = seen & (~torch.eye(T, dtype=torch.bool) | self_only)
            k = q / q.square().sum(-1, keepdim=True).sqrt()
            logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
            assert not self_only.all() and (self_only.any() or n_rounds > 1)  # both kinds occur
            heads.append(logits.softmax(-1) @ v)
        return m.out(torch.cat(heads, -1))

    agrees(make("reformer", n_rounds=n_rounds, n_buckets=n_buckets, chunk=4), plain)


@pytest.mark.parametrize(
    ("name", "knobs", "words"),
    [
        ("product_key_memory", {"top": 9, "n_keys": 8}, "top=9 of n_keys=8"),
        ("product_key_memory", {"d_key": 7}, "d_key=7 is odd"),
        ("reformer", {"n_buckets": 7}, "n_buckets=7 is odd"),
        ("memorizing", {"top": 9, "n_memories": 8}, "top=9 of n_memories=8"),
    ],
)
def test_what_cannot_be_is_said(name, knobs, words):
    with pytest.raises(ValueError, match=words):
        registry.build(name, D, **knobs)
