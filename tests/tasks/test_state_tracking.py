"""The tasks that ask for a state at every token, against solvers that go through an example token by token."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE
from tasks.dyck import Dyck, dyck
from tasks.flip_flop import READ, FlipFlop, flip_flop
from tasks.modular_arithmetic import OPERATORS, ModularArithmetic, evaluate, modular_arithmetic
from tasks.parity import Parity, parity
from tasks.permutation import Permutation, elements, permutation, products

SEEDS = st.integers(0, 2**40)
COMMON = {"seed": 0, "order_seed": 0, "batch_size": 2}


def same(size):
    return {"train": [size], "validation": [size], "test": [size]}


def rows(example):
    tokens, targets = example
    assert tokens.shape == targets.shape and tokens.dtype == targets.dtype == torch.int64
    return zip(tokens.tolist(), targets.tolist(), strict=True)


def test_golden():
    tokens, targets = parity(1, 8, seed=1)
    assert tokens.tolist() == [[0, 1, 1, 0, 0, 0, 0, 1]]
    assert targets.tolist() == [[0, 1, 0, 0, 0, 0, 0, 1]]
    # 2 - 2 + 3 * 0 - 4 = -4, which is 1 modulo 5
    tokens, targets = modular_arithmetic(1, 9, 5, 0, seed=2)
    assert tokens.tolist() == [[2, 6, 2, 5, 3, 7, 0, 6, 4]]
    assert targets.tolist() == [[2, 2, 0, 0, 3, 3, 0, 0, 1]]
    # the picture: 3 + 4 * (2 - 3) * 2
    assert evaluate(torch.tensor([[3, 5, 4, 7, 8, 2, 6, 3, 9, 7, 2]]), 5, 1).tolist() == [
        [3, 3, 2, 2, 2, 1, 1, 4, 4, 4, 0]
    ]
    # 012, 201, 210, 021, 102, 021: the second and third make 0 -> 0, 1 -> 2, 2 -> 1
    tokens, targets = permutation(1, 6, "S3", seed=1)
    assert tokens.tolist() == [[0, 4, 5, 1, 2, 1]]
    assert targets.tolist() == [[0, 4, 1, 0, 2, 4]]
    # w 1, r 1, i 0, i 0, w 0, r 0, r 0
    tokens, targets = flip_flop(1, 14, 0.5, seed=2)
    assert tokens.tolist() == [[2, 1, 3, 1, 4, 0, 4, 0, 2, 0, 3, 0, 3, 0]]
    assert targets.tolist() == [[IGNORE, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]]
    # a c c C C a a A A b B A
    tokens, targets = dyck(1, 12, 3, 3, seed=1)
    assert tokens.tolist() == [[0, 2, 2, 5, 5, 0, 0, 3, 3, 1, 4, 3]]
    assert targets.tolist() == [[0, 2, 2, 2, 0, 0, 0, 0, 0, 1, 0, 3]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), SEEDS)
def test_parity(length, seed):
    for row, wanted in rows(parity(3, length, seed)):
        assert wanted == [row[: t + 1].count(1) % 2 for t in range(length)]


def value(row, modulus):
    """Python's own value of what is complete, with brackets closed."""
    words = [str(token) if token < modulus else OPERATORS[token - modulus] for token in row]
    while words and words[-1] in "+-*(":
        words.pop()
    text = "".join(words)
    return eval(text + ")" * (text.count("(") - text.count(")"))) % modulus if words else 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 11), st.integers(0, 5), SEEDS)
def test_modular_arithmetic(length, modulus, depth, seed):
    for row, wanted in rows(modular_arithmetic(3, length, modulus, depth, seed)):
        assert wanted == [value(row[: t + 1], modulus) for t in range(length)]
        is_open = [row[: t + 1].count(modulus + 3) - row[: t + 1].count(modulus + 4) for t in range(length)]
        assert 0 <= min(is_open) and max(is_open) <= depth


def test_brackets_are_nested_as_deeply_as_they_may_be():
    tokens, _ = modular_arithmetic(50, 60, 5, 3, seed=0)
    is_open = (tokens == 8).cumsum(1) - (tokens == 9).cumsum(1)
    assert is_open.max() == 3 and is_open.double().mean() > 1


def numbered(group):
    """The group's elements in order, by the definition: even is what an even number of swaps makes."""
    degree = int(group[1])

    def swaps(p):
        seen, cycles = set(), 0
        for start in range(degree):
            cycles += start not in seen
            while start not in seen:
                seen.add(start)
                start = p[start]
        return degree - cycles

    return [p for p in sorted(permutations(range(degree))) if group[0] == "S" or swaps(p) % 2 == 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.sampled_from(["S3", "A5", "S5"]), SEEDS)
def test_permutation(length, group, seed):
    members = numbered(group)
    for row, wanted in rows(permutation(3, length, group, seed)):
        state = list(range(int(group[1])))
        for token, target in zip(row, wanted, strict=True):
            state = [members[token][place] for place in state]
            assert members[target] == tuple(state)


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("A5", 60), ("S5", 120)])
def test_the_products_are_a_group(group, order):
    table = products(group)
    every = torch.arange(order)
    assert elements(group).tolist() == [list(p) for p in numbered(group)] and table.shape == (order, order)
    assert torch.equal(table[0], every) and torch.equal(table[:, 0], every)
    assert torch.equal(table.sort(0).values, every[:, None].expand(order, order))
    assert not torch.equal(table, table.T)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.sampled_from([0.0, 0.3, 0.8, 1.0]), SEEDS)
def test_flip_flop(pairs, ignore, seed):
    for row, wanted in rows(flip_flop(3, 2 * pairs, ignore, seed)):
        assert row[0] == 2 and row[-2] == READ
        memory = IGNORE
        for t, token in enumerate(row):
            if t % 2 and row[t - 1] == 2:
                memory = token
            assert token in (0, 1) if t % 2 else token in (2, 3, 4)
            assert not (t % 2 and row[t - 1] == READ) or token == memory
            assert wanted[t] == memory


def test_instructions_are_as_frequent_as_is_said():
    tokens, _ = flip_flop(500, 200, 0.8, seed=0)
    share = [(tokens[:, 2:-2:2] == instruction).double().mean().item() for instruction in (2, 3, 4)]
    assert share == pytest.approx([0.1, 0.1, 0.8], abs=0.01)


def test_flip_flop_scores_reads_where_that_is_asked_for():
    task = FlipFlop(loss_on="answers", **COMMON, **same({"length": 20, "ignore": 0.5, "n": 9}))
    segment = task.segments("test")[0]
    reads = segment.tokens == READ
    assert torch.equal(reads, segment.targets != IGNORE) and task.protocol()["loss_on"] == "answers"
    assert torch.equal(segment.targets[reads], segment.tokens.roll(-1, 1)[reads])  # a read's bit follows it


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), SEEDS)
def test_dyck(half, kinds, depth, seed):
    for row, wanted in rows(dyck(3, 2 * half, kinds, depth, seed)):
        stack = []
        for token, target in zip(row, wanted, strict=True):
            if token < kinds:
                stack.append(token)
            else:
                assert stack.pop() == token - kinds
            assert len(stack) <= depth and target == (stack[-1] if stack else kinds)
        assert not stack


def test_words_reach_their_depth():
    tokens, _ = dyck(50, 64, 2, 4, seed=0)
    assert ((tokens < 2).long() * 2 - 1).cumsum(1).max() == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: parity(1, 0, 0), "length=0 is too small: make it 1 or more"),
        (lambda: modular_arithmetic(1, 0, 5, 0, 0), "length=0 is too small: make it 1 or more"),
        (lambda: modular_arithmetic(1, 8, 1, 0, 0), "modulus=1 is too small: make it 2 or more"),
        (lambda: modular_arithmetic(1, 8, 5, -1, 0), "depth=-1 is too small: make it 0 or more"),
        (lambda: permutation(1, 8, "S4", 0), "group='S4' is not there: take one of S3, A5, S5"),
        (lambda: permutation(1, 0, "S3", 0), "length=0 is too small: make it 1 or more"),
        (
            lambda: flip_flop(1, 7, 0.5, 0),
            "length=7 does not hold pairs of instruction and bit, a write and a read at least: make it 8",
        ),
        (lambda: flip_flop(1, 8, 1.5, 0), "ignore=1.5 is no probability: make it 0 to 1"),
        (
            lambda: FlipFlop(loss_on="reads", **COMMON, **same({"length": 8, "ignore": 0.5, "n": 2})),
            "loss_on='reads' is not there: take all or answers",
        ),
        (lambda: dyck(1, 7, 2, 2, 0), "length=7 is no number of brackets that close: make it 8"),
        (lambda: dyck(1, 8, 2, 0, 0), "depth=0 is too small: make it 1 or more"),
        (lambda: dyck(1, 8, 0, 2, 0), "kinds=0 is too small: make it 1 or more"),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == words


def test_baselines():
    near = {"abs": 0.03}
    found = Parity(**COMMON, **same({"length": 16, "n": 500})).baselines()
    assert found["chance"] == 0.5
    assert found["the bit itself"] == pytest.approx((1 + 15 / 2) / 16, **near)
    assert found["the last 8 bits"] == pytest.approx((8 + 8 / 2) / 16, **near)
    found = Permutation(group="S3", **COMMON, **same({"length": 16, "n": 500})).baselines()
    assert found["chance"] == 1 / 6
    assert found["the element itself"] == pytest.approx((1 + 15 / 6) / 16, **near)
    assert found["the last 8 elements"] == pytest.approx((8 + 8 / 6) / 16, **near)
    found = ModularArithmetic(modulus=5, depth=0, **COMMON, **same({"length": 1, "n": 9})).baselines()
    assert found["chance"] == 1 / 5 and found["the last number"] == 1
    found = FlipFlop(loss_on="all", **COMMON, **same({"length": 40, "ignore": 0.0, "n": 9})).baselines()
    assert found["the last bit"] == found["chance"] * 2 == 1
    found = Dyck(kinds=1, **COMMON, **same({"length": 20, "depth": 1, "n": 9})).baselines()
    assert found == {"chance": 1 / 2, "the most frequent answer": 1 / 2, "the last bracket opened": 1 / 2}
