"""Every mixer of the registry, in both directions where it has two, against every check; those that only look back,
made to look both ways, against what the second direction could break."""

import pytest

from mixers import registry, testing
from mixers.bidirectional import Bidirectional


def factories():
    for name in registry.names():
        knobs = registry.knobs(name, causal=True, length=256, max_length=256)
        directions = [True, False] if "causal" in knobs else [True]
        for causal in directions:
            make = registry.factory(name, causal=causal, **testing.small(knobs))
            way = ("causal" if causal else "bidirectional") if len(directions) == 2 else "only"
            yield pytest.param(make, id=f"{name}-{way}")


FACTORIES = list(factories())
BACKWARDS = [testing.check_shape_and_dtype, testing.check_padding, testing.check_every_parameter_learns]


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", FACTORIES)
def test_mixer(make, check):
    check(lambda: make(testing.D))


@pytest.mark.parametrize("check", BACKWARDS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [f for f in FACTORIES if f.values[0](testing.D).causal and "only" in f.id])
def test_both_ways(make, check):
    check(lambda: Bidirectional(make(testing.D), make(testing.D)))
