"""Copying, selective copying and induction against solvers that read an example as a person would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE
from tasks.copying import Copying, copying
from tasks.induction import Induction, induction
from tasks.selective_copying import SelectiveCopying, selective_copying

I = IGNORE
SEEDS = st.integers(0, 2**40)
COMMON = {"seed": 0, "order_seed": 0, "batch_size": 2}


def same(size):
    return {"train": [size], "validation": [size], "test": [size]}


def test_golden():
    tokens, targets = copying(1, 9, 3, 6, seed=1)
    assert tokens.tolist() == [[0, 3, 3, 4, 4, 5, 4, 4, 4]]
    assert targets.tolist() == [[I, I, I, I, I, I, 0, 3, 3]]
    tokens, targets = selective_copying(1, 12, 3, 8, seed=1)
    assert tokens.tolist() == [[0, 0, 0, 0, 1, 5, 0, 6, 0, 7, 7, 7]]
    assert targets.tolist() == [[I, I, I, I, I, I, I, I, I, 1, 5, 6]]
    tokens, targets = induction(1, 8, 6, seed=1)
    assert tokens.tolist() == [[0, 4, 4, 0, 5, 1, 0, 5]]
    assert targets.tolist() == [[I, I, I, I, I, I, I, 1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(4, 40), SEEDS)
def test_a_copy_follows_the_signal(copied, delay, vocabulary, seed):
    tokens, targets = copying(3, 2 * copied + delay, copied, vocabulary, seed)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        signal = row.index(vocabulary - 1)
        symbols = [token for token in row if token < vocabulary - 2]
        assert row == symbols + [vocabulary - 2] * (delay - 1) + [vocabulary - 1] + [vocabulary - 2] * copied
        assert wanted == [IGNORE] * (signal + 1) + symbols


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(4, 40), SEEDS)
def test_what_is_no_blank_is_copied(copied, blanks, vocabulary, seed):
    tokens, targets = selective_copying(3, 2 * copied + blanks, copied, vocabulary, seed)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        symbols = [token for token in row if 0 < token < vocabulary - 1]
        assert len(symbols) == copied and row[-copied:] == [vocabulary - 1] * copied
        assert wanted == [IGNORE] * (copied + blanks) + symbols


def test_symbols_lie_anywhere():
    tokens, _ = selective_copying(4000, 12, 2, 4, seed=0)
    share = (tokens[:, :10] != 0).double().mean(0)
    assert share.sum() == pytest.approx(2) and (share - 0.2).abs().max() < 0.03


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 60), st.integers(3, 40), SEEDS)
def test_what_followed_the_special_token_is_asked_for(length, vocabulary, seed):
    tokens, targets = induction(3, length, vocabulary, seed)
    assert 0 <= tokens.min() and tokens.max() == vocabulary - 1
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        assert row.count(vocabulary - 1) == 2 and row[-1] == vocabulary - 1
        assert wanted == [IGNORE] * (length - 1) + [row[row.index(vocabulary - 1) + 1]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: copying(1, 8, 4, 10, 0), "length=8 has no room for 4 symbols, the signal and the copy: make it 9"),
        (lambda: copying(1, 8, 0, 10, 0), "copied=0 is too small: make it 1 or more"),
        (lambda: copying(1, 8, 2, 3, 0), "vocabulary=3 is too small: make it 4 or more"),
        (lambda: selective_copying(1, 7, 4, 10, 0), "length=7 has no room for 4 symbols and their copy: make it 8"),
        (lambda: induction(1, 2, 16, 0), "length=2 is too small: make it 3 or more"),
        (lambda: induction(1, 8, 2, 0), "vocabulary=2 is too small: make it 3 or more"),
        (
            lambda: Induction(vocabulary=16, **COMMON, **same({"length": 8, "n": 0})).hashes(),
            "n=0 at length 8: ask for 1 example or more, or leave this size out",
        ),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == words


def test_baselines():
    task = Copying(vocabulary=10, **COMMON, **same({"length": 48, "copied": 8, "n": 500}))
    found = task.baselines()
    assert found["chance"] == 1 / 8
    assert found["the first symbol"] == pytest.approx(1 / 8 + 7 / 64, abs=0.03)
    task = SelectiveCopying(vocabulary=10, **COMMON, **same({"length": 48, "copied": 8, "n": 500}))
    assert task.baselines()["the last symbol"] == pytest.approx(1 / 8 + 7 / 64, abs=0.03)
    task = Induction(vocabulary=4, **COMMON, **same({"length": 3, "n": 500}))
    # a length of three is special, answer, special: no guess about the example but the answer's neighbour is any good
    assert task.baselines()["the token before"] == 1 and task.baselines()["chance"] == 1 / 3
    assert task.segments("test")[0].values == {"length": 3} and task.segments("test")[0].name == "length 3"
