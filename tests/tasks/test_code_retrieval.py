"""Pairs of stretches, looked up in the files that they come from."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import SPLITS
from tasks.code_retrieval import CodeRetrieval, pairs

COMMON = {"seed": 0, "order_seed": 0, "batch_size": 4, "train": 200, "validation": 50, "test": 50}


def numbered(group, file, size):
    """Bytes that say where they are: group, file, place."""
    return torch.tensor(
        [[group, file, place // 100, place % 100] for place in range(size // 4)], dtype=torch.uint8
    ).flatten()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(2, 5), st.lists(st.integers(2, 4), min_size=1, max_size=3))
def test_pairs_are_what_their_label_says(seed, quarter, sizes):
    length = 4 * quarter
    groups = [[numbered(g, f, 2 * length + 40 * f) for f in range(n)] for g, n in enumerate(sizes)]
    tokens, labels = pairs(groups, 20, length, seed)
    for pair, label in zip(tokens, labels.tolist(), strict=True):
        found = []
        for stretch in pair:  # where it lies, by looking it up
            bytes_ = bytes(stretch.tolist())
            hits = [
                (g, f, bytes(t.tolist()).index(bytes_))
                for g, n in enumerate(groups)
                for f, t in enumerate(n)
                if bytes_ in bytes(t.tolist())
            ]
            assert len(hits) == 1
            found += hits
        (group, file, place), (other_group, other_file, other_place) = found
        assert group == other_group and (file == other_file) == label
        assert not label or abs(place - other_place) >= length


def test_a_pair_depends_on_its_number_alone():
    groups = [[numbered(g, f, 200) for f in range(3)] for g in range(2)]
    (few, few_labels), (many, many_labels) = (pairs(groups, n, 40, seed=3) for n in (7, 50))
    assert few.equal(many[:7]) and few_labels.equal(many_labels[:7])


def test_golden():
    """Two files, four times each of 0 to 9, and of 10 to 19: a pair from either, and one from the second."""
    files = [[torch.tensor([10 * f + i // 4 for i in range(40)], dtype=torch.uint8) for f in range(2)]]
    tokens, labels = pairs(files, 2, 8, seed=4)
    assert labels.tolist() == [0, 1]
    assert tokens[0].tolist() == [[3, 3, 3, 4, 4, 4, 4, 5], [17, 18, 18, 18, 18, 19, 19, 19]]
    assert tokens[1].tolist() == [[13, 13, 14, 14, 14, 14, 15, 15], [16, 16, 16, 17, 17, 17, 17, 18]]


def test_places_say_nothing():
    """Places and files are distributed alike for either label: here a byte says where it is, or in which file."""
    places, labels = pairs([[torch.arange(250).byte()] * 3], 6000, 40, seed=0)
    files, again = pairs([[torch.full((250,), f).byte() for f in range(3)]], 6000, 40, seed=0)
    assert labels.equal(again)
    for side in range(2):
        one, zero = (places[labels == label, side, 0].double() for label in (1, 0))
        assert abs(one.mean() - zero.mean()) < 6 and abs(one.std() - zero.std()) < 4
        assert files[:, side, 0].bincount().min() > 1800
    assert places.min() == 0 and places.max() == 249
    assert labels.double().mean() == pytest.approx(0.5, abs=0.02)


@pytest.fixture
def root(tmp_path):
    """40 files in three directories and one alone; too short ones."""
    for i in range(40):
        (tmp_path / f"part{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"part{i % 3}" / f"{i}.py").write_text("".join(f"{i} of {i % 3}, {j}; " for j in range(60)))
    (tmp_path / "short.py").write_text("~" * 99)
    return tmp_path


def words(stretch):
    """(file, directory) as a whole sentence of the stretch has them."""
    file, directory = bytes(stretch.tolist()).decode().split("; ")[1].split(",")[0].split(" of ")
    return file, directory


def test_no_file_is_in_two_splits_and_the_hard_level_stays_in_its_directory(root):
    task = CodeRetrieval(root=str(root), length=50, level="directory", **COMMON)
    seen: dict[str, set] = {}
    for split in SPLITS:
        for segment in task.segments(split):
            assert segment.tokens.shape[1:] == (2, 50)
            for pair, label in zip(segment.tokens, segment.targets.tolist(), strict=True):
                (a, where), (b, there) = map(words, pair)
                assert (a == b) == label
                assert where == there or "any" in segment.name
                seen.setdefault(split, set()).update((a, b))
    assert (
        not seen["train"] & seen["test"] and not seen["train"] & seen["validation"] | seen["validation"] & seen["test"]
    )
    easy = task.segments("test")[0]
    assert any(words(pair[0])[1] != words(pair[1])[1] for pair in easy.tokens)
    assert [s.name for s in task.segments("test")] == ["other file of any", "other file of directory"]


def test_baselines_on_the_standard_library():
    task = CodeRetrieval(root=None, length=256, level="any", **COMMON | {"train": 1500, "test": 500})
    scores = task.baselines()
    assert scores["chance"] == 0.5 and 0.4 < scores["majority"] < 0.6 and 0.6 < scores["groups of four in both"] < 0.85
    assert Counter(s.values["same directory"] for s in task.segments("test")) == {0.0: 1, 1.0: 1}


def test_what_does_not_fit_is_said(root):
    with pytest.raises(ValueError, match="task.data.level is 'hard': it must be any or directory"):
        CodeRetrieval(root=str(root), length=50, level="hard", **COMMON)
    with pytest.raises(ValueError, match="has too few files of 20000 bytes for a train split: add files"):
        CodeRetrieval(root=str(root), length=10000, level="any", **COMMON).segments("train")
    with pytest.raises(ValueError, match="length=0 is too small"):
        CodeRetrieval(root=str(root), length=0, level="any", **COMMON).segments("train")
