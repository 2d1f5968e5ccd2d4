"""Windows of real files: shifted by one, from files that no other split reads; the baselines, counted by hand."""

import math
from collections import Counter

import pytest
import torch

from tasks.base import IGNORE
from tasks.code import Code, files


@pytest.fixture
def root(tmp_path):
    """60 files, each of one letter of its own, and what has to be passed over."""
    for i in range(60):
        directory = tmp_path / f"part{i % 4}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{i}.py").write_text(chr(33 + i) * (40 + i))
    for skipped in ("test", "__pycache__", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "no.py").write_text("~" * 100)
    (tmp_path / "no.txt").write_text("~" * 100)
    return tmp_path


def code(root, length=16, **more):
    return Code(root=root, length=length, **{"train": 50, "validation": 20, "test": 20} | more, **COMMON)


COMMON = {"packing": None, "seed": 0, "order_seed": 0, "batch_size": 4}


def test_whole_files_are_held_out(root):
    task = code(root)
    letters = {split: Counter(task.text(split).tolist()) for split in ("train", "validation", "test")}
    assert sum(map(len, letters.values())) == 60  # each file is in one split
    assert all(n == 40 + letter - 33 for part in letters.values() for letter, n in part.items())  # and whole
    assert len(letters["train"]) > 40 and letters["test"] and letters["validation"]
    assert len(files(root)) == 60


def test_a_target_is_the_next_byte(root):
    (segment,) = code(root).segments("test")
    assert segment.tokens[:, 1:].equal(segment.targets[:, :-1])
    text = bytes(code(root).text("test").tolist())
    assert all(
        bytes([*row.tolist(), last.item()]) in text
        for row, last in zip(segment.tokens, segment.targets[:, -1], strict=True)
    )


def test_baselines_are_what_counting_gives(root):
    task = code(root, length=64)
    scores = task.baselines()
    text = task.text("train").tolist()
    ones, pairs, firsts = Counter(text), Counter(zip(text, text[1:], strict=False)), Counter(text[:-1])
    (test,) = task.segments("test")
    unigram = bigram = 0.0
    for before, after in zip(test.tokens.flatten().tolist(), test.targets.flatten().tolist(), strict=True):
        unigram -= math.log2((1 + ones[after]) / (256 + len(text)))
        bigram -= math.log2((1 + pairs[before, after]) / (256 + firsts[before]))
    assert scores == pytest.approx(
        {"chance": 8, "unigram": unigram / test.tokens.numel(), "bigram": bigram / test.tokens.numel()}
    )


def test_packed_documents_are_files(root):
    """In these files each letter is a file of its own."""
    common = COMMON | {"packing": "documents"}
    task = Code(root=root, length=64, train=50, validation=20, test=20, **common)
    (segment,) = task.segments("train")
    assert segment.mask.dtype == torch.int64 and segment.mask.min() > 0
    same = segment.tokens[:, 1:] == segment.tokens[:, :-1]
    assert same.equal(segment.mask[:, 1:] == segment.mask[:, :-1]) and not same.all()
    scored = segment.targets != IGNORE
    assert scored[:, :-1].equal(same) and segment.targets[scored].equal(segment.tokens[scored])
    assert task.baselines()["bigram"] == pytest.approx(8)  # no letter of a test file is in another
    with pytest.raises(ValueError, match="task.data.packing is 'files': it must be documents or null"):
        Code(root=root, length=64, train=50, validation=20, test=20, **COMMON | {"packing": "files"})


def test_the_standard_library_is_there():
    task = Code(root=None, length=32, train=4, validation=4, test=4, **COMMON)
    assert len(task.text("train")) > 5e6 and len(task.text("test")) > 1e5
    assert 4 < task.baselines()["unigram"] < 5.2


def test_a_root_without_sources_or_with_too_few_is_an_error(tmp_path, root):
    with pytest.raises(ValueError, match="no Python sources below .*set task.data.root"):
        code(tmp_path / "nowhere").hashes()
    with pytest.raises(ValueError, match="choose a shorter length"):
        code(root, length=10**6).hashes()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.py").write_text("x")
    with pytest.raises(ValueError, match="too few files for a"):
        code(tmp_path / "one").hashes()
