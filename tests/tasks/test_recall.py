"""Recall against a solver that was written apart from it, and against the law of its distances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE
from tasks.recall import POWER, Recall, recall

GOLDEN = (
    [[3, 8, 2, 11, 5, 9, 3, 5, 2, 5, 7, 10, 5, 1, 10, 0]],
    [[-100, -100, -100, -100, -100, -100, 8, -100, 11, -100, -100, -100, 9, -100, -100, -100]],
)


def solve(row, pairs):
    """{place: answer} by reading the pairs, and then every second token behind them, as a person would."""
    memory = {row[2 * i]: row[2 * i + 1] for i in range(pairs)}
    return memory, {t: memory[row[t]] for t in range(2 * pairs, len(row), 2) if row[t] in memory}


@st.composite
def sizes(draw):
    pairs = draw(st.integers(1, 12))
    length = draw(st.integers(4 * pairs, 4 * pairs + 40))
    return length, pairs, draw(st.integers(2 * pairs + 4, 200)), draw(st.integers(0, 2**40))


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_every_question_has_the_answer_that_was_written(size):
    length, pairs, vocabulary, seed = size
    tokens, targets = recall(3, length, pairs, vocabulary, seed)
    assert tokens.shape == targets.shape == (3, length)
    assert 0 <= tokens.min() and tokens.max() < vocabulary
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        memory, answers = solve(row, pairs)
        asked = {t: target for t, target in enumerate(wanted) if target != IGNORE}
        assert len(memory) == len(set(memory.values())) == pairs  # no key and no value twice
        assert max(memory) < vocabulary // 2 <= min(memory.values())
        assert sorted(row[t] for t in asked) == sorted(memory)  # each key is asked for once
        assert asked.items() <= answers.items()


def test_golden():
    tokens, targets = recall(1, 16, 3, 16, seed=1)
    assert tokens.tolist() == GOLDEN[0]
    assert targets.tolist() == GOLDEN[1]


def test_distances_follow_the_power_law():
    tokens, targets = recall(40000, 18, 1, 8, seed=0)
    gaps = (targets != IGNORE).int().argmax(1) // 2  # 1 ... 8
    weight = torch.arange(1, 9).double() ** (POWER - 1)
    seen = torch.bincount(gaps, minlength=9)[1:].double() / 40000
    torch.testing.assert_close(seen, weight / weight.sum(), atol=0.01, rtol=0)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="length=15 has no room for 4 pairs and their questions: make it 16"):
        recall(1, 15, 4, 64, 0)
    with pytest.raises(ValueError, match="pairs=8 need as many keys"):
        recall(1, 64, 8, 16, 0)


def test_baselines():
    size = {"length": 16, "n": 4}
    splits = {"train": [size | {"pairs": 2}], "validation": [size | {"pairs": 2}]}
    task = Recall(
        key_length=1,
        rewritten=0.0,
        vocabulary=32,
        seed=0,
        order_seed=0,
        batch_size=2,
        **splits,
        test=[size | {"pairs": 2}, size | {"pairs": 4}],
    )
    assert task.baselines() == {"chance": 1 / 16, "a value in sight": (4 + 4) / (4 * 2 + 4 * 4)}
    assert [s.name for s in task.segments("test")] == ["length 16, 2 pairs", "length 16, 4 pairs"]


@settings(max_examples=60, deadline=None)
@given(sizes(), st.integers(1, 3), st.integers(0, 12))
def test_variants_have_the_answers_of_a_dictionary(size, key_length, rewritten):
    length, pairs, vocabulary, seed = size
    rewritten, stride = min(rewritten, pairs), key_length + 1
    writes, half = pairs + rewritten, (vocabulary + 2 * rewritten) // 2
    length = max(length, stride * (writes + pairs))
    tokens, targets = recall(3, length, pairs, 2 * half, seed, key_length, rewritten)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        memory, written = {}, []
        for t in range(0, stride * writes, stride):
            key = tuple(row[t : t + key_length])
            memory[key] = row[t + key_length]  # what was there is forgotten
            written.append(key)
        assert len(memory) == pairs and sorted(written.count(key) for key in memory)[::-1] == (
            [2] * rewritten + [1] * (pairs - rewritten)
        )
        asked = {tuple(row[t - key_length + 1 : t + 1]): goal for t, goal in enumerate(wanted) if goal != IGNORE}
        assert asked == memory and 0 < min(map(min, memory)) and max(map(max, memory)) < half <= min(memory.values())


def test_one_token_of_a_compositional_key_does_not_say_the_value():
    tokens, _ = recall(200, 256, 16, 64, seed=0, key_length=2)
    for row in tokens[:, :48].tolist():
        firsts, seconds = row[0::3], row[1::3]
        assert len(set(firsts)) <= 6 and len(set(seconds)) <= 6 and len(set(zip(firsts, seconds, strict=True))) == 16


def test_golden_variants():
    # 2 1 is 9; 1 2 is 10, then 11
    tokens, targets = recall(1, 18, 2, 12, 1, key_length=2, rewritten=1)
    assert tokens.tolist() == [[2, 1, 9, 1, 2, 10, 1, 2, 11, 1, 2, 1, 2, 1, 3, 5, 8, 7]]
    assert targets.tolist() == [[IGNORE] * 10 + [11, IGNORE, IGNORE, 9] + [IGNORE] * 4]


def test_variants_have_baselines_and_bounds():
    size = [{"length": 64, "pairs": 4, "n": 5}]
    splits = {"train": size, "validation": size, "test": size}
    task = Recall(vocabulary=64, key_length=2, rewritten=0.5, seed=0, order_seed=0, batch_size=2, **splits)
    expected = {"chance": 1 / 32, "a value in sight": 1 / 6, "the key's first value": 0.5}
    assert task.baselines() == pytest.approx(expected)
    with pytest.raises(ValueError, match="key_length=0 must be 1 or more, and rewritten=0 at most pairs=2"):
        recall(1, 64, 2, 64, 0, key_length=0)
    with pytest.raises(ValueError, match="rewritten=3 at most pairs=2"):
        recall(1, 64, 2, 64, 0, rewritten=3)
    with pytest.raises(ValueError, match="length=20 has no room for 4 pairs and their questions: make it 24"):
        recall(1, 20, 4, 64, 0, key_length=2)
