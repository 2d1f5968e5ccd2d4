"""linear_attention and gated_delta: engine against definition, every gradient, and the extremes."""

import pytest
import torch
import torch.nn.functional as F

from mixers.ops import chunks, engines
from mixers.ops import dplr as low_rank
from mixers.ops import gated_delta as delta
from mixers.ops import linear_attention as linear

C = 16
B, H, K, V = 2, 2, 3, 5
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", C)
    monkeypatch.setattr(chunks, "CHANNEL_CHUNK", 8)
    monkeypatch.setattr(chunks, "SEGMENT", 2 * C)


@pytest.fixture
def engine(request):
    if request.param == "native" and engines.obstacle("native"):
        pytest.skip(engines.obstacle("native"))
    engines.use(request.param)
    engines.ran.clear()
    yield request.param
    engines.use("auto")


CASES = [("torch", torch.float64), ("torch", torch.float32), ("native", torch.float32)]
each_engine = pytest.mark.parametrize("engine, dtype", CASES, indirect=["engine"], ids=lambda case: str(case))
every_engine = pytest.mark.parametrize("engine", ["torch", "native"], indirect=True)


def error(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


def both(engine, definition, inputs):
    """The largest relative error of outputs, state and gradients, each of its own tensor."""
    results = []
    names = [name for name, x in inputs.items() if x is not None]
    for f, wide in ((engine, False), (definition, True)):
        leaves = {n: inputs[n].detach().clone().to(torch.float64 if wide else inputs[n].dtype) for n in names}
        for leaf in leaves.values():
            leaf.requires_grad_()
        o, S = f(**leaves)
        torch.manual_seed(1)
        weights = [torch.randn(t.shape, dtype=torch.float64) for t in (o, S)]
        loss = sum((t.double() * w).sum() for t, w in zip((o, S), weights, strict=True))
        results.append([o, S, *torch.autograd.grad(loss, list(leaves.values()))])
    assert all(torch.isfinite(t).all() for t in results[0])
    return max(error(a.double(), b) for a, b in zip(*results, strict=True))


def decays(kind, heads, T, dtype):
    width = {"none": 0, "scalar": 1, "channel": K}[kind]
    return -3 * torch.rand(B, heads, T, width, dtype=dtype) if width else None


DECAYED = ("scalar", "channel", "decayed bonus")
LENGTHS = [1, C - 1, C, C + 1, 3 * C + 7]


@each_engine
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("kind", ["none", "scalar", "channel", "value", "bonus", "decayed bonus"])
@pytest.mark.parametrize("T", LENGTHS)
def test_linear_attention(T, kind, carried, engine, dtype):
    torch.manual_seed(0)
    heads = 2 * H  # q and k have fewer
    inputs = {
        "q": torch.randn(B, H, T, K, dtype=dtype),
        "k": torch.randn(B, H, T, K, dtype=dtype),
        "v": torch.randn(B, heads, T, V, dtype=dtype),
        "g": decays({"decayed bonus": "channel"}.get(kind, kind), heads, T, dtype) if kind in DECAYED else None,
        "state": torch.randn(B, heads, K, V, dtype=dtype) if carried else None,
        "u": torch.randn(heads, K, dtype=dtype) if "bonus" in kind else None,
        "gv": -3 * torch.rand(B, heads, T, V, dtype=dtype) if kind == "value" else None,
    }
    assert both(linear.linear_attention, linear.linear_attention_definition, inputs) < TOLERANCE[dtype]
    other = kind == "value" or "bonus" in kind
    assert engines.ran == {"linear_attention": {"torch" if other else engine}}


@each_engine
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("kind", ["none", "scalar", "channel"])
@pytest.mark.parametrize("T", LENGTHS)
def test_gated_delta(T, kind, carried, engine, dtype):
    torch.manual_seed(0)
    k = F.normalize(torch.randn(B, H, T, K, dtype=dtype), dim=-1)
    inputs = {
        "q": torch.randn(B, H, T, K, dtype=dtype),
        "k": k,
        "p": 2 * torch.rand(B, H, T, 1, dtype=dtype) * k,
        "z": torch.randn(B, 2 * H, T, V, dtype=dtype),
        "g": decays(kind, 2 * H, T, dtype),
        "state": torch.randn(B, 2 * H, K, V, dtype=dtype) if carried else None,
    }
    assert both(delta.gated_delta, delta.gated_delta_definition, inputs) < TOLERANCE[dtype]
    assert engines.ran == {"gated_delta": {engine}}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("kind", ["none", "scalar", "channel"])
@pytest.mark.parametrize("T", LENGTHS)
def test_dplr(T, kind, carried, dtype):
    torch.manual_seed(0)
    k, b = (F.normalize(torch.randn(B, H, T, K, dtype=dtype), dim=-1) for _ in range(2))
    inputs = {
        "q": torch.randn(B, H, T, K, dtype=dtype),
        "k": k,
        "v": torch.randn(B, 2 * H, T, V, dtype=dtype),
        "a": -torch.rand(B, H, T, 1, dtype=dtype) * b,
        "b": b,
        "g": decays(kind, 2 * H, T, dtype),
        "state": torch.randn(B, 2 * H, K, V, dtype=dtype) if carried else None,
    }
    assert both(low_rank.dplr, low_rank.dplr_definition, inputs) < TOLERANCE[dtype]


def test_dplr_erases_before_the_decay():
    """(diag(e^g) - k p^T) S + k z^T, which gated_delta is once p has seen the decay."""
    torch.manual_seed(0)
    q, z = torch.randn(1, H, 40, K, dtype=torch.float64), torch.randn(1, H, 40, V, dtype=torch.float64)
    k, g = F.normalize(torch.randn_like(q), dim=-1), -torch.rand_like(q)
    expected = delta.gated_delta(q, k, 0.7 * k, z, g)
    for a, b in zip(low_rank.dplr(q, k, z, -k, 0.7 * k * g.exp(), g), expected, strict=True):
        assert error(a, b) < 1e-10


@every_engine
@pytest.mark.parametrize("value", [0.0, 0.2, -50.0, -1e4, -torch.inf])
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("width", [1, K])
def test_extreme_decays(value, every, width, engine):
    """Always or sometimes extreme, and else mild: what follows an extreme step is as exact as what precedes it."""
    torch.manual_seed(0)
    T = 3 * C + 7
    q, v = torch.randn(1, H, T, K), torch.randn(1, H, T, V)
    k = F.normalize(torch.randn(1, H, T, K), dim=-1)
    g = -torch.rand(1, H, T, width)
    g[:, :, ::every] = value
    beta = torch.rand(1, H, T, 1)
    inputs = {"q": q, "k": k, "v": v, "g": g}
    assert both(linear.linear_attention, linear.linear_attention_definition, inputs) < 1e-4
    inputs = {"q": q, "k": k, "p": beta * k, "z": beta * v, "g": g}
    assert both(delta.gated_delta, delta.gated_delta_definition, inputs) < 1e-4
    inputs = {"q": q, "k": k, "v": v, "a": -beta * k, "b": k, "g": g}
    assert both(low_rank.dplr, low_rank.dplr_definition, inputs) < 1e-4


@pytest.mark.parametrize("value", [-1e4, -torch.inf])
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("width", [1, K])
def test_extreme_decays_in_float64(value, every, width):
    """What is cut off at FORGOTTEN costs nothing of what float64 can tell apart, in chunks of their real size."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, H, 90, n, dtype=torch.float64) for n in (K, K, V))
    k, g = F.normalize(k, dim=-1), -torch.rand(1, H, 90, width, dtype=torch.float64)
    g[:, :, ::every] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", 64)
        inputs = {"q": q, "k": k, "v": v, "g": g}
        assert both(linear.linear_attention, linear.linear_attention_definition, inputs) < 1e-10
        inputs = {"q": q, "k": k, "p": 0.7 * k, "z": v, "g": g}
        assert both(delta.gated_delta, delta.gated_delta_definition, inputs) < 1e-10


LONG = [("torch", 1), ("native", 1), ("native", 4), pytest.param("torch", 4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("engine, width", LONG, indirect=["engine"])
def test_no_drift_over_a_long_sequence(width, monkeypatch, engine):
    """65,536 steps in float32, and their gradients, against float64, where one decay serves all channels."""
    monkeypatch.undo()
    torch.manual_seed(0)
    T = 65536
    q, k, v = (torch.randn(1, 1, T, 4) for _ in range(3))
    k, beta, g = F.normalize(k, dim=-1), torch.rand(1, 1, T, 1), -0.01 * torch.rand(1, 1, T, 1)

    def wide(op):
        return lambda g, **inputs: op(g=g.expand(-1, -1, -1, width), **inputs)

    inputs = {"q": q, "k": k, "p": beta * k, "z": v * beta, "g": g}
    assert both(wide(delta.gated_delta), delta.gated_delta, inputs) < 1e-4
    inputs = {"q": q, "k": k, "v": v, "g": g}
    assert both(wide(linear.linear_attention), linear.linear_attention, inputs) < 1e-4


@every_engine
@pytest.mark.parametrize("width", [1, K])
def test_bfloat16_inputs_meet_a_float32_state(width, engine):
    """Only what comes out in bfloat16, the outputs and most gradients, is rounded to it, and only once."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, n).bfloat16() for n in (K, K, V))
    g, k, S = -torch.rand(1, 2, 40, width).bfloat16(), k / 2, torch.randn(1, 2, K, V)
    calls = (
        (linear.linear_attention, linear.linear_attention_definition, (q, k, v, g, S)),
        (delta.gated_delta, delta.gated_delta_definition, (q, k, k / 2, v, g, S)),
    )
    for call, definition, inputs in calls:
        results = []
        for f, wide in ((call, False), (definition, True)):
            leaves = [x.detach().to(torch.float64 if wide else x.dtype).requires_grad_() for x in inputs]
            o, last = f(*leaves)
            loss = o.double().sum() + last.double().square().sum()
            results.append([o, last, *torch.autograd.grad(loss, leaves)])
        for ours, exact in zip(*results, strict=True):
            assert error(ours.double(), exact) < (1e-5 if ours.dtype == torch.float32 else 2**-8)
        assert [x.dtype for x in results[0]] == [torch.bfloat16, torch.float32, *(x.dtype for x in inputs)]


@every_engine
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("cosine", [0.8, 1.0, None])
def test_keys_that_resemble_each_other(beta, cosine, monkeypatch, engine):
    """Random keys hide an inverse by powers; identical and correlated ones do not. None: keys of zeros."""
    monkeypatch.setattr(chunks, "CHUNK", 64)
    torch.manual_seed(0)
    T, width = 512, 16
    k = torch.zeros(1, 1, T, width)
    if cosine is not None:
        shared, own = F.normalize(torch.randn(1, 1, 1, width), dim=-1), F.normalize(torch.randn_like(k), dim=-1)
        own = F.normalize(own - (own * shared).sum(-1, keepdim=True) * shared, dim=-1)
        k = cosine**0.5 * shared + (1 - cosine) ** 0.5 * own
    q, v = 50 * F.normalize(torch.randn_like(k), dim=-1), torch.randn(1, 1, T, V)
    inputs = {"q": q, "k": k, "p": beta * k, "z": beta * v}
    assert both(delta.gated_delta, delta.gated_delta_definition, inputs) < 1e-4
    if engine == "torch":  # native has none of its own
        inputs = {"q": q, "k": k, "v": beta * v, "a": -beta * k, "b": k}
        assert both(low_rank.dplr, low_rank.dplr_definition, inputs) < 1e-4


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [16, 24], [17, 1, 22]], ids=str)
def test_the_law(cuts):
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, 40, K, dtype=torch.float64) for _ in range(3))
    g = -torch.rand(B, H, 40, K, dtype=torch.float64)
    beta = torch.rand(B, H, 40, 1, dtype=torch.float64)
    k = F.normalize(k, dim=-1)
    for call, streams in ((linear.linear_attention, (q, k, v, g)), (delta.delta_rule, (q, k, v, beta, g))):
        whole, last = call(*streams)
        state, pieces = None, []
        for piece in zip(*(x.split(cuts, 2) for x in streams), strict=True):
            o, state = call(*piece, state=state)
            pieces.append(o)
        torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


@every_engine
def test_dtypes_shapes_and_refusals(engine):
    q, v, beta = (
        torch.randn(B, H, 9, K).bfloat16(),
        torch.randn(B, H, 9, V).bfloat16(),
        torch.rand(B, H, 9, 1).bfloat16(),
    )
    for o, S in (linear.linear_attention(q, q, v), delta.delta_rule(q, q / 9, v, beta)):
        assert o.dtype == torch.bfloat16 and S.dtype == torch.float32
    o, S = linear.linear_attention(q[:0], q[:0], v[:0])
    assert o.shape == (0, H, 9, V) and S.shape == (0, H, K, V)
    with torch.device("meta"):
        o, S = delta.delta_rule(q.to("meta"), q.to("meta"), v.to("meta"), beta.to("meta"))
    assert o.shape == (B, H, 9, V) and S.shape == (B, H, K, V) and S.dtype == torch.float32
    with pytest.raises(ValueError, match="inputs have 2, 2, 3 heads"):
        linear.linear_attention(q, q, torch.randn(B, 3, 9, V))


def test_gradcheck():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    g = (-torch.rand(1, 1, 5, 2, dtype=torch.float64)).requires_grad_()
    S = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear.linear_attention, (q, k, v, g, S))
    assert torch.autograd.gradcheck(lambda q, k, v, g, S: low_rank.dplr(q, k, v, k, q, g, S), (q, k, v, g, S))
    assert torch.autograd.gradcheck(lambda q, k, z, g, S: delta.gated_delta(q, k, k * 0.5, z, g, S), (q, k, v, g, S))


@pytest.mark.parametrize("engine", ["native"], indirect=True)
@pytest.mark.parametrize("kind", ["none", "scalar", "channel"])
@pytest.mark.parametrize("width", [(20, 70), (64, 16), (33, 128)], ids=str)
def test_many_spans_and_wide_heads(kind, width, engine):
    """Beyond what the kernels keep between, and with widths that fill several registers, or not quite one."""
    torch.manual_seed(0)
    (K, V), T = width, 2 * 256 + 21
    q, v = (torch.randn(2, T, 2, n).transpose(1, 2) for n in (K, V))  # strides as mixers have them
    k = F.normalize(torch.randn(2, T, 2, K), dim=-1).transpose(1, 2)
    g = None if kind == "none" else -torch.rand(2, 2, T, 1 if kind == "scalar" else K)
    inputs = {"q": q, "k": k, "v": v, "g": g, "state": torch.randn(2, 2, K, V)}
    assert both(linear.linear_attention, linear.linear_attention_definition, inputs) < 1e-5
    inputs = {"q": q, "k": k, "p": 0.9 * k, "z": v, "g": g, "state": torch.randn(2, 2, K, V)}
    assert both(delta.gated_delta, delta.gated_delta_definition, inputs) < 1e-5
    assert engines.ran == {"linear_attention": {"native"}, "gated_delta": {"native"}}
