"""ListOps against an evaluator that was written apart from it, and against the Arena's statistics."""

import statistics
import time
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.listops import CLOSE, OPERATORS, PAD, WORDS, ListOps, listops, partial_value, value_of

RULES = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}


OPENING = range(10, CLOSE)


def evaluate(words):
    """By recursive descent over the printed words, which it consumes."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    values = []
    while words[0] != "]":
        values.append(evaluate(words))
    words.pop(0)
    return RULES[word](values)


def printed(text):
    return [WORDS[token] for token in text]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([(3, 12), (3, 200), (100, 700), (500, 2000)]), st.booleans())
def test_values_are_what_the_expressions_say(seed, bounds, balanced):
    for text, value in listops(30, *bounds, balanced=balanced, seed=seed, taken=set()):
        words = printed(text)
        assert evaluate(words) == value and not words
        assert partial_value(text, depth=10) == value


@given(st.integers(0, 3), st.lists(st.integers(0, 9), min_size=1, max_size=10))
def test_operators(operator, children):
    assert value_of(operator, children) == RULES[f"[{OPERATORS[operator]}"](children)


def test_golden():
    words = "[MAX 2 9 [MIN 4 7 ] 0 ]".split()
    text = bytes(WORDS.index(word) for word in words)
    assert partial_value(text, 10) == 9 and text[-1] == CLOSE
    nested = bytes(WORDS.index(word) for word in "[SM 1 [MAX 2 [MIN 9 8 ] ] 3 ]".split())
    assert [partial_value(nested, depth) for depth in (0, 1, 2)] == [4, 6, 2]
    for seed, words, wanted in ((10, "[MED [MED 7 7 1 4 6 5 ] 8 ]", 6), (6, "[SM [SM 6 7 7 8 ] 0 7 1 8 ]", 4)):
        text, value = listops(1, 8, 18, balanced=False, seed=seed, taken=set())[0]
        assert " ".join(printed(text)) == words and value == wanted


def test_a_tree_depends_on_its_number_alone(monkeypatch):
    """However many come after it, and however many are grown at once."""
    made = listops(60, 20, 300, balanced=False, seed=2, taken=set())
    monkeypatch.setattr("tasks.listops.BLOCK", 500)
    assert listops(25, 20, 300, balanced=False, seed=2, taken=set()) == made[:25]
    assert not {text for text, _ in made} & {text for text, _ in listops(60, 20, 300, False, seed=3, taken=set())}


def test_bounds_are_exclusive_and_trees_are_unique():
    made = listops(400, 4, 10, balanced=False, seed=3, taken=set())
    assert {len(text) for text, _ in made} <= {5, 6, 7, 8, 9} and len({text for text, _ in made}) == 400
    with pytest.raises(ValueError, match="widen the bounds"):
        listops(1, 10, 11, balanced=False, seed=0, taken=set())


def test_padding_and_slices():
    common = {"balanced": False, "seed": 0, "order_seed": 0, "batch_size": 4}
    task = ListOps(min_length=4, max_length=44, train=50, validation=20, test=400, **common)
    (train,) = task.segments("train")
    assert train.tokens.shape == (50, 44) and (train.tokens == PAD).equal(~train.mask)
    slices = task.segments("test")
    assert [s.name for s in slices] == [
        "length 5 to 14",
        "length 15 to 24",
        "length 25 to 34",
        "length 35 to 43",
    ]
    assert sum(map(len, slices)) == 400
    for segment, low in zip(slices, (4, 14, 24, 34), strict=True):
        lengths = segment.mask.sum(1)
        assert low < lengths.min() and lengths.max() <= low + 10


def test_the_arenas_statistics():
    """Lengths 539/717/982/1334/1819 at p5/25/50/75/95, depth 10, about 150 operators; 17 % of the values are 0 and 17 %
    are 9; majority 17 %, root operator 36 %, operators to depth 1 48.5 %, 2 68 %, 3 80 %.
    """
    common = {"balanced": False, "seed": 0, "order_seed": 0, "batch_size": 4}
    task = ListOps(min_length=500, max_length=2000, train=3000, validation=10, test=1500, **common)
    texts, values = zip(*task.trees("train"), strict=True)
    lengths = statistics.quantiles(map(len, texts), n=20)
    assert [lengths[i] for i in (0, 4, 9, 14, 18)] == pytest.approx([539, 717, 982, 1334, 1819], rel=0.05)
    depths = [max(accumulate((token in OPENING) - (token == CLOSE) for token in text)) for text in texts[:200]]
    assert set(depths) <= {8, 9} and depths.count(9) > 190  # operators above the digits: nodes are to depth 10
    operators = [sum(token in OPENING for token in text) for text in texts[:200]]
    assert statistics.mean(operators) == pytest.approx(150, rel=0.1)
    shares = [values.count(value) / len(values) for value in range(10)]
    assert shares[0] == pytest.approx(0.17, abs=0.02) and shares[9] == pytest.approx(0.174, abs=0.02)
    assert all(0.06 < share < 0.105 for share in shares[1:9])
    scores = task.baselines()
    assert scores["majority"] == pytest.approx(0.172, abs=0.025)
    assert scores["root operator"] == pytest.approx(0.361, abs=0.03)
    assert scores["operators to depth 1"] == pytest.approx(0.485, abs=0.03)
    assert scores["operators to depth 2"] == pytest.approx(0.680, abs=0.03)
    assert scores["operators to depth 3"] == pytest.approx(0.802, abs=0.03)


def test_a_balanced_forest_has_as_many_trees_of_each_value(monkeypatch, tmp_path):
    sizes = {"train": 200, "validation": 20, "test": 103}
    task = ListOps(min_length=4, max_length=60, balanced=True, **sizes, seed=0, order_seed=0, batch_size=4)
    counts = [Counter(value for _, value in task.trees(split)) for split in ("train", "validation", "test")]
    assert counts[0] == dict.fromkeys(range(10), 20) and counts[1] == dict.fromkeys(range(10), 2)
    assert sorted(counts[2].values()) == [10] * 7 + [11] * 3
    assert all(evaluate(printed(text)) == value for text, value in task.trees("test"))
    assert task.baselines()["majority"] <= 11 / 103 and task.overlap() == {"validation": 0, "test": 0}
    monkeypatch.setenv("SEQMIX_CACHE", str(tmp_path))
    for _ in range(2):  # as it is made, and as it is kept
        kept = ListOps(min_length=4, max_length=60, balanced=True, **sizes, seed=0, order_seed=0, batch_size=4)
        assert kept.hashes() == task.hashes() and kept.trees("train") == task.trees("train")
    assert len(list(tmp_path.iterdir())) == 1


def test_more_trees_than_there_are_is_said(monkeypatch):
    monkeypatch.setattr("tasks.listops.PATIENCE", 3000)
    with pytest.raises(ValueError, match="there are too few trees of 3 to 5 tokens: widen the bounds"):
        listops(500, 3, 5, balanced=False, seed=0, taken=set())


def test_a_hundred_thousand_trees_take_less_than_two_minutes():
    listops(20, 500, 2000, balanced=False, seed=1, taken=set())
    start = time.process_time()
    listops(1000, 500, 2000, balanced=False, seed=0, taken=set())
    assert (time.process_time() - start) / 1000 * 100_000 < 120  # measured: 20
