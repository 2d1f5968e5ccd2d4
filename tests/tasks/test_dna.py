"""FASTA files against a reader that goes letter by letter; windows, slices and baselines against their definitions."""

import gzip
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import IGNORE, SPLITS
from tasks.dna import UNKNOWN, Dna, coded, fasta

COMMON = {"seed": 0, "order_seed": 0, "batch_size": 4, "train": 300, "validation": 20, "test": 50}
SHAPE = {"length": 100, "contexts": [400, 20, 100], "scored": 10, "pattern": "*.fa*"}


def dna(**more):
    return Dna(**COMMON | SHAPE | more)


def written(path, text):
    path.write_text(text)
    return path


def test_golden(tmp_path):
    path = written(tmp_path / "a.fa", ">one two\nACGT\ntta\n\n>three\nNRU\r\nC\n")
    assert {name: bases.tolist() for name, bases in fasta(path).items()} == {
        "one": [0, 1, 2, 3, 3, 3, 0],
        "three": [UNKNOWN, UNKNOWN, 3, 1],
    }
    packed = tmp_path / "a.fa.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert {name: bases.tolist() for name, bases in fasta(packed).items()}["one"] == [0, 1, 2, 3, 3, 3, 0]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.text("ACGTNacgtn", min_size=1, max_size=40), min_size=1
    )
)
def test_reading_is_the_inverse_of_writing(tmp_path_factory, sequences):
    path = tmp_path_factory.mktemp("fasta") / "a.fa"
    text = ""
    for name, letters in sequences.items():
        text += f">{name} x\n" + "\n".join(letters[i : i + 7] for i in range(0, len(letters), 7)) + "\n"
    read = fasta(written(path, text))
    assert {name: "".join("ACGTN"[base] for base in bases) for name, bases in read.items()} == {
        name: letters.upper() for name, letters in sequences.items()
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ACGT\n", "does not begin with >: it is no FASTA file"),
        ("", "does not begin with >"),
        (">one\nACGT\n>one\nACGT\n", "has the sequence 'one' twice"),
        (">one\n>two\nACGT\n", "has the sequence 'one' without bases"),
        (">one\nACGT\nAC!T\n", "has the letter '!' in the sequence 'one': it is no nucleic acid"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=f"bad.fa {words}"):
        fasta(written(tmp_path / "bad.fa", text))


def test_blocks_are_held_out_whole(local):
    task = dna(**local("dna"))
    blocks = {split: task.blocks(split) for split in SPLITS}
    assert sum(len(block) for part in blocks.values() for block in part) == 4 * 60000 + 6000
    assert len(blocks["train"]) > 30 and len(blocks["validation"]) > 0 and len(blocks["test"]) > 0
    texts = {split: [bytes(block.tolist()) for block in part] for split, part in blocks.items()}
    for split in SPLITS:
        for window in task.windows(split, 100)[:20].tolist():
            assert [kind for kind in SPLITS if any(bytes(window) in text for text in texts[kind])] == [split]


def test_windows_lie_anywhere_in_the_blocks(local):
    task = dna(train=6000, **local("dna"))
    task._blocks = {"train": [torch.zeros(105).byte(), torch.arange(205).fmod(200).byte(), torch.zeros(9).byte()]}
    assert task._blocks["train"][1].max() == 199
    firsts = task.windows("train", 99)[:, 0]
    ramp = firsts[firsts > 0]
    # a window of 100 bases has 6 places in the first block, 106 in the second and none in the third
    assert firsts.max() == 105 and ramp.bincount(minlength=106)[1:].min() > 20
    assert (firsts == 0).double().mean() == pytest.approx(7 / 112, abs=0.015)


def test_slices_ask_for_the_same_bases_with_more_before(local):
    task = dna(**local("dna"))
    slices = task.segments("test")
    assert [s.name for s in slices] == ["context 20", "context 100", "context 400"]
    for segment in slices:
        scored = segment.targets != IGNORE
        assert scored[:, -10:].double().mean() > 0.85 and not scored[:, :-10].any()
        assert segment.targets[:, -10:].equal(slices[0].targets[:, -10:])
        assert segment.tokens[:, -20:].equal(slices[0].tokens)
        at = scored[:, :-1]
        assert segment.targets[:, :-1][at].equal(segment.tokens[:, 1:][at])


def test_an_unknown_base_is_a_token_and_no_target(tmp_path):
    written(tmp_path / "a.fa", ">one\n" + "ACGTTGCAACGTAGCTGACN" * 2000 + "\n")
    (train,) = dna(root=str(tmp_path), block=1000).segments("train")
    known = train.tokens[:, 1:] != UNKNOWN
    assert not known.all() and known.equal(train.targets[:, :-1] != IGNORE) and train.targets.max() < 4


def test_baselines_are_what_counting_gives(local):
    task = dna(**local("dna"))
    scores = task.baselines()
    assert scores["chance"] == 2 and list(scores) == ["chance", "order 0", "order 3", "order 7"]
    longest = task.segments("test")[-1]
    counts: dict = {}
    for block in task.blocks("train"):
        text = block.tolist()
        for i in range(3, len(text)):
            counts.setdefault(tuple(text[i - 3 : i]), [1, 1, 1, 1, 0])[text[i]] += text[i] < 4
    bits = []
    for tokens, targets in zip(longest.tokens.tolist(), longest.targets.tolist(), strict=True):
        for t in range(390, 400):
            if targets[t] != IGNORE:
                seen = counts[tuple(tokens[t - 2 : t + 1])]
                bits.append(-math.log2(seen[targets[t]] / sum(seen)))
    assert scores["order 3"] == pytest.approx(sum(bits) / len(bits))


def test_a_repeated_sequence_is_predictable(tmp_path):
    written(tmp_path / "a.fa", ">one\n" + "ACGGTCA" * 6000 + "\n")
    scores = dna(root=str(tmp_path), block=1000).baselines()
    assert scores["order 7"] < 0.01 < 1.8 < scores["order 0"]


def test_codes_are_numbers_of_base_five():
    assert coded(torch.tensor([[1, 2, 3, 0]]), 1).tolist() == [[7, 13, 15]]
    assert coded(torch.tensor([[1, 2]]), 0).tolist() == [[1, 2]]


def test_what_does_not_fit_is_said(local, tmp_path):
    facts = local("dna")
    with pytest.raises(ValueError, match=r"scored=30 bases do not fit into the shortest of contexts=\[20, 100, 400\]"):
        dna(**facts, scored=30)
    with pytest.raises(ValueError, match="block=400 is shorter than a window and its target"):
        dna(**facts | {"block": 400})
    with pytest.raises(ValueError, match=r"task\.data\.root is not set: set it to a directory of FASTA files"):
        dna(root=None, block=5000).hashes()
    written(tmp_path / "one.fa", ">one\n" + "ACGT" * 100)
    with pytest.raises(ValueError, match=r"no block of the \w+ split has \d+ bases: choose a shorter block or window"):
        dna(root=str(tmp_path), pattern="one.fa", block=100000, contexts=[20]).hashes()
    written(tmp_path / "unknown.fa", ">one\n" + "N" * 50000)
    with pytest.raises(ValueError, match="the train split has hardly a window of 100 known bases: look at"):
        dna(root=str(tmp_path), pattern="unknown.fa", block=1000).segments("train")
