"""Every op under torch.compile, without a graph break; on the meta device; under autocast; with an empty batch; and in
memory that is linear in the length.
"""

import pytest
import torch

from compare.speed import LiveBytes
from mixers.ops import engines
from mixers.ops.attention import attention
from mixers.ops.causal_conv import causal_conv
from mixers.ops.diagonal import diagonal
from mixers.ops.dplr import dplr
from mixers.ops.gated_delta import gated_delta
from mixers.ops.linear_attention import linear_attention
from mixers.ops.scan import scan
from mixers.ops.selective_scan import selective_scan

B, H, T, D = 2, 2, 40, 4


@pytest.fixture
def engine(request):
    if request.param == "native" and engines.obstacle("native"):
        pytest.skip(engines.obstacle("native"))
    engines.use(request.param)
    yield request.param
    engines.use("auto")


def cases(batch=B, T=T):
    def heads(batch, seed):
        return torch.randn(batch, H, T, D, generator=torch.Generator().manual_seed(seed))

    def rows(width=D, batch=B, seed=0):
        return torch.randn(batch, T, width, generator=torch.Generator().manual_seed(seed))

    q, k, v = (heads(batch, seed) for seed in range(3))
    g, gc = -heads(batch, 3)[..., :1].abs(), -heads(batch, 4).abs()
    x, dt, b, c = rows(3, batch), rows(3, batch, 1).abs(), rows(5, batch, 2), rows(5, batch, 3)
    return {
        "linear_attention": (linear_attention, (v, q, k)),
        "linear_attention, scalar": (linear_attention, (q, k, v, g)),
        "linear_attention, channel": (linear_attention, (q, k, v, gc)),
        "gated_delta": (gated_delta, (q, k / 9, k / 9, v, g)),
        "dplr": (dplr, (q, k, v, k / 9, q / 9, gc)),
        "scan": (scan, (rows(3, batch).sigmoid(), x)),
        "selective_scan": (selective_scan, (x, dt, -rows(5)[0, :3].abs(), b, c, rows(3)[0, 0])),
        "causal_conv, short": (causal_conv, (x, rows(4)[0, :3])),
        "causal_conv, long": (causal_conv, (x, rows(30)[0, :3])),
        "diagonal": (diagonal, (x, -rows(5)[0, :3].abs(), rows(5)[0, :3])),
        "attention": (attention, (q, k, v)),
        "attention, a number per key": (lambda q, k, v, b: attention(q, k, v, bias=b[..., 0]), (q, k, v, g)),
        "attention, window": (lambda q, k, v: attention(q, k, v, window=8), (q, k, v)),
    }


NAMES = list(cases())
FUSED = [name for name in NAMES if name.split(",")[0] in ("linear_attention", "gated_delta", "scan", "selective_scan")]
each_engine = pytest.mark.parametrize(
    "engine, name", [("torch", name) for name in NAMES] + [("native", name) for name in FUSED], indirect=["engine"]
)


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [x for part in value for x in tensors(part)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # Dynamo's own
@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(name):
    op, inputs = cases()[name]
    torch._dynamo.reset()
    results = []
    for f in (torch.compile(op, backend="aot_eager", fullgraph=True), op):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs = tensors(f(*leaves))
        loss = sum(x.float().square().sum() for x in outputs)
        results.append(outputs + list(torch.autograd.grad(loss, leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@each_engine
def test_meta_tensors_have_the_real_shapes_and_dtypes(name, engine):
    for cast in (torch.float32, torch.bfloat16, torch.float64):
        op, inputs = cases()[name]
        real = tensors(op(*(x.to(cast) for x in inputs)))
        meta = tensors(op(*(x.to("meta", cast) for x in inputs)))
        assert [(x.shape, x.dtype) for x in real] == [(x.shape, x.dtype) for x in meta]


@each_engine
def test_an_empty_batch_gives_empty_outputs_and_gradients(name, engine):
    op, inputs = cases(batch=0)[name]
    full = tensors(cases()[name][0](*cases()[name][1]))
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = tensors(op(*leaves))
    assert [x.shape for x in outputs] == [(0, *x.shape[1:]) for x in full]
    sum(x.sum() for x in outputs).backward()


@each_engine
def test_autocast_rounds_neither_states_nor_gradients(name, engine):
    if name.startswith("attention"):
        return  # its state is what it was given
    op, inputs = cases()[name]
    leaves = [x.clone().requires_grad_() for x in inputs]

    def everything():
        outputs = tensors(op(*leaves))
        if name == "diagonal":  # has no backward pass of its own
            return outputs
        return *outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything()
    for a, b in zip(inside, everything(), strict=True):
        assert torch.equal(a, b)


@each_engine
def test_a_second_derivative_is_right_or_refused(name, engine):
    op, inputs = cases(T=20)[name]
    leaves = [x.double().requires_grad_() if engine == "torch" else x.clone().requires_grad_() for x in inputs]
    loss = sum(x.square().sum() for x in tensors(op(*leaves)))
    try:
        first = torch.autograd.grad(loss, leaves, create_graph=True)
    except RuntimeError as error:
        assert "cannot be differentiated: drop create_graph=True" in str(error)
        return
    try:
        torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
    except RuntimeError as error:
        assert "is not implemented" in str(error)  # torch's own attention
        return
    assert torch.autograd.gradgradcheck(op, [x.detach().double().requires_grad_() for x in leaves])


def peak(name, T):
    """Bytes of live tensors beyond the inputs, forward and backward."""
    op, inputs = cases(batch=1, T=T)[name]
    leaves = [x.requires_grad_() for x in inputs]
    with LiveBytes(leaves) as live:
        before = live.live
        sum(x.sum() for x in tensors(op(*leaves))).backward()
        return live.peak - before


@each_engine
def test_memory_is_linear_in_the_length(name, engine):
    """Where four times the length took 16 times the memory, some (T, T) matrix would have been there."""
    assert peak(name, 4096) < 4**1.05 * peak(name, 1024)
