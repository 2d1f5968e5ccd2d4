"""The adapter to flash-linear-attention: what it takes, and, on Triton's interpreter, that each kernel gets what it
expects. `make test-fla` installs what the latter needs.
"""

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from mixers.ops import engines
from mixers.ops.dplr import dplr_definition
from mixers.ops.fla import calls, delta_rule, dplr, gated_delta, linear_attention, scan
from mixers.ops.gated_delta import gated_delta_definition
from mixers.ops.linear_attention import linear_attention_definition
from mixers.ops.scan import scan_definition

B, H, FEW, T, D = 1, 2, 1, 70, 16
MISSING = [name for name in ("triton", "fla") if importlib.util.find_spec(name) is None]


def delta_definition(q, k, v, beta, g=None, state=None):
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    return gated_delta_definition(q, k, beta * k, beta * v, g, state)


def heads(dtype, few=FEW):
    torch.manual_seed(0)
    q, k = torch.randn(B, few, T, D).to(dtype), F.normalize(torch.randn(B, few, T, D), dim=-1).to(dtype)
    return {"q": q, "k": k, "v": torch.randn(B, H, T, D).to(dtype), "state": torch.randn(B, H, D, D)}


def decay(width, reset=False):
    """None for width 0."""
    g = -3 * torch.rand(B, H, T, width)
    if reset:
        g[:, :, ::5] = -torch.inf
        g[:, :, 3::5] = -80
    return {"g": g} if width else {}


def beta(dtype):
    return {"beta": torch.rand(B, H, T, 1).to(dtype)}


def erased(dtype):
    x = heads(dtype)
    return {"q": x["q"], "k": x["k"], "p": 0.7 * x["k"].flip(2), "z": x["v"], "state": x["state"]}


def steered(dtype):
    x = heads(dtype)
    return x | {"a": -0.7 * x["k"].flip(2), "b": x["k"].flip(2)}


def rows(dtype):
    torch.manual_seed(0)
    a = torch.randn(2, T, 3, 4).clamp(-1, 1)
    a[:, ::7] = 0
    return {"a": a, "b": torch.randn(2, T, 3, 4), "state": torch.randn(2, 3, 4)}


HALF, FULL = torch.bfloat16, torch.float32
LINEAR = (linear_attention, "linear_attention", linear_attention_definition)
DELTA = (delta_rule, "delta_rule", delta_definition)
CASES = {  # what serves: (adapter, op, definition), dtype, inputs, whether this Triton is excluded
    "chunk_linear_attn": (LINEAR, FULL, lambda t: heads(t), False),
    "chunk_linear_attn, bf16": (LINEAR, HALF, lambda t: heads(t), False),
    "chunk_simple_gla": (LINEAR, FULL, lambda t: heads(t) | decay(1), False),
    "chunk_simple_gla, resets": (LINEAR, FULL, lambda t: heads(t) | decay(1, reset=True), False),
    "chunk_gla": (LINEAR, FULL, lambda t: heads(t) | decay(D), False),
    "chunk_gla, resets": (LINEAR, FULL, lambda t: heads(t) | decay(D, reset=True), False),
    "chunk_gla, scalar": (LINEAR, FULL, lambda t: heads(t) | decay(1), True),
    "chunk_gla, narrow": (LINEAR, HALF, lambda t: heads(t), True),
    "chunk_rwkv6": (LINEAR, FULL, lambda t: heads(t) | decay(D) | {"u": torch.randn(H, D)}, False),
    "chunk_delta_rule": (DELTA, HALF, lambda t: heads(t) | beta(t), False),
    "chunk_gated_delta_rule": (DELTA, FULL, lambda t: heads(t) | beta(t) | decay(1), False),
    "chunk_kda": (DELTA, FULL, lambda t: heads(t) | beta(t) | decay(D), False),
    "chunk_kda, no decay": (DELTA, FULL, lambda t: heads(t) | beta(t), False),
    "chunk_kda, narrow": (DELTA, HALF, lambda t: heads(t) | beta(t), True),
    "chunk_kda, scalar": (DELTA, FULL, lambda t: heads(t) | beta(t) | decay(1, reset=True), True),
    "chunk_dplr_delta_rule": (
        (dplr, "dplr", dplr_definition),
        HALF,
        lambda t: steered(t) | {"g": decay(D)["g"].clamp(min=-4)},
        False,
    ),
    "chunk_dplr_delta_rule, gated delta": (
        (gated_delta, "gated_delta", gated_delta_definition),
        HALF,
        lambda t: erased(t) | decay(1),
        False,
    ),
    "fused_recurrent_hgrn": ((scan, "scan", scan_definition), FULL, rows, False),
}


def results(op, inputs):
    """o, the state and every gradient."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    o, S = op(**leaves)
    torch.manual_seed(1)
    loss = sum((x.double() * torch.randn(x.shape, dtype=torch.float64)).sum() for x in (o, S))
    return [o, S, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.fla
@pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: make test-fla")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(CASES))
def test_kernels_get_what_they_expect(name, monkeypatch):
    import interpreted  # noqa: F401

    (adapter, op, definition), dtype, make, excluded = CASES[name]
    monkeypatch.setattr(calls, "excluded", lambda: excluded)
    used, real = [], calls.kernel
    for module in (calls, linear_attention, delta_rule, dplr):
        monkeypatch.setattr(module, "kernel", lambda family, kernel: used.append(kernel) or real(family, kernel))
    inputs = make(dtype)
    assert adapter.serves(**inputs)
    ours = results(getattr(adapter, op), inputs)
    theirs = results(definition, {key: x.double() for key, x in inputs.items()})
    assert set(used) == {name.split(",")[0]}
    for what, a, b in zip(("o", "state", *inputs), ours, theirs, strict=True):
        error = ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
        assert error < (5e-2 if dtype == HALF else 1e-4), f"{what} is off by {error:.1e}"
    assert ours[0].dtype == dtype and ours[1].dtype == FULL


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize(("K", "V"), [(32, 64), (64, 32), (64, 64)])
def test_where_this_triton_is_excluded_what_is_narrow_gets_other_kernels(monkeypatch, K, V, excluded):
    monkeypatch.setattr(calls, "excluded", lambda: excluded)
    asked = []

    def kernel(family, name):
        asked.append(name)
        raise InterruptedError

    q, k, v = (torch.randn(B, H, T, width).to(HALF) for width in (K, K, V))
    for module, inputs in ((linear_attention, (q, k, v)), (delta_rule, (q, k, v, beta(HALF)["beta"]))):
        monkeypatch.setattr(module, "kernel", kernel)
        with pytest.raises(InterruptedError):
            getattr(module, module.__name__.rpartition(".")[2])(*inputs)
    narrow = (K, V) != (64, 64)
    assert asked == (["chunk_gla", "chunk_kda"] if narrow and excluded else ["chunk_linear_attn", "chunk_delta_rule"])


def test_what_the_kernels_do_not_take_is_left_to_torch():
    x = heads(FULL)
    half = {name: t.bfloat16() for name, t in x.items()}
    takes = linear_attention.serves
    assert takes(**x) and takes(**half) and takes(**x, g=decay(1)["g"]) and takes(**x, g=decay(D)["g"])
    assert not takes(**{name: t.double() for name, t in x.items()})
    assert not takes(**x, gv=torch.zeros(B, H, T, D))
    assert not takes(**{name: t[:, :, :1] if name != "state" else t for name, t in x.items()})  # one token
    assert not takes(x["q"][..., :8], x["k"][..., :8], x["v"])  # narrower than tensor cores
    assert not takes(*(x[n].repeat(1, 1, 1, 17) for n in "qk"), x["v"])  # wider than kernels hold
    assert not takes(half["q"], half["k"], torch.randn(B, H, T, 17).bfloat16())  # odd, in half precision
    assert not takes(x["q"], x["k"], x["v"], state=torch.zeros(B, H, D, D + 1))
    assert not takes(x["q"], x["k"], torch.randn(B, 3, T, D)[:, :, :5])
    assert not dplr.serves(**steered(FULL)) and dplr.serves(**steered(HALF))
    assert not dplr.serves(**steered(HALF), g=torch.full((B, H, T, 1), -6.0))  # would overflow
    assert not gated_delta.serves(**erased(FULL)) and gated_delta.serves(**erased(HALF))
    assert scan.serves(torch.rand(2, 5, 3), torch.rand(2, 5, 3))
    assert not scan.serves(torch.rand(2, 5, 3, dtype=torch.complex64), torch.rand(2, 5, 3, dtype=torch.complex64))
    assert not scan.serves(torch.rand(2, 1, 3), torch.rand(2, 1, 3))


def test_the_first_obstacle_is_said(monkeypatch):
    """In this order, since each question costs more than the one before."""
    assert "there is no CUDA device" in engines.obstacle("fla") or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {"triton": None}
    monkeypatch.setattr(calls.importlib.util, "find_spec", lambda name: found.get(name))
    assert engines.obstacle("fla") == "Triton is not installed: pip install 'seqmix[cuda]'"
    found["triton"] = object()
    monkeypatch.setitem(sys.modules, "fla", None)
    monkeypatch.delitem(sys.modules, "fla.ops", raising=False)
    assert engines.obstacle("fla").startswith("fla-core cannot be imported (")
    monkeypatch.setitem(sys.modules, "fla", types.ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", types.ModuleType("fla.ops"))
    monkeypatch.setattr(calls.metadata, "version", lambda name: "0.4.2")
    assert engines.obstacle("fla") == "fla-core 0.4.2 is too old: pip install 'fla-core>=0.6.0'"
    monkeypatch.setattr(calls.metadata, "version", lambda name: "0.6.0")
    assert engines.obstacle("fla") == ""


@pytest.mark.parametrize(
    ("major", "triton", "excluded"),
    [(9, "3.3.1", False), (9, "3.4.0", True), (9, "3.6.0", True), (9, "3.7.1", False), (8, "3.6.0", False)],
)
def test_hopper_with_some_tritons_is_excluded(monkeypatch, major, triton, excluded):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    monkeypatch.setattr(calls.metadata, "version", lambda name: triton)
    assert calls.excluded.__wrapped__() == excluded


def test_a_version_is_read():
    assert calls.version("3.7.1+git12") == (3, 7, 1) and calls.version("0.6.0rc1") == (0, 6)
