"""With the right ingredients and copied weights, recipe is the named mixer: the same numbers, gradients included."""

import pytest
import torch
from plain import HEADS, D, make

from mixers import registry

WIDTH = D // HEADS


def recipe(**knobs):
    torch.manual_seed(1)
    return registry.build("recipe", D, **{"d_key": WIDTH, "d_value": WIDTH} | knobs).double()


def copied(target, **sources):
    """target, its parameters those given: a tensor, or several to be put below each other."""
    parameters = dict(target.named_parameters())
    assert parameters.keys() == {name.replace("__", ".") for name in sources}, "a parameter was not copied"
    with torch.no_grad():
        for name, source in sources.items():
            parts = source if isinstance(source, tuple) else (source,)
            parameters[name.replace("__", ".")].copy_(torch.cat(parts))
    return target


def linear_attention():
    named = make("linear_attention")
    twin = recipe(feature_map="elu1", normalise=True)
    return named, copied(twin, qkv__weight=named.qkv.weight, out__weight=named.out.weight)


def retnet():
    named = make("retnet")
    twin = recipe(d_value=2 * WIDTH, decay="constant", rotate=True, gate=True)
    weights = dict(qkv__weight=(named.qk.weight, named.v.weight), gate__weight=named.gate.weight)
    return named, copied(twin, **weights, norm__weight=torch.ones(2 * WIDTH), out__weight=named.out.weight)


def gla():
    named = make("gla")
    twin = recipe(d_key=WIDTH // 2, decay="channel", gate=True)
    forget = {f"forget__{key.replace('.', '__')}": p for key, p in named.forget.named_parameters()}
    weights = dict(qkv__weight=(named.qk.weight, named.v.weight), gate__weight=named.gate.weight, **forget)
    return named, copied(twin, **weights, norm__weight=named.norm.weight, out__weight=named.out.weight)


def delta_net():
    named = make("delta_net")
    twin = recipe(write="delta", conv=4)
    return named, copied(twin, **{name.replace(".", "__"): p for name, p in named.named_parameters()})


def gated_delta_net():
    named = make("gated_delta_net")
    twin = recipe(
        d_key=D * 3 // 4 // HEADS, d_value=D * 3 // 2 // HEADS, write="delta", decay="scalar", conv=4, gate=True
    )
    weights = {name.replace(".", "__"): p for name, p in named.named_parameters()}
    beta, a = weights.pop("beta_a__weight").chunk(2)
    return named, copied(twin, **weights, beta__weight=beta, forget__weight=a)


@pytest.mark.parametrize("pair", [linear_attention, retnet, gla, delta_net, gated_delta_net])
def test_recipe_is_the_named_mixer(pair):
    named, twin = pair()
    x = torch.randn(2, 70, D, dtype=torch.float64, requires_grad=True)
    results = []
    for mixer in (named, twin):
        y, _ = mixer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, mixer.out.weight))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        (dict(decay="fast"), "decay is 'fast': it must be one of none, constant, scalar, channel"),
        (dict(write="max"), "write is 'max'"),
        (dict(feature_map="tanh"), "unknown feature map 'tanh'"),
        (dict(normalise=True), "choose a positive map"),
        (dict(normalise=True, feature_map="elu1", write="delta"), "choose a positive map and write=sum"),
        (dict(normalise=True, feature_map="elu1", rotate=True), "rotate=true makes weights negative"),
        (dict(feature_map="exp"), "needs a common factor taken out"),
    ],
)
def test_what_does_not_go_together(knobs, words):
    with pytest.raises(ValueError, match=words.replace("(", "\\(")):
        recipe(**knobs)
