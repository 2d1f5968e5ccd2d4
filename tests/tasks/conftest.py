"""Tiny data sets in the formats of the real ones."""

import gzip
import io
import tarfile

import numpy as np
import pytest


def archive(path, files):
    """A .tar.gz of {name: bytes}."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def fashion_pixels(at):
    """Image i of class c: everywhere 20 c, but i in its first pixel."""
    for name, n in (("train", 60), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.repeat(20 * labels[:, None], 784, 1)
        images[:, 0] = np.arange(n)
        for kind, sizes, data in (("images-idx3", (n, 28, 28), images), ("labels-idx1", (n,), labels)):
            head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
            (at / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + data.tobytes()))
    return {"path": str(at), "url": None, "md5": None, "examples": {"train": 60, "test": 20}}


def image(at):
    """Image i of class c: red c, green i, blue 200."""

    def batch(first, n):
        rows = []
        for i in range(first, first + n):
            rows.append(bytes([i % 10]) + bytes([i % 10]) * 1024 + bytes([i]) * 1024 + bytes([200]) * 1024)
        return b"".join(rows)

    files = {f"cifar-10-batches-bin/data_batch_{i}.bin": batch(12 * i, 12) for i in range(5)}
    files |= {"cifar-10-batches-bin/test_batch.bin": batch(60, 20), "cifar-10-batches-bin/batches.meta.txt": b"cat\n"}
    archive(at / "cifar-10-binary.tar.gz", files)
    return {"path": str(at), "url": None, "md5": None, "examples": {"train": 60, "test": 20}}


def text(at):
    """Good reviews say good, and bad ones bad, and their number; unsupervised ones are to be passed over."""
    files = {"aclImdb/README": b"", "aclImdb/train/unsup/0_0.txt": b"?", "aclImdb/train/urls_pos.txt": b"?"}
    for split, n in (("train", 60), ("test", 20)):
        for i in range(n):
            kind, word = (("neg", "bad"), ("pos", "good"))[i % 2]
            files[f"aclImdb/{split}/{kind}/{i}_7.txt"] = f"{split} {i} is {word}".encode() + b"\xe9" * (300 * i)
    archive(at / "aclImdb_v1.tar.gz", files)
    return {"path": str(at), "url": None, "md5": None, "examples": {"train": 60, "test": 20}}


def retrieval(at):
    """Paper i cites j if the label says so; texts repeat their paper's number."""
    for name in ("train", "eval", "test"):
        lines = [
            f"{i % 2}.0\tP{i}\tP{i + 1}\t{f'{name} {i} ' * 30}\t{f'{name} {i if i % 2 else 77} ' * 30 * i}\n"
            for i in range(1, 41)
        ]
        (at / f"new_aan_pairs.{name}.tsv").write_text("".join(lines))
    return {"path": str(at), "md5": None, "examples": 40}


def bytes_(at):
    """80 files, each of one letter of its own."""
    for i in range(80):
        (at / f"part{i % 4}").mkdir(exist_ok=True)
        (at / f"part{i % 4}" / f"{i}.txt").write_text(chr(33 + i) * (300 + i))
    (at / "no.md").write_text("~" * 1000)
    return {"root": str(at)}


def dna(at):
    """Two files, one of them packed, of two random sequences each; the last has a tail of unknown bases."""
    draws = np.random.default_rng(0)
    for i, write in enumerate((lambda data: data, gzip.compress)):
        records = []
        for j in range(2):
            letters = draws.choice(np.frombuffer(b"ACGTacgt", np.uint8), 60000).tobytes() + b"N" * (6000 * i * j)
            lines = b"\n".join(letters[k : k + 70] for k in range(0, len(letters), 70))
            records.append(b">chr%d made up\n" % j + lines + b"\n")
        (at / f"genome{i}.fa{'.gz' * i}").write_bytes(write(b"".join(records)))
    return {"root": str(at), "block": 5000}


MAKERS = {
    "fashion_pixels": fashion_pixels,
    "image": image,
    "text": text,
    "retrieval": retrieval,
    "bytes": bytes_,
    "dna": dna,
}


@pytest.fixture
def local(tmp_path):
    """local(name): what task.data must say to find a tiny data set of that task; nothing for the other tasks."""

    def make(name):
        (tmp_path / name).mkdir()
        return MAKERS[name](tmp_path / name) if name in MAKERS else {}

    return make
