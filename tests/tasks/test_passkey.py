"""The pass key, found by a regular expression."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE
from tasks.passkey import FILLER, Passkey, passkey

KEY = re.compile(r"The pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\. ")


@settings(max_examples=60, deadline=None)
@given(st.integers(144, 700), st.integers(0, 2**40))
def test_a_regular_expression_finds_the_key(length, seed):
    tokens, targets = passkey(3, length, seed)
    assert tokens.shape == targets.shape == (3, length)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        text = bytes(row).decode()
        ((once, twice),) = KEY.findall(text)
        assert wanted == [IGNORE] * (length - 5) + [ord(digit) for digit in once] and once == twice
        assert text.endswith(f"What is the pass key? The pass key is {once[:4]}")
        filler = KEY.sub("", text).split("What is")[0]
        assert filler in (FILLER * 9).decode()  # unbroken, but for the key


def test_golden():
    tokens, targets = passkey(2, 180, seed=1)
    assert bytes(tokens[0].tolist()) == (
        b"e sky The pass key is 08814. Remember it. 08814 is the pass key. is blue. The sun is yellow. Here we go. "
        b"There and back again. The grass iWhat is the pass key? The pass key is 0881"
    )
    assert bytes(targets[0, -5:].tolist()) == b"08814"


def test_keys_lie_anywhere():
    tokens, _ = passkey(2000, 400, seed=0)
    places = [bytes(row).index(b"The pass key is") / (401 - 59 - 43) for row in tokens.tolist()]
    assert min(places) < 0.01 and max(places) > 0.99 and sum(places) / 2000 == pytest.approx(0.5, abs=0.02)


def test_baselines():
    size = [{"length": 200, "n": 2000}]
    task = Passkey(train=size, validation=size, test=size, seed=0, order_seed=0, batch_size=2)
    scores = task.baselines()
    assert scores["chance"] == 0.1 and scores["the most frequent answer"] == pytest.approx(0.1, abs=0.02)
    assert scores["a digit in sight"] == pytest.approx(1 / 5 + 4 / 5 / 10, abs=0.01)


def test_what_does_not_fit_is_said():
    least = passkey(1, 101, 0)[0]
    assert len(least[0]) == 101
    with pytest.raises(ValueError, match="length=100 has no room for a key and its question: make it 101 or more"):
        passkey(1, 100, 0)
