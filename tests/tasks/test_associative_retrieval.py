"""Associative retrieval, both settings, against a dictionary that is written to pair by pair."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.associative_retrieval import AssociativeRetrieval, associative_retrieval
from tasks.base import IGNORE

COMMON = {"seed": 0, "order_seed": 0, "batch_size": 2}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 20), st.booleans(), st.integers(0, 2**40))
def test_a_dictionary_answers_every_question(keys, more, questions, replace, seed):
    vocabulary, questions = 2 * (keys + more), min(keys, questions)
    tokens, targets = associative_retrieval(4, keys, questions, vocabulary, replace, seed)
    assert tokens.shape == targets.shape == (4, 2 * keys * (1 + replace) + questions)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        memory = dict(zip(row[0:-questions:2], row[1:-questions:2], strict=True))  # the latest value of each key
        asked = row[-questions:]
        assert wanted == [IGNORE] * (len(row) - questions) + [memory.get(key, IGNORE) for key in asked]
        assert len(set(asked)) == questions and sum(key in memory for key in asked) == min(questions, len(memory))
        assert max(memory) < vocabulary // 2 <= min(row[1:-questions:2])
        assert len(memory) <= keys and (replace or len(memory) == len(set(memory.values())) == keys)


def test_golden():
    tokens, targets = associative_retrieval(1, 4, 1, 12, False, seed=1)
    assert tokens.tolist() == [[2, 7, 1, 10, 4, 8, 5, 9, 4]]
    assert targets.tolist() == [[IGNORE] * 8 + [8]]
    # 4 becomes 9, then 6
    tokens, targets = associative_retrieval(1, 4, 1, 12, True, seed=1)
    assert tokens.tolist() == [[2, 7, 5, 9, 4, 9, 4, 6, 5, 8, 1, 9, 1, 9, 2, 6, 4]]
    assert targets.tolist() == [[IGNORE] * 16 + [6]]


def test_draws_are_the_papers():
    """With replacement about 1 - e^-2 of the keys are written; whichever they are, each is asked for as often."""
    tokens, _ = associative_retrieval(3000, 50, 1, 100, True, seed=0)
    written = [len(set(row)) / 50 for row in tokens[:, 0:-1:2].tolist()]
    assert sum(written) / 3000 == pytest.approx(1 - (1 - 1 / 50) ** 100, abs=0.005)
    asked = Counter(tokens[:, -1].tolist())
    assert len(asked) == 50 and max(asked.values()) < 100 and min(asked.values()) > 30
    once = [row[:-1:2].count(row[-1]) == 1 for row in tokens.tolist()]
    # a written key is asked for however often it was written: P(once | at least once) of a binomial
    p = 100 * (1 / 50) * (1 - 1 / 50) ** 99 / (1 - (1 - 1 / 50) ** 100)
    assert sum(once) / 3000 == pytest.approx(p, abs=0.03)


def test_baselines():
    def scores(replace):
        sizes = {
            "train": [{"keys": 8, "n": 10}],
            "validation": [{"keys": 8, "n": 10}],
            "test": [{"keys": 8, "n": 4000}],
        }
        return AssociativeRetrieval(vocabulary=64, questions=2, replace=replace, **sizes, **COMMON).baselines()

    once, again = scores(False), scores(True)
    assert once["chance"] == again["chance"] == 1 / 32
    assert once["a value in sight"] == pytest.approx(1 / 8)
    assert once["the last value"] == pytest.approx(1 / 8, abs=0.02)
    assert list(again) == [*once, "a value of the key"]
    assert 0.55 < again["a value of the key"] < 0.75  # about two values a key


@pytest.mark.parametrize(
    ("keys", "questions", "words"),
    [
        (0, 1, "keys=0 is too small"),
        (4, 0, "questions=0 is too small"),
        (9, 1, "raise vocabulary=16 to 18"),
        (4, 5, "questions=5 are more than keys=4: ask for fewer"),
    ],
)
def test_what_does_not_fit_is_said(keys, questions, words):
    with pytest.raises(ValueError, match=words):
        associative_retrieval(1, keys, questions, 16, False, 0)
