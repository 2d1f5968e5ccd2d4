"""Splits, hashes, order and resume: the same for every task."""

import itertools
import random

import pytest
import torch

from tasks.associative_retrieval import AssociativeRetrieval
from tasks.base import SPLITS, Batches, InOrder, Segment, digest, seed_of
from tasks.code import Code
from tasks.code_retrieval import CodeRetrieval
from tasks.compression import Compression
from tasks.copying import Copying
from tasks.dyck import Dyck
from tasks.flip_flop import FlipFlop
from tasks.fuzzy_recall import FuzzyRecall
from tasks.in_context_recall import InContextRecall
from tasks.induction import Induction
from tasks.listops import ListOps
from tasks.memorization import Memorization
from tasks.modular_arithmetic import ModularArithmetic
from tasks.noisy_recall import NoisyRecall
from tasks.parity import Parity
from tasks.passkey import Passkey
from tasks.pathfinder import Pathfinder
from tasks.permutation import Permutation
from tasks.recall import Recall
from tasks.selective_copying import SelectiveCopying


def recall(seed=0, order_seed=0, batch_size=4, **more):
    size = {"length": 16, "pairs": 3}
    splits = {"train": [size | {"n": 16}, size | {"n": 9}], "validation": [size | {"n": 5}], "test": [size | {"n": 7}]}
    return Recall(
        vocabulary=64,
        key_length=1,
        rewritten=0.0,
        seed=seed,
        order_seed=order_seed,
        batch_size=batch_size,
        **splits | more,
    )


def listops(seed=0, order_seed=0, batch_size=4):
    common = {"seed": seed, "order_seed": order_seed, "batch_size": batch_size}
    return ListOps(min_length=4, max_length=40, balanced=False, train=60, validation=20, test=20, **common)


def code(seed=0, order_seed=0, batch_size=4):
    common = {"seed": seed, "order_seed": order_seed, "batch_size": batch_size}
    return Code(root=None, length=32, packing=None, train=30, validation=10, test=10, **common)


def counted(task, **knobs):
    """A maker of a task whose splits are numbers of examples."""

    def make(seed=0, order_seed=0, batch_size=4):
        return task(seed=seed, order_seed=order_seed, batch_size=batch_size, train=30, validation=10, test=10, **knobs)

    return make


def sized(task, size, **knobs):
    """A maker of a task whose splits are lists of sizes."""

    def make(seed=0, order_seed=0, batch_size=4):
        splits = {"train": [size | {"n": 16}], "validation": [size | {"n": 5}], "test": [size | {"n": 7}]}
        return task(seed=seed, order_seed=order_seed, batch_size=batch_size, **splits, **knobs)

    return make


TASKS = {
    "recall": recall,
    "listops": listops,
    "code": code,
    "copying": sized(Copying, {"length": 40, "copied": 16}, vocabulary=10),
    "selective_copying": sized(SelectiveCopying, {"length": 40, "copied": 16}, vocabulary=10),
    "induction": sized(Induction, {"length": 40}, vocabulary=16),
    "parity": sized(Parity, {"length": 40}),
    "modular_arithmetic": sized(ModularArithmetic, {"length": 40}, modulus=5, depth=0),
    "modular_arithmetic with brackets": sized(ModularArithmetic, {"length": 40}, modulus=5, depth=3),
    "permutation": sized(Permutation, {"length": 40}, group="A5"),
    "flip_flop": sized(FlipFlop, {"length": 80, "ignore": 0.5}, loss_on="all"),
    "dyck": sized(Dyck, {"length": 40, "depth": 4}, kinds=8),
    "in_context_recall": sized(InContextRecall, {"length": 40}, vocabulary=16),
    "fuzzy_recall": sized(FuzzyRecall, {"length": 40, "motif": 3}, vocabulary=16),
    "noisy_recall": sized(NoisyRecall, {"length": 40, "noise": 0.2}, vocabulary=32, noise_vocabulary=16),
    "memorization": sized(Memorization, {"length": 40}, vocabulary=64),
    "associative_retrieval": sized(AssociativeRetrieval, {"keys": 16}, vocabulary=64, questions=4, replace=False),
    "associative_update": sized(AssociativeRetrieval, {"keys": 16}, vocabulary=64, questions=4, replace=True),
    "passkey": sized(Passkey, {"length": 160}),
    "pathfinder": counted(Pathfinder, size=32),
    "code_retrieval": counted(CodeRetrieval, root=None, length=64, level="directory"),
    "compression": sized(Compression, {"length": 33}, symbols=15, places=16),
}


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_data_are_a_function_of_their_own_seed_and_nothing_else(make):
    expected = make().hashes()
    torch.manual_seed(7)
    random.seed(7)
    torch.rand(5)
    task = make(order_seed=9, batch_size=2)
    for split in reversed(SPLITS):  # in another order
        task.segments(split)
    assert task.hashes() == expected
    assert not set(make(seed=1).hashes().values()) & set(expected.values())
    assert len(set(expected.values())) == 3


@pytest.mark.parametrize("name", TASKS)
def test_an_example_does_not_depend_on_how_many_there_are(name):
    few, many = TASKS[name](), TASKS[name]()
    if isinstance(many.sizes["train"], int):
        many.sizes = many.sizes | {"train": many.sizes["train"] + 11}
    else:
        many.sizes = many.sizes | {"train": [size | {"n": size["n"] + 11} for size in many.sizes["train"]]}
    for some, more in zip(few.segments("train"), many.segments("train"), strict=True):
        assert len(more) == len(some) + 11
        assert torch.equal(some.tokens, more.tokens[:-11]) and torch.equal(some.targets, more.targets[:-11])


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_generating_leaves_the_global_generators_alone(make):
    before, python = torch.get_rng_state(), random.getstate()
    make().hashes()
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)
def test_segments_are_what_the_learner_expects(make):
    task = make()
    for split in SPLITS:
        for segment in task.segments(split):
            assert segment.batch(slice(2))[0].dtype == segment.targets.dtype == torch.int64
            assert len(segment) == len(segment.targets) and segment.values
    assert next(iter(task.baselines())) == "chance"


@pytest.mark.parametrize("make", [make for name, make in TASKS.items() if name != "code"])
def test_splits_share_no_example(make):
    assert make().overlap() == {"validation": 0, "test": 0}


def test_overlap_finds_what_is_planted():
    task = recall()
    train, validation, test = (task.segments(split)[0] for split in SPLITS)
    test.tokens[2] = train.tokens[5]
    assert task.overlap() == {"validation": 0, "test": pytest.approx(1 / 7)}
    test.tokens[3] = validation.tokens[0]
    assert task.overlap() == {"validation": 0, "test": pytest.approx(2 / 7)}
    validation.tokens[0] = train.tokens[5]
    assert task.overlap() == {"validation": pytest.approx(1 / len(validation)), "test": pytest.approx(1 / 7)}


def test_a_hash_sees_every_part():
    tokens = torch.arange(6).view(2, 3)
    base = Segment("a", tokens, tokens, tokens > 1)
    others = [
        Segment("b", tokens, tokens, tokens > 1),
        Segment("a", tokens + 1, tokens, tokens > 1),
        Segment("a", tokens, tokens + 1, tokens > 1),
        Segment("a", tokens, tokens, tokens > 2),
        Segment("a", tokens, tokens),
        Segment("a", tokens.view(3, 2), tokens, tokens > 1),
    ]
    assert len({digest([segment]) for segment in [base, *others]}) == 7


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own():
    a, b = torch.arange(12).view(12, 1), torch.arange(100, 109).view(9, 1)
    segments = [Segment("a", a, a[:, 0]), Segment("b", b, b[:, 0])]
    batches = [tokens.flatten().tolist() for tokens, _, _ in itertools.islice(Batches(segments, 3, seed=0), 14)]
    first, second = batches[:7], batches[7:]
    rows = [*range(12), *range(100, 109)]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == rows
    assert first != second
    assert all(len({row >= 100 for row in batch}) == 1 for batch in batches)  # each from one segment
    assert first != [t.flatten().tolist() for t, _, _ in itertools.islice(Batches(segments, 3, seed=1), 7)]


@pytest.mark.parametrize("taken", [0, 3, 7, 11])
def test_batches_go_on_where_they_were(taken):
    make = recall(order_seed=5).train_dataloader
    straight = [tokens for tokens, _, _ in itertools.islice(make(), 15)]
    first, second = make(), make()
    for _ in itertools.islice(first, taken):
        pass
    second.load_state_dict(first.state_dict())
    rest = [tokens for tokens, _, _ in itertools.islice(second, 15 - taken)]
    assert all(torch.equal(a, b) for a, b in zip(straight[taken:], rest, strict=True))


def test_evaluation_visits_every_row_in_order():
    segment = Segment("a", torch.arange(10).view(10, 1), torch.arange(10))
    loader = InOrder(segment, 4)
    assert [t.flatten().tolist() for t, _, _ in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_too_small_a_segment_is_named():
    with pytest.raises(ValueError, match="segment 'length 16, 3 pairs' has fewer examples than batch_size=10"):
        recall(batch_size=10).train_dataloader()
    with pytest.raises(ValueError, match="batch_size=0"):
        recall(batch_size=0)


def test_seeds_differ_by_key():
    seeds = {seed_of(name, seed, split) for name in ("a", "b") for seed in range(50) for split in SPLITS}
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
