"""A bundle holds its comparison whole, and verify finds what was changed in it."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest

from compare import bundle, results

TINY = [
    *("model.d_model=16", "trainer.max_steps=4", "trainer.val_check_interval=2", "learner.log_every=1", "logger=none"),
    *("probe=false", "task.data.batch_size=4", "task.data.train=[{length: 16, pairs: 2, n: 64}]"),
    "task.data.validation=[{length: 16, pairs: 2, n: 8}]",
    "task.data.test=[{length: 16, pairs: 2, n: 8}, {length: 24, pairs: 4, n: 8}]",
]


def python(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=results.ROOT, env=environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("bundle")
    done = python("train.py", "-m", "mixer=gla,fnet", *TINY, f"runs={runs}")
    assert "comparison:" in done.stdout, done.stderr
    done = python("-m", "compare", "bundle", runs)
    assert done.returncode == 0, done.stderr
    return runs / "comparisons" / "bundle.zip"


def planted(source, out, change):
    """The same bundle with its finished record changed, and a manifest that fits the change."""
    members = bundle.unpack(source)
    for name, content in members.items():
        if name.endswith(results.FILE) and (record := json.loads(content))["outcome"] == "finished":
            change(record)
            members[name] = json.dumps(record).encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    manifest = json.dumps({"version": bundle.VERSION, "members": hashes}).encode()
    return bundle._zip(out, members | {bundle.MANIFEST: manifest})


def test_it_holds_the_comparison_whole(packed):
    members = bundle.unpack(packed)
    assert {*bundle.REPORT, "data.json", "environment.json"} <= members.keys()
    configs = [json.loads(content) for name, content in members.items() if name.endswith(bundle.CONFIG)]
    assert len(configs) == len(bundle.recorded(packed, members)) == 2
    assert json.loads(members["data.json"])["recall"].keys() == {"train", "validation", "test"}


def test_the_same_runs_make_the_same_bytes(packed, tmp_path):
    again = bundle.pack(packed.parent.parent, tmp_path / "again.zip")
    assert again.read_bytes() == packed.read_bytes()


def test_what_was_not_changed_is_the_same_bit_for_bit(packed):
    done = python("-m", "compare", "verify", packed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same, bit for bit") == 2


def test_a_planted_number_is_caught_and_named(packed, tmp_path):
    def change(record):
        record["test"]["score"] += 1e-12
        record["curve"][0]["train/loss"] += 1e-9
        record["speed"] = {"train_us_per_token": 1.0}  # timings differ each time: not compared

    done = python("-m", "compare", "verify", planted(packed, tmp_path / "planted.zip", change))
    assert done.returncode == 1
    assert "test.score: " in done.stdout and "curve.0.train/loss: " in done.stdout and "speed" not in done.stdout
    assert "1 same, 1 differs" in done.stdout


def test_a_planted_hash_of_the_data_is_caught_elsewhere_too(packed, tmp_path):
    def change(record):
        record["environment"]["torch"] = "1.0"
        record["data"]["test"] = "0" * 64
        record["test"]["score"] *= 1.001

    done = python("-m", "compare", "verify", planted(packed, tmp_path / "planted.zip", change), "--only", label(packed))
    assert done.returncode == 1
    assert "torch was 1.0" in done.stdout and "data.test: " in done.stdout and "test.score" not in done.stdout


def label(packed):
    (found,) = {run["label"] for run in bundle.recorded(packed, bundle.unpack(packed)) if run["mixer"] == "gla"}
    return found


def test_without_a_new_manifest_a_change_is_not_even_run(packed, tmp_path):
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(broken, "w") as file:
        for name in source.namelist():
            file.writestr(name, source.read(name).replace(b"finished", b"Finished"))
    with pytest.raises(ValueError, match="was changed"):
        bundle.verify(broken)


def test_a_class_that_is_not_in_conf_is_not_called(packed, tmp_path):
    def change(record):
        record["config"]["model"]["_target_"] = "os.system"
        record["config_hash"] = results.config_hash(record["config"])

    members = bundle.unpack(planted(packed, tmp_path / "evil.zip", change))
    with pytest.raises(ValueError, match="does not have the hash"):
        bundle.recorded(packed, members)
    for name in list(members):
        if name.endswith(results.FILE):
            members[name.replace(results.FILE, bundle.CONFIG)] = json.dumps(
                json.loads(members[name])["config"]
            ).encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    manifest = json.dumps({"version": bundle.VERSION, "members": hashes}).encode()
    evil = bundle._zip(tmp_path / "evil.zip", members | {bundle.MANIFEST: manifest})
    with pytest.raises(ValueError, match="names the class os.system"):
        bundle.verify(evil)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip"])
def test_what_is_no_bundle_is_a_sentence(content, tmp_path):
    (tmp_path / "x.zip").write_bytes(content)
    done = python("-m", "compare", "verify", tmp_path / "x.zip")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_fractions_may_differ_by_the_tolerance_and_counts_never():
    stored = {"test": {"score": 0.5, "n": 100}, "data": {"test": "ab"}, "curve": [{"seconds": 1.0, "step": 3}]}
    again = {"test": {"score": 0.504, "n": 100}, "data": {"test": "ab"}, "curve": [{"seconds": 2.0, "step": 3}]}
    assert list(bundle.differences(stored, again, 0.01)) == []
    assert list(bundle.differences(stored, again, 0.0)) == ["test.score: 0.5 vs 0.504"]
    assert list(bundle.differences(stored, again | {"curve": [{"step": 4}]}, 0.01)) == ["curve.0.step: 3 vs 4"]
    assert list(bundle.differences(stored, again | {"test": {"score": 0.6, "n": 101}}, 0.01)) == [
        "test.score: 0.5 vs 0.6",
        "test.n: 100 vs 101",
    ]


@pytest.mark.slow
def test_a_comparison_that_learns_repeats_bit_for_bit(tmp_path):
    real = [
        *("trainer.max_steps=40", "trainer.val_check_interval=20", "task.data.batch_size=16", "logger=none"),
        *("probe=false", "task.data.test=[{length: 64, pairs: 4, n: 200}, {length: 256, pairs: 64, n: 50}]"),
    ]
    assert python("train.py", "-m", "mixer=softmax,linear_attention", *real, f"runs={tmp_path}").returncode == 0
    packed = bundle.pack(tmp_path, tmp_path / "bundle.zip")
    done = python("-m", "compare", "verify", packed)
    assert done.returncode == 0 and done.stdout.count("same, bit for bit") == 2, done.stdout

    def change(record):
        record["slices"][0]["score"] += 0.001

    only = next(run["label"] for run in bundle.recorded(packed, bundle.unpack(packed)) if run["mixer"] == "softmax")
    done = python("-m", "compare", "verify", planted(packed, tmp_path / "planted.zip", change), "--only", only)
    assert done.returncode == 1 and done.stdout.count("slices.0.score: ") == 1, done.stdout
