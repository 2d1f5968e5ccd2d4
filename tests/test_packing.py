"""Packed documents and left padding are the same as running the documents one by one, for every causal mixer."""

import pytest
import torch

from mixers import registry, testing
from mixers.packing import packed, spans
from models.backbone import Backbone
from models.mlp import MLP

CAUSAL = {label: make for name in registry.names() for label, make in testing.variants(name) if "-causal" in label}
DOCUMENTS = torch.tensor(
    [
        [1] * 5 + [2] * 1 + [3] * 9 + [0] * 2,  # padding at the end
        [0] * 3 + [7] * 9 + [7] * 0 + [8] * 5,  # and in front
        [4] * 17,
    ]
)


def flat(states):
    if states is None:
        return []
    return [states] if isinstance(states, torch.Tensor) else [t for state in states for t in flat(state)]


def one_by_one(mixer, x, documents):
    y, states = torch.zeros_like(x), []
    for start, length in zip(*spans(documents), strict=True):
        row, column = divmod(start, x.shape[1])
        piece, last = mixer(x[row : row + 1, column : column + length], None)
        y = y.index_put((torch.tensor([row]), torch.arange(column, column + length)), piece[0])
        states.append(last)
    return y, states


def differentiated(f, mixer, x, documents):
    x = x.clone().requires_grad_()
    y, states = f(mixer, x, documents)
    weights = torch.Generator().manual_seed(1)
    outputs = [t for t in (y, *flat(states)) if t.is_floating_point() or t.is_complex()]
    loss = sum((t.abs() * torch.rand(t.shape, generator=weights, dtype=torch.float64)).sum() for t in outputs)
    grads = torch.autograd.grad(loss, [x, *mixer.parameters()], allow_unused=True)
    return [y, *flat(states), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("label", CAUSAL)
def test_packed_is_one_by_one(label):
    torch.manual_seed(0)
    mixer = CAUSAL[label]().double()
    x = torch.randn(*DOCUMENTS.shape, testing.D, dtype=torch.float64)
    ours, theirs = (differentiated(f, mixer, x, DOCUMENTS) for f in (packed, one_by_one))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert not ours[0][DOCUMENTS == 0].any()


def test_left_padding_is_no_padding():
    torch.manual_seed(0)
    mixer = CAUSAL["gla-causal"]().double()
    x = torch.randn(2, 9, testing.D, dtype=torch.float64)
    mask = torch.arange(9) >= torch.tensor([[4], [0]])
    y, states = packed(mixer, x, mask.long())
    expected, last = mixer(x[:1, 4:])
    torch.testing.assert_close(y[:1, 4:], expected)
    torch.testing.assert_close(states[0], last)
    torch.testing.assert_close(y[1:], mixer(x[1:])[0])


def test_a_whole_backbone_can_be_packed():
    torch.manual_seed(0)
    factories = [lambda d, name=name: registry.build(name, d) for name in ("gated_delta_net", "softmax")]
    rest = {"mlp": lambda d: MLP(d, expand=2), "local_conv": 3, "dropout": 0.0, "piece": None, "checkpoint": False}
    backbone = Backbone(testing.D, n_layers=2, pattern=factories, causal=True, **rest, seed=0, label="x").double()
    x = torch.randn(*DOCUMENTS.shape, testing.D, dtype=torch.float64)
    ours, theirs = (differentiated(f, backbone, x, DOCUMENTS) for f in (packed, one_by_one))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_leak_is_seen():
    """The planted bug: without the documents' numbers, tokens do see other documents."""
    torch.manual_seed(0)
    mixer = CAUSAL["gla-causal"]().double()
    x = torch.randn(*DOCUMENTS.shape, testing.D, dtype=torch.float64)
    y, _ = packed(mixer, x, DOCUMENTS)
    assert (packed(mixer, x, DOCUMENTS.clamp(max=1))[0] - y).abs().max() > 1e-3


def test_refusals_and_nothing_at_all():
    x = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="documents must be int64 numbers of shape"):
        packed(lambda x, state: (x, None), x, torch.ones(2, 4))
    y, states = packed(lambda x, state: (x, None), x, torch.zeros(2, 4, dtype=torch.int64))
    assert not y.any() and states == []
