"""Direction, patterns, seeding, and the law of a whole stack."""

import functools

import pytest
import torch
from torch import nn

from compare.speed import LiveBytes
from mixers.base import Mixer
from mixers.bidirectional import Bidirectional
from models.backbone import Backbone, LooksAhead, directed, seeded
from models.mlp import MLP
from models.model import Model


class Cumulative(Mixer):
    """A running sum of a linear map: causal, with a state. Draws `draws` numbers more than it needs."""

    def __init__(self, d_model, *, draws=0, layer=0, n_layers=1):
        super().__init__()
        torch.randn(draws)
        self.place = (layer, n_layers)
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x, state=None, mask=None):
        y = self.map(x).cumsum(1) + (0 if state is None else state[:, None])
        return y, y[:, -1]


class Mean(Mixer):
    causal = False

    def __init__(self, d_model):
        super().__init__()

    def forward(self, x, state=None, mask=None):
        return x.mean(1, keepdim=True).expand_as(x), None


def backbone(pattern=(Cumulative,), n_layers=2, causal=True, seed=0, label="a", local_conv=0, dropout=0.0, **more):
    return Backbone(
        8,
        n_layers=n_layers,
        pattern=list(pattern),
        causal=causal,
        mlp=functools.partial(MLP, expand=2.0),
        local_conv=local_conv,
        dropout=dropout,
        **{"piece": None, "checkpoint": False} | more,
        seed=seed,
        label=label,
    )


def packable(d_model, *, local_conv, seed, label):
    return backbone(local_conv=local_conv, seed=seed, label=label)


def test_direction():
    assert type(directed(Cumulative, 8, True, {})) is Cumulative
    assert type(directed(Cumulative, 8, False, {})) is Bidirectional
    assert type(directed(Mean, 8, False, {})) is Mean
    with pytest.raises(LooksAhead, match="Mean looks ahead and the task is causal"):
        directed(Mean, 8, True, {})


def test_pattern_is_tiled_and_place_is_filled_in():
    net = backbone([Cumulative, functools.partial(Cumulative, draws=3)], n_layers=4)
    assert [block.mixer.place for block in net.blocks] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    with pytest.raises(ValueError, match="n_layers=3 is not a multiple"):
        backbone([Cumulative, Cumulative], n_layers=3)


@pytest.mark.parametrize("local_conv", [0, 4])
def test_the_law_holds_for_a_stack(local_conv):
    torch.manual_seed(0)
    net = backbone(local_conv=local_conv).double()
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    whole, last = net(x)
    for cuts in ([11], [1] * 11, [4, 7], [1, 8, 2]):
        pieces, states = [], None
        for piece in x.split(cuts, 1):
            y, states = net(piece, states)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(states, last, strict=True):
            torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("piece", [None, 1, 4, 11])
def test_pieces_and_checkpoints_change_no_number(piece, checkpoint):
    def computed(**how):
        torch.manual_seed(0)
        net = backbone(local_conv=3, **how).double()
        x = torch.randn(2, 11, 8, dtype=torch.float64, requires_grad=True)
        y, states = net(x, net(x[:, :2])[1], torch.arange(11) != torch.tensor([[5], [9]]))
        loss = (y * torch.randn_like(y)).sum() + sum(state[1].square().sum() for state in states)
        return y, [state[1] for state in states], torch.autograd.grad(loss, [x, *net.parameters()])

    ours, theirs = computed(piece=piece, checkpoint=checkpoint), computed()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_dropout_is_the_same_when_blocks_are_computed_again():
    net = backbone(dropout=0.5)
    x = torch.randn(1, 6, 8)

    def gradients(checkpoint):
        net.checkpoint = checkpoint
        torch.manual_seed(1)
        return torch.autograd.grad(net(x)[0].square().sum(), list(net.parameters()))

    torch.testing.assert_close(gradients(True), gradients(False))


def test_pieces_with_checkpoints_hold_less():
    def peak(**how):
        net, x = backbone(n_layers=4, **how), torch.randn(1, 512, 8)
        with LiveBytes([x]) as live:
            net(x)[0].sum().backward()
        return live.peak

    whole, lean = peak(), peak(piece=32, checkpoint=True)
    assert lean < whole / 3


def test_states_between_pieces_keep_nothing_else_alive():
    _, states = backbone(local_conv=3, piece=4)(torch.randn(1, 12, 8))
    for tensor in (t for conv, mixer, _ in states for t in (conv, mixer)):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_pieces_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="piece is 0: choose at least 1"):
        backbone(piece=0)
    with pytest.raises(ValueError, match="piece is 4: the task looks both ways"):
        backbone(piece=4, causal=False)


def test_the_state_that_comes_back_is_the_new_one_in_hybrids_too():
    net = backbone([Cumulative, functools.partial(Cumulative, draws=1)])
    _, first = net(torch.randn(1, 3, 8))
    _, second = net(torch.randn(1, 3, 8), first)
    for before, after in zip(first, second, strict=True):
        assert not torch.equal(before[1], after[1])


def test_initial_values_depend_on_nothing_but_seed_label_and_path():
    def values(net):
        return {name: p.detach().clone() for name, p in net.named_parameters()}

    one, more = values(backbone()), values(backbone([functools.partial(Cumulative, draws=100)]))
    other, reseeded = values(backbone(label="b")), values(backbone(seed=1))
    for name, value in one.items():
        shared = "mixer.map" not in name
        # a mixer that draws more leaves the rest of the model as it was
        assert torch.equal(value, more[name]) == shared
        # another label moves the mixers only, another seed moves everything that is random
        assert torch.equal(value, other[name]) == shared
        assert torch.equal(value, reseeded[name]) == ("norm" in name)


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    with seeded("anything"):
        torch.randn(10)
    assert torch.equal(torch.randn(4), expected)


def model(pool, causal=False, n_outputs=5):
    factory = functools.partial(
        Backbone,
        n_layers=1,
        pattern=[Cumulative],
        causal=causal,
        mlp=functools.partial(MLP, expand=2.0),
        dropout=0.0,
        piece=None,
        checkpoint=False,
    )
    return Model(
        d_model=8, n_inputs=7, n_outputs=n_outputs, pool=pool, backbone=factory, local_conv=4, seed=0, label="a"
    )


def test_heads():
    tokens = torch.randint(7, (3, 6))
    assert model("none")(tokens)[0].shape == (3, 6, 5)
    assert model("mean")(tokens)[0].shape == (3, 5)
    assert model("pair")(torch.randint(7, (3, 2, 6)))[0].shape == (3, 5)
    at = torch.rand(3, 6) < 0.5
    net = model("none", causal=True)
    torch.testing.assert_close(net(tokens, at=at)[0], net(tokens)[0][at])
    with pytest.raises(ValueError, match="task.pool is 'max'"):
        model("max")


@pytest.mark.parametrize("pool", ["mean", "pair"])
@pytest.mark.parametrize("batch", [1, 3])
def test_padding_is_invisible(pool, batch):
    torch.manual_seed(0)
    net = model(pool)
    shape = (batch, 2, 9) if pool == "pair" else (batch, 9)
    tokens, mask = torch.randint(7, shape), torch.ones(shape, dtype=torch.bool)
    mask[..., 6:] = False
    other = torch.where(mask, tokens, (tokens + 1) % 7)
    torch.testing.assert_close(net(tokens, mask=mask)[0], net(other, mask=mask)[0])
    assert not torch.allclose(net(tokens)[0], net(other)[0])


def test_pairs_share_one_encoder():
    net = model("pair")
    a, b = torch.randint(7, (2, 4, 6)).unbind(0)
    same = net(torch.stack([a, a], 1))[0]
    zero_difference = net.encode(a)[0].mean(1)
    expected = net.head(torch.cat([zero_difference, zero_difference, zero_difference**2, 0 * zero_difference], -1))
    torch.testing.assert_close(same, expected)
    assert not torch.allclose(net(torch.stack([a, b], 1))[0], same)


def test_packed_documents_do_not_see_each_other():
    model = Model(
        d_model=8, n_inputs=9, n_outputs=9, pool="none", backbone=packable, local_conv=3, seed=0, label="a"
    ).double()
    tokens = torch.randint(9, (2, 12), generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([[1] * 5 + [2] * 7, [3] * 12])
    logits, states = model(tokens, mask=numbers)
    torch.testing.assert_close(logits[:1, :5], model(tokens[:1, :5])[0])
    torch.testing.assert_close(logits[:1, 5:], model(tokens[:1, 5:])[0])
    torch.testing.assert_close(logits[1:], model(tokens[1:])[0])
    assert len(states) == 3
