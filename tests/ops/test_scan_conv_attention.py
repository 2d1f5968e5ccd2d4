"""scan, selective_scan, causal_conv, diagonal and attention: engine against definition, every gradient, every cut."""

import pytest
import torch

from mixers.ops import attention as attend
from mixers.ops import causal_conv as conv
from mixers.ops import diagonal as diagonals
from mixers.ops import engines
from mixers.ops import scan as scans
from mixers.ops import selective_scan as selective

C = 8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.complex128: 1e-10, torch.complex64: 1e-5}
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
WIDE_ONLY = [torch.float64, torch.float32]
LENGTHS = [1, C - 1, C, C + 1, 3 * C + 7]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(scans, "CHUNK", C)
    monkeypatch.setattr(attend, "BLOCK", C)
    monkeypatch.setattr(diagonals, "SEGMENT", C)


@pytest.fixture
def engine(request):
    if request.param == "native" and engines.obstacle("native"):
        pytest.skip(engines.obstacle("native"))
    engines.use(request.param)
    engines.ran.clear()
    yield request.param
    engines.use("auto")


def each_engine(dtypes):
    """Every dtype with the torch engine, and what the native one takes with that too."""
    cases = [("torch", dtype) for dtype in dtypes] + [("native", d) for d in dtypes if d in WIDE]
    return pytest.mark.parametrize("engine, dtype", cases, indirect=["engine"], ids=lambda case: str(case))


def error(a, b):
    """Relative; but what is zero, as a single key's gradient in attention, is rounded differently by each processor."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=0.1)).item() if a.numel() else 0.0


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def both(engine, definition, inputs):
    """The largest relative error of outputs, states and gradients, each of its own tensor."""
    results = []
    for f, wide in ((engine, False), (definition, True)):
        dtypes = [WIDE.get(x.dtype, x.dtype) if wide else x.dtype for x in inputs]
        leaves = [x.detach().clone().to(d).requires_grad_() for x, d in zip(inputs, dtypes, strict=True)]
        outputs = flat(f(*leaves))
        torch.manual_seed(1)
        loss = sum((t * torch.randn(t.shape, dtype=torch.float64)).sum().abs() for t in outputs)
        results.append(outputs + list(torch.autograd.grad(loss, leaves)))
    return max(error(a.to(b.dtype), b) for a, b in zip(*results, strict=True))


@each_engine(TOLERANCE)
@pytest.mark.parametrize("T", LENGTHS)
def test_scan(T, engine, dtype):
    torch.manual_seed(0)
    a, b, h = (torch.randn(*shape, dtype=dtype) for shape in ((2, T, 3, 2), (2, T, 3, 2), (2, 3, 2)))
    a = a / (1 + a.abs()) * 1.2  # below and above one
    a[:, ::3] = 0
    assert both(scans.scan, scans.scan_definition, (a, b, h)) < TOLERANCE[dtype]
    assert both(scans.scan, scans.scan_definition, (a, b)) < TOLERANCE[dtype]
    for other in (a[0, 0], a[:, :1], a[..., :1], a.mT.contiguous().mT):  # repeated, and not dense
        assert both(scans.scan, scans.scan_definition, (other, b, h)) < TOLERANCE[dtype]
    assert engines.ran == {"scan": {engine}}


def test_doubling_is_the_loop(monkeypatch):
    torch.manual_seed(0)
    for T in LENGTHS:
        a, b, h = torch.rand(2, T, 3).double(), torch.randn(2, T, 3).double(), torch.randn(2, 3).double()
        torch.testing.assert_close(scans.by_doubling(a, b, h), scans.run(a, b, h), rtol=1e-12, atol=1e-12)
        expected = scans.run_back(a, b, h)
        with monkeypatch.context() as patch:
            patch.setattr(scans, "loops", lambda x: False)
            torch.testing.assert_close(scans.run_back(a, b, h), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [8, 11, 32, 77])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_blocks_are_the_loop(T, dtype, monkeypatch):
    """Also where the product over a block is infinite and the states are not."""
    monkeypatch.setattr(scans, "BLOCK", 4)
    monkeypatch.setattr(scans, "FEW", 2)
    monkeypatch.setattr(scans, "AT_ONCE", 6 * 5)  # five blocks of 2 x 3
    walked, in_blocks = [], scans.in_blocks
    monkeypatch.setattr(scans, "in_blocks", lambda a, *more: (walked.append(a.shape[1]), in_blocks(a, *more))[1])
    torch.manual_seed(0)
    a, b, h = (torch.randn(*shape, dtype=dtype) for shape in ((2, T, 3), (2, T, 3), (2, 3)))
    a[:, ::3] = 0
    vast, nothing = a.clone(), torch.zeros_like(b)
    vast[:, :4], nothing[:, 4:] = 1e200, b[:, 4:]
    for inputs in ((a, b, h), (a[:, :1], b, h), (vast, nothing, 0 * h)):
        o, last = scans.scan(*inputs)
        expected, final = scans.scan_definition(*inputs)
        torch.testing.assert_close(o, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last, final, rtol=1e-12, atol=1e-12)
        assert o.isfinite().all()
    assert both(scans.scan, scans.scan_definition, (a, b, h)) < 1e-10
    assert T == 8 or max(walked) == min(20, T // 4 * 4)


@each_engine(WIDE_ONLY)
@pytest.mark.parametrize("T", [*LENGTHS, 70])
def test_selective_scan(T, engine, dtype, monkeypatch):
    monkeypatch.setattr(selective, "AT_ONCE", 8 * 24)  # eight steps of 2 x 3 x 4
    torch.manual_seed(0)
    x, dt = torch.randn(2, T, 3, dtype=dtype), 2 * torch.rand(2, T, 3, dtype=dtype)
    A, D = -torch.arange(1.0, 5).expand(3, 4).to(dtype), torch.randn(3, dtype=dtype)
    B, C_, h = torch.randn(2, T, 4, dtype=dtype), torch.randn(2, T, 4, dtype=dtype), torch.randn(2, 3, 4, dtype=dtype)
    dt[:, ::5] = 1e4  # everything is forgotten
    for inputs in ((x, dt, A, B, C_, D), (x, dt, A, B, C_, D, h)):
        assert both(selective.selective_scan, selective.selective_scan_definition, inputs) < TOLERANCE[dtype]
    assert engines.ran == {"selective_scan": {engine}}


def test_selective_scan_carries_and_keeps_its_dtypes():
    torch.manual_seed(0)
    x, dt, B, C_ = (torch.randn(2, 30, n).double() for n in (3, 3, 4, 4))
    A, D = -torch.rand(3, 4).double(), torch.randn(3).double()
    whole, last = selective.selective_scan(x, dt.abs(), A, B, C_, D)
    state, pieces = None, []
    for x_, dt_, B_, C__ in zip(*(z.split([1, 17, 12], 1) for z in (x, dt.abs(), B, C_)), strict=True):
        y, state = selective.selective_scan(x_, dt_, A, B_, C__, D, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)
    y, h = selective.selective_scan(*(z.bfloat16() for z in (x, dt.abs(), A, B, C_, D)))
    assert y.dtype == torch.bfloat16 and h.dtype == torch.float32
    y, h = selective.selective_scan(*(z.to("meta") for z in (x, dt, A, B, C_, D)))
    assert y.shape == (2, 30, 3) and h.shape == (2, 3, 4)
    y, h = selective.selective_scan(x[:0], dt[:0], A, B[:0], C_[:0], D)
    assert y.shape == (0, 30, 3) and h.shape == (0, 3, 4)


def test_scan_broadcasts_carries_and_keeps_its_dtype():
    torch.manual_seed(0)
    a, b = torch.rand(3, dtype=torch.float64), torch.randn(2, 37, 3, dtype=torch.float64)
    assert both(scans.scan, scans.scan_definition, (a, b)) < 1e-10
    whole, last = scans.scan(a, b)
    first, h = scans.scan(a, b[:, :5])
    rest, h = scans.scan(a, b[:, 5:], h)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    torch.testing.assert_close(h, last)
    h, last = scans.scan(a.bfloat16(), b.bfloat16())
    assert h.dtype == last.dtype == torch.float32
    h, last = scans.scan(a.to("meta"), b[:0].to("meta"))
    assert h.shape == (0, 37, 3) and last.shape == (0, 3)


def test_scan_does_not_drift():
    torch.manual_seed(0)
    a, b = 1 - torch.rand(1, 65536, 4, dtype=torch.float64) * 1e-3, torch.randn(1, 65536, 4, dtype=torch.float64)
    exact, _ = scans.scan(a, b)
    assert error(scans.scan(a.float(), b.float())[0].double(), exact) < 1e-4


def test_scan_gradcheck_and_no_second_derivative():
    a, b = (torch.randn(1, 5, 2, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(scans.scan, (a, b))
    with pytest.raises(RuntimeError, match="cannot be differentiated: drop create_graph=True"):
        torch.autograd.grad(scans.scan(a, b)[0].abs().sum(), a, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("taps", [1, 4, 16, 17, 40])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 55])
def test_causal_conv(T, taps, dtype):
    torch.manual_seed(0)
    x, h, past = (torch.randn(*shape, dtype=dtype) for shape in ((2, T, 3), (3, taps), (2, taps - 1, 3)))
    inputs = (x, h, past) if taps > 1 else (x, h)
    assert both(conv.causal_conv, conv.causal_conv_definition, inputs) < TOLERANCE[dtype]
    if taps > 1:
        got, expected = conv.causal_conv(x, h), conv.causal_conv_definition(x, h)
        assert error(got[0], expected[0]) < TOLERANCE[dtype]
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("taps", [4, 30])
def test_causal_conv_obeys_the_law(taps):
    torch.manual_seed(0)
    x, h = torch.randn(2, 40, 3, dtype=torch.float64), torch.randn(3, taps, dtype=torch.float64)
    whole, last = conv.causal_conv(x, h)
    for cuts in ([1] * 40, [25, 15], [3, 30, 7]):
        state, pieces = None, []
        for piece in x.split(cuts, 1):
            y, state = conv.causal_conv(piece, h, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        torch.testing.assert_close(state, last)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("T", [*LENGTHS, 100])
def test_diagonal(T, dtype):
    torch.manual_seed(0)
    a, c, h = (torch.randn(*shape, dtype=dtype) for shape in ((3, 2), (3, 2), (2, 3, 2)))
    a = torch.complex(-a.real.abs(), 9 * a.imag) if a.is_complex() else -a.abs()
    a[0] = -1e4  # everything is forgotten at once
    x = torch.randn(2, T, 3, dtype=c.real.dtype if c.is_complex() else dtype)
    for inputs in ((x, a, c), (x, a, c, h)):
        assert both(diagonals.diagonal, diagonals.diagonal_definition, inputs) < TOLERANCE[dtype]


def test_diagonal_keeps_its_dtypes():
    a, x = -torch.rand(3, 2), torch.randn(2, 37, 3).bfloat16()
    for rates, expected in ((a, torch.float32), (torch.complex(a, a), torch.complex64)):
        y, h = diagonals.diagonal(x, rates, rates)
        assert (y.dtype, h.dtype) == (torch.bfloat16, expected)
        y, h = diagonals.diagonal(x[:0], rates, rates)
        assert y.shape == (0, 37, 3) and h.shape == (0, 3, 2)


KINDS = {
    "causal": {},
    "window": {"window": 5},
    "both ways": {"causal": False},
    "window both ways": {"causal": False, "window": 5},
    "bias": {"bias": True},
    "sink": {"sink": True},
    "prefix": {"prefix": 3},
    "prefix and window": {"prefix": 3, "window": 5},
    "everything": {"bias": True, "sink": True, "window": 6},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("past", [0, 11])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", LENGTHS)
def test_attention(T, kind, past, dtype):
    torch.manual_seed(0)
    options = dict(KINDS[kind])
    q, k, v = (torch.randn(2, heads, T, 6, dtype=dtype) for heads in (4, 2, 2))
    inputs = [q, k, v]
    inputs += [torch.randn(2, 2, past, 6, dtype=dtype) for _ in range(2)] if past else []
    extra = [name for name in ("bias", "sink") if options.pop(name, False)]
    shapes = {"bias": (2, 4, T + past), "sink": (4,)}
    inputs += [torch.randn(shapes[name], dtype=dtype) for name in extra]

    def call(f):
        def run(*args):
            args = list(args)
            q, k, v = args[:3]
            state = tuple(args[3:5]) if past else None
            return f(q, k, v, state, **dict(zip(extra, args[len(args) - len(extra) :], strict=True)), **options)

        return run

    assert both(call(attend.attention), call(attend.attention_definition), inputs) < TOLERANCE[dtype]


def test_attention_mask():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 20, 6, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(3, 20) < 0.5
    mask[2] = False  # a row without a real key reads zero, and its gradient is finite
    f, d = (lambda *a, g=g: g(*a, mask=mask, causal=False) for g in (attend.attention, attend.attention_definition))
    assert error(f(q, k, v)[0], d(q, k, v)[0]) < 1e-10
    assert not f(q, k, v)[0][2].any()
    k.requires_grad_()
    f(q, k, v)[0].sum().backward()
    assert torch.isfinite(k.grad).all()
    with pytest.raises(ValueError, match="causal=False"):
        attend.attention(q, k, v, mask=mask)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("cuts", [[1] * 30, [17, 13], [3, 1, 26]], ids=str)
def test_attention_obeys_the_law(window, cuts):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 30, 4, dtype=torch.float64) for _ in range(3))
    whole, last = attend.attention(q, k, v, window=window)
    state, pieces = None, []
    for piece in zip(*(x.split(cuts, 2) for x in (q, k, v)), strict=True):
        o, state = attend.attention(*piece, state, window=window)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    torch.testing.assert_close(state, last)
    assert state[0].shape[2] == (30 if window is None else window - 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("prefix", [0, 2, 7])
def test_visible_pairs_are_counted_without_a_mask(causal, window, prefix):
    for start, stop, T, S in ((0, 5, 5, 5), (2, 5, 6, 9), (0, 1, 1, 4)):
        seen = attend.visible(range(S - T + start, S - T + stop), range(S), causal, window, prefix, "cpu")
        assert attend.n_visible(start, stop, T, S, causal, window, prefix) == seen.sum()
