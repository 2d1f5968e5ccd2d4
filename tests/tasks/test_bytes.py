"""Any text files: which are read, which are held out; the rest is tested with code."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE, SPLITS
from tasks.bytes import Bytes, split_of, windows

COMMON = {"seed": 0, "order_seed": 0, "batch_size": 4, "train": 50, "validation": 20, "test": 20}


def task(root, pattern="*.txt", packing=None, **more):
    return Bytes(root=root, pattern=pattern, length=100, packing=packing, **COMMON | more)


def test_files_are_chosen_by_name_and_held_out_whole(local):
    made = task(**local("bytes"))
    letters = {split: made.text(split).bincount(minlength=128) for split in SPLITS}
    assert sum(letters.values()).nonzero().flatten().tolist() == list(range(33, 33 + 80))  # and not the .md
    for counts in letters.values():
        for letter in counts.nonzero().flatten().tolist():
            assert counts[letter] == 300 + letter - 33
    assert sum(int((counts > 0).sum()) for counts in letters.values()) == 80
    assert task(made.root, seed=1).hashes() != made.hashes()


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=2, max_size=60), st.integers(1, 20), st.integers(0, 2**40))
def test_a_target_is_the_next_byte_of_the_text(text, length, seed):
    length = min(length, len(text) - 1)
    read = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    tokens, targets, places = windows(read, 9, length, seed)
    for row, wanted, at in zip(tokens.tolist(), targets.tolist(), places.tolist(), strict=True):
        assert at == list(range(at[0], at[0] + length)) and bytes(row) == text[at[0] : at[0] + length]
        assert bytes(wanted) == text[at[0] + 1 : at[0] + 1 + length]


def test_golden():
    text = torch.tensor(list(b"Call me Ishmael."), dtype=torch.uint8)
    tokens, targets, places = windows(text, 2, 6, seed=2)
    assert places[:, 0].tolist() == [5, 2]
    assert [bytes(row) for row in tokens.tolist()] == [b"me Ish", b"ll me "]
    assert [bytes(row) for row in targets.tolist()] == [b"e Ishm", b"l me I"]


def test_packed_documents_do_not_see_each_other(local):
    (segment,) = task(packing="documents", **local("bytes")).segments("train")
    same = segment.mask[:, :-1] == segment.mask[:, 1:]
    assert same.equal(segment.tokens[:, :-1] == segment.tokens[:, 1:]) and not same.all()
    assert (segment.targets[:, :-1] != IGNORE).equal(same)


def test_another_file_moves_no_file(local):
    made = task(**local("bytes"))
    before = made.text("test")
    kept = [
        name
        for name in map(str, range(1000))
        if split_of(name + ".txt", 0, {"validation": 0.05, "test": 0.05}) == "train"
    ]
    Path(made.root, kept[0] + ".txt").write_text("~" * 999)
    again = task(made.root)
    assert again.text("test").equal(before) and len(again.text("train")) == len(made.text("train")) + 999


def test_shares_are_as_they_should_be():
    drawn = [split_of(str(i), 0, {"validation": 0.1, "test": 0.2}) for i in range(4000)]
    assert drawn.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert drawn.count("validation") / 4000 == pytest.approx(0.1, abs=0.02)


def test_what_is_missing_is_said(local, tmp_path):
    with pytest.raises(ValueError, match=r"task\.data\.root is not set: set it to a directory of text files"):
        task(None).hashes()
    with pytest.raises(ValueError, match=r"no text files \(\*\.txt\) below .*nowhere: set task\.data\.root"):
        task(str(tmp_path / "nowhere")).hashes()
    facts = local("bytes")
    with pytest.raises(ValueError, match="too few files for a"):
        task(pattern="*.md", **facts).hashes()
    assert torch.equal(task(pattern="*", **facts).text("test"), task(pattern="*", **facts).text("test"))
