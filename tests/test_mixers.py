"""Every mixer of the registry, in both directions where it has two, against every check; those that only look back,
made to look both ways, against what the second direction could break.
"""

import pytest

from mixers import registry, testing
from mixers.bidirectional import Bidirectional

VARIANTS = {label: make for name in registry.names() for label, make in testing.variants(name)}
BACKWARDS = [testing.check_shape_and_dtype, testing.check_padding, testing.check_every_parameter_learns]


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("label", VARIANTS)
def test_mixer(label, check):
    check(VARIANTS[label])


@pytest.mark.parametrize("check", BACKWARDS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [name for name in registry.names() if registry.directions(name) == [True]])
def test_second_direction(name, check):
    make = VARIANTS[f"{name}-causal"]
    check(lambda: Bidirectional(make(), make()))


def test_directions_are_what_the_mixers_say():
    for label, make in VARIANTS.items():
        assert make().causal == label.endswith("-causal"), label
