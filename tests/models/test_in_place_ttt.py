"""In-Place TTT: an MLP that learns while it reads, and is the plain one until it has been trained to."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import nn

from mixers import registry
from mixers.base import Mixer
from mixers.layers import ShortConv
from mixers.testing import CHECKS, D
from models.backbone import Backbone, Block, directed
from models.in_place_ttt import InPlaceTTT, in_place_ttt
from models.learner import groups
from models.mlp import MLP

CHUNK = 8
VALUES = {"expand": 1.5, "chunk": CHUNK, "eta": 3.0, "conv": 5}


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(d_model=6, by=0.3):
    """Away from its initial values, at which it does not learn."""
    torch.manual_seed(0)
    mlp = InPlaceTTT(d_model, **VALUES).double()
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return mlp


def by_hand(mlp, x):
    """Row by row: what each earlier chunk has written is read as linear attention, q = k = z."""
    z = F.gelu(mlp.mlp.up(x))
    reach, rows = mlp.conv.shape[1] // 2, []
    targets = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for l in range(-reach, reach + 1):
            s = t + l
            if 0 <= s < x.shape[1] and s // mlp.chunk == t // mlp.chunk:
                targets[:, t] += mlp.conv[:, l + reach] * x[:, s]
    v = targets @ mlp.target.weight.T
    for t in range(x.shape[1]):
        row = mlp.mlp.down(z[:, t])
        for s in range(t // mlp.chunk * mlp.chunk):
            row = row + mlp.eta * (z[:, t] * z[:, s]).sum(-1, keepdim=True) * v[:, s]
        rows.append(row)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("T", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 3])
def test_it_is_its_mlp_and_linear_attention_over_earlier_chunks(T):
    mlp, results = trained(), []
    x = noise(2, T, 6).requires_grad_()
    for y in (mlp(x)[0], by_hand(mlp, x)):
        loss = (y * noise(*y.shape, seed=2)).sum()
        gradients = torch.autograd.grad(loss, [x, *mlp.parameters()], allow_unused=True, materialize_grads=True)
        results.append([y, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


class Layer(Mixer):
    """A whole block as a mixer, each of its parts with a state."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        mixer = directed(registry.factory("gla"), D, causal, {})
        conv = ShortConv(D, width=3, bias=False)
        self.block = Block(D, mixer=mixer, mlp=trained(D, by=0.05).float(), local_conv=conv, dropout=0.0)

    def forward(self, x, state=None, mask=None):
        y, state = self.block(x, state, mask)
        return y, state if self.causal else None


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("causal", [True, False])
def test_conformance(causal, check):
    check(lambda: Layer(causal))


def test_initial_values_learn():
    """conv's gradient comes through W_target at once, W_target's as soon as conv has moved."""
    mlp = InPlaceTTT(6, **VALUES).double()
    x, optimizer = noise(2, 20, 6), torch.optim.SGD(mlp.parameters(), lr=0.1)
    alive = []
    for _ in range(2):
        optimizer.zero_grad()
        mlp(x)[0].square().sum().backward()
        alive.append((bool(mlp.conv.grad.abs().max() > 0), bool(mlp.target.weight.grad.abs().max() > 0)))
        optimizer.step()
    assert alive == [(True, False), (True, True)]


def test_a_change_moves_nothing_before_it_at_the_edges_of_chunks():
    mlp, x = trained(), noise(1, 4 * CHUNK, 6)
    y = mlp(x)[0]
    for edge in range(CHUNK, 4 * CHUNK, CHUNK):
        for t in range(edge - 2, edge + 3):
            other = x.clone()
            other[:, t] += 1
            moved = (mlp(other)[0] - y).abs().amax((0, 2))
            assert (moved[:t] == 0).all() and moved[t] > 0, t
            later = moved[(t // CHUNK + 1) * CHUNK :]
            assert (later > 0).all(), t


def backbone(mlp, n_layers=4, seed=0):
    delta = registry.factory("delta_net")
    return Backbone(
        16,
        n_layers=n_layers,
        pattern=[delta],
        causal=True,
        mlp=mlp,
        local_conv=0,
        dropout=0.0,
        piece=None,
        checkpoint=False,
        seed=seed,
        label="a",
    )


every_other = functools.partial(in_place_ttt, every=2, **VALUES)


def test_every_kth_block_learns_in_place():
    kinds = [type(block.mlp) for block in backbone(every_other).blocks]
    assert kinds == [InPlaceTTT, MLP, InPlaceTTT, MLP]


def test_at_first_the_model_is_the_one_with_plain_mlps():
    x = noise(2, 3 * CHUNK + 1, 16)
    plain, own = backbone(functools.partial(MLP, expand=1.5)).double(), backbone(every_other).double()
    torch.testing.assert_close(own(x)[0], plain(x)[0], rtol=1e-12, atol=1e-12)
    W, _ = own(x)[1][0][2]
    assert torch.equal(W[0].mT, own.blocks[0].mlp.mlp.down.weight)


def test_the_law_holds_for_a_stack():
    net = backbone(every_other).double()
    with torch.no_grad():
        for block in net.blocks[::2]:
            block.mlp.conv.normal_(std=0.3)
            block.mlp.target.weight.normal_(std=0.3)
    x = noise(2, 29, 16)
    whole, last = net(x)
    assert not torch.allclose(last[0][2][0][0].mT, net.blocks[0].mlp.mlp.down.weight)
    for cuts in ([1] * 29, [CHUNK, 21], [CHUNK - 1, 2, 20], [3, 26]):
        pieces, states = [], None
        for piece in x.split(cuts, 1):
            y, states = net(piece, states)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(states, last, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def composed(*overrides):
    """The model of a command line, its MLPs away from their initial values."""
    chosen = ("model/mlp@model.backbone.mlp=in_place_ttt", "model.backbone.mlp.chunk=4", "model.d_model=16")
    with initialize_config_module("conf", version_base="1.3"):
        model = instantiate(compose("train", [*chosen, "label=test", *overrides]).model).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for block in model.backbone.blocks:
            if isinstance(block.mlp, InPlaceTTT):
                block.mlp.conv.normal_(std=0.3)
                block.mlp.target.weight.normal_(std=0.3)
    return model


HYBRID = ("experiment=hybrid", "mixers.a.n_heads=2", "model.backbone.mlp.every=2")
TOKENS = torch.randint(16, (2, 22), generator=torch.Generator().manual_seed(0))


def test_the_config_group_gives_it_to_any_model():
    kinds = [type(block.mlp) for block in composed(*HYBRID).backbone.blocks]
    assert kinds == [InPlaceTTT, MLP, InPlaceTTT, MLP]
    assert [type(block.mlp) for block in composed("mixer=s4d", "task=listops").backbone.blocks] == [InPlaceTTT, MLP]


def test_a_packed_hybrid_forgets_between_documents():
    model = composed(*HYBRID)
    logits, states = model(TOKENS, mask=torch.tensor([[1] * 9 + [2] * 13, [0] * 3 + [3] * 19]))
    for row, start, stop in ((0, 0, 9), (0, 9, 22), (1, 3, 22)):
        alone = model(TOKENS[row : row + 1, start:stop])[0]
        torch.testing.assert_close(logits[row : row + 1, start:stop], alone)
    assert len(states) == 3
    leaking = model(TOKENS)[0][0, 9:]  # and it would show
    assert (leaking - logits[0, 9:]).abs().max() > 1e-3


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_padding_is_invisible_where_the_task_looks_both_ways(batch, left):
    model = composed("mixer=gla", "task=listops", "model.backbone.mlp.every=1")
    tokens, mask = TOKENS[:batch], torch.arange(22).expand(batch, -1) < torch.tensor([[14], [22]])[:batch]
    mask = mask.flip(1) if left else mask
    y = model(tokens, mask=mask)[0]
    torch.testing.assert_close(model(tokens.where(mask, (tokens + 1) % 16), mask=mask)[0], y)
    if not left:  # what pads in front moves the edges of chunks
        torch.testing.assert_close(model(tokens[:1, :14])[0], y[:1])


def test_its_parameters_are_in_the_groups_that_they_belong_to():
    mlp = InPlaceTTT(6, **VALUES)
    decay = {id(p) for p in groups(nn.ModuleList([mlp]))[0]["params"]}
    assert {name for name, p in mlp.named_parameters() if id(p) in decay} == {
        "mlp.up.weight",
        "mlp.down.weight",
        "target.weight",
    }


def test_an_even_convolution_is_refused():
    with pytest.raises(ValueError, match="conv=4 is even"):
        InPlaceTTT(6, **VALUES | {"conv": 4})
