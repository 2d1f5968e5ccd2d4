"""MAD's tasks against solvers that read an example from left to right with a dictionary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE, SPLITS
from tasks.compression import Compression, compression
from tasks.fuzzy_recall import FuzzyRecall, first_alike, fuzzy_recall
from tasks.in_context_recall import InContextRecall, in_context_recall
from tasks.memorization import Memorization, memorization
from tasks.noisy_recall import NoisyRecall, noisy_recall

I = IGNORE
SEEDS = st.integers(0, 2**40)
COMMON = {"seed": 0, "order_seed": 0, "batch_size": 2}


def same(size):
    return {"train": [size], "validation": [size], "test": [size]}


def rows(example):
    tokens, targets = example
    assert tokens.shape == targets.shape and tokens.dtype == targets.dtype == torch.int64
    return zip(tokens.tolist(), targets.tolist(), strict=True)


def test_golden():
    tokens, targets = in_context_recall(1, 12, 8, seed=2)
    assert tokens.tolist() == [[2, 7, 3, 4, 1, 6, 1, 6, 2, 7, 2, 7]]
    assert targets.tolist() == [[I, I, I, I, I, I, 6, I, 7, I, 7, I]]
    tokens, targets = noisy_recall(1, 16, 10, 4, 0.5, seed=3)
    assert tokens.tolist() == [[1, 3, 1, 3, 0, 3, 6, 7, 1, 3, 2, 3, 8, 9, 1, 3]]
    assert targets.tolist() == [[I, I, 3, I, I, I, I, I, 3, I, I, I, I, I, 3, I]]
    # 1 is 33, 11 is 3, 1 is 33 again, 00 is 566, 120 is 634
    tokens, targets = fuzzy_recall(2, 20, 3, 8, seed=3)
    assert tokens[0].tolist() == [1, 3, 3, 1, 1, 3, 1, 3, 3, 0, 0, 5, 6, 6, 1, 2, 0, 6, 3, 4]
    assert targets[0].tolist() == [I, I, I, I, I, I, 3, 3, I, I, I, I, I, I, I, I, I, I, I, I]
    tokens, targets = memorization(1, 8, 8, facts=1, seed=1)
    assert tokens.tolist() == [[0, 7, 2, 7, 2, 7, 0, 7]]
    assert targets.tolist() == [[I, 4, I, 5, I, 5, I, 4]]
    tokens, targets = compression(1, 7, 4, 3, seed=1)
    assert tokens.tolist() == [[0, 3, 3, 4, 6, 7, 5]]
    assert targets.tolist() == [[I, I, I, I, 3, 3, 0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(2, 40), st.integers(1, 9), st.sampled_from([0.0, 0.2, 0.9]), SEEDS)
def test_a_value_is_asked_for_when_its_key_comes_again(pairs, content, noises, noise, seed):
    for row, wanted in rows(noisy_recall(3, 2 * pairs, content + noises, noises, noise, seed)):
        memory, answers = {}, [IGNORE] * len(row)
        for t in range(0, len(row), 2):
            key, value = row[t : t + 2]
            if key >= content:
                assert value >= content and noise
                continue
            assert key < content // 2 <= value < content
            if key in memory:
                answers[t] = memory[key]
            assert memory.setdefault(key, value) == value
        assert wanted == answers and answers[-2] != IGNORE


def test_the_noise_is_as_much_as_is_said():
    tokens, _ = noisy_recall(500, 200, 32, 16, 0.4, seed=0)
    assert (tokens[:, :-2] >= 16).double().mean() == pytest.approx(0.4 * 98 / 99, abs=0.01)


def test_without_noise_it_is_in_context_recall():
    a, b = in_context_recall(4, 20, 16, seed=3), noisy_recall(4, 20, 16, 0, 0.0, seed=3)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 60), st.integers(3, 20), SEEDS)
def test_all_of_a_value_is_asked_for_when_its_key_comes_again(motif, more, vocabulary, seed):
    pad, half = vocabulary - 1, (vocabulary - 1) // 2
    for row, wanted in rows(fuzzy_recall(3, 4 * motif + more, motif, vocabulary, seed)):
        memory, answers, t = {}, [IGNORE] * len(row), 0
        content = row[: row.index(pad)] if pad in row else row
        assert set(row[len(content) :]) <= {pad} and len(row) - len(content) < 2 * motif
        while t < len(content):
            parts = []
            for low, high in ((0, half), (half, pad)):
                start = t
                while t < len(content) and low <= content[t] < high:
                    t += 1
                parts.append(tuple(content[start:t]))
            key, value = parts
            assert 1 <= len(key) <= motif and 1 <= len(value) <= motif
            if key in memory:
                answers[start - 1 : t - 1] = memory[key]
            assert memory.setdefault(key, value) == value
        assert wanted == answers and answers != [IGNORE] * len(row)


def test_first_alike():
    assert first_alike(torch.tensor([[5, 3, 5, 5, 3, 1], [0, 0, 0, 0, 0, 0]])).tolist() == [
        [0, 1, 0, 0, 1, 5],
        [0, 0, 0, 0, 0, 0],
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(3, 40), SEEDS, SEEDS)
def test_facts_are_the_same_everywhere(pairs, vocabulary, facts, seed):
    ask, half, memory = vocabulary - 1, (vocabulary - 1) // 2, {}
    for offset in range(2):
        for row, wanted in rows(memorization(3, 2 * pairs, vocabulary, facts, seed + offset)):
            assert set(row[1::2]) == {ask} and set(wanted[::2]) == {IGNORE}
            for key, value in zip(row[::2], wanted[1::2], strict=True):
                assert key < half <= value < ask and memory.setdefault(key, value) == value
    assert len(set(memory.values())) == len(memory)


def test_facts_are_those_of_the_datas_seed():
    def facts(seed):
        task = Memorization(vocabulary=64, **COMMON | {"seed": seed}, **same({"length": 200, "n": 4}))
        found = {}
        for split in SPLITS:
            for row, wanted in rows((task.segments(split)[0].tokens, task.segments(split)[0].targets)):
                for key, value in zip(row[::2], wanted[1::2], strict=True):
                    assert found.setdefault(key, value) == value
        return found

    assert len(facts(0)) == 31 and facts(0) == facts(0) != facts(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 9), st.integers(2, 30), SEEDS)
def test_every_place_is_asked_for(stored, more, symbols, seed):
    for row, wanted in rows(compression(3, 2 * stored + 1, symbols, stored + more, seed)):
        mark = row.index(symbols)
        assert mark == stored and max(row[:mark]) < symbols
        places = [token - symbols for token in row[mark + 1 :]]
        assert sorted(places) == list(range(1, stored + 1))
        assert wanted == [IGNORE] * (mark + 1) + [row[place - 1] for place in places]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: in_context_recall(1, 5, 8, 0), "length=5 does not hold two pairs or more: make it 6"),
        (lambda: in_context_recall(1, 2, 8, 0), "length=2 does not hold two pairs or more: make it 4"),
        (lambda: in_context_recall(1, 8, 1, 0), "vocabulary=1 is too small: make it 2 or more"),
        (lambda: noisy_recall(1, 8, 17, 16, 0.2, 0), "vocabulary=17 is too small: make it 18 or more"),
        (
            lambda: noisy_recall(1, 8, 32, 16, 1.0, 0),
            "noise=1.0 is not a share below 1: make it 0 or more and less than 1",
        ),
        (
            lambda: noisy_recall(1, 8, 32, 0, 0.2, 0),
            "noise=0.2 needs tokens of its own: make noise_vocabulary 1 or more",
        ),
        (lambda: fuzzy_recall(1, 11, 3, 16, 0), "length=11 has no room for two pairs of motifs of 3: make it 12"),
        (lambda: fuzzy_recall(1, 12, 0, 16, 0), "motif=0 is too small: make it 1 or more"),
        (lambda: fuzzy_recall(1, 12, 3, 2, 0), "vocabulary=2 is too small: make it 3 or more"),
        (lambda: memorization(1, 7, 16, 0, 0), "length=7 does not hold keys and questions in turn: make it 8"),
        (lambda: memorization(1, 8, 2, 0, 0), "vocabulary=2 is too small: make it 3 or more"),
        (
            lambda: compression(1, 8, 4, 9, 0),
            "length=8 does not hold symbols, the mark and as many questions: make it 9",
        ),
        (
            lambda: compression(1, 9, 4, 3, 0),
            "length=9 asks for 4 places and there are 3: raise places or shorten it",
        ),
        (lambda: compression(1, 9, 1, 4, 0), "symbols=1 is too small: make it 2 or more"),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == words


def test_baselines():
    # two values and one key: the answer is always the one value in sight
    task = InContextRecall(vocabulary=3, **COMMON, **same({"length": 8, "n": 40}))
    assert task.baselines()["chance"] == 1 / 2 and task.baselines()["the value before"] == 1
    task = NoisyRecall(vocabulary=8, noise_vocabulary=5, **COMMON, **same({"length": 8, "noise": 0.5, "n": 40}))
    assert task.baselines()["chance"] == 1 / 2 and task.baselines()["the value before"] == 1
    # one key, whose value has one of two tokens
    task = FuzzyRecall(vocabulary=4, **COMMON, **same({"length": 8, "motif": 1, "n": 40}))
    assert task.baselines()["chance"] == 1 / 2 and task.baselines()["the last token of a value"] == 1
    task = Memorization(vocabulary=4, **COMMON, **same({"length": 8, "n": 40}))
    assert task.baselines() == {"chance": 1 / 2, "the most frequent answer": 1}
    task = Compression(symbols=4, places=8, **COMMON, **same({"length": 17, "n": 500}))
    assert task.baselines()["chance"] == 1 / 4
    assert task.baselines()["the first symbol"] == pytest.approx(1 / 8 + 7 / 8 / 4, abs=0.03)
