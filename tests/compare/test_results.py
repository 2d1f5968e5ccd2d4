"""The record: what is refused, what survives, and what the messages say."""

import json
import subprocess
import sys

import pytest

from compare import results

RECORD = {
    "version": results.VERSION,
    "outcome": "finished",
    "reason": "",
    "sweep": "s1",
    "task": "recall",
    "mixer": "softmax",
    "label": "softmax",
    "seed": 0,
    "config": {"mixer": {"n_heads": 4}},
    "config_hash": "0",
    "code": "abc",
    "environment": {},
    "protocol": {"steps": 10},
    "test": {"score": 0.5, "loss": 1.0},
}


UNTESTED = {key: value for key, value in RECORD.items() if key != "test"}


def test_a_record_comes_back(tmp_path):
    path = results.write(tmp_path / "a" / "0", RECORD)
    assert path.name == results.FILE
    assert results.read(path) == RECORD
    assert [p.name for p in path.parent.iterdir()] == [results.FILE]  # nothing temporary stays


def test_a_record_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = results.write(tmp_path, RECORD)

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path, RECORD | {"seed": 1})
    assert results.read(path) == RECORD


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    record = RECORD | {"curve": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}]}
    text = results.write(tmp_path, record).read_text()
    curve = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["curve"]
    assert [point["loss"] for point in curve] == [None, None]


@pytest.mark.parametrize("key", sorted(results.REQUIRED))
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(ValueError, match=f"lacks the key '{key}'"):
        results.write(tmp_path, {k: v for k, v in RECORD.items() if k != key})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"seed": "0"}, ValueError, "'seed'.*must be int, not str"),
        ({"seed": True}, ValueError, "'seed'.*must be int, not bool"),
        ({"data": []}, ValueError, "'data'.*must be dict, not list"),
        ({"outcome": "fine"}, ValueError, "must be one of finished, impossible"),
        ({"version": 99}, ValueError, "must be 1, not 99"),
        ({"test": {"loss": 1.0}}, ValueError, "lacks the key 'test.score'"),
        ({"protocol": {"a": [object()]}}, TypeError, r"record.protocol.a\[0\] is a object"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        results.write(tmp_path, RECORD | change)


def test_an_outcome_other_than_finished_needs_no_score(tmp_path):
    record = UNTESTED | {"outcome": "impossible", "reason": "looks ahead"}
    assert results.read(results.write(tmp_path, record))["reason"] == "looks ahead"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(RECORD)[:40], "truncated or not JSON: delete it"),
        ("[1]", "not a record of a run"),
        ("{}", "not a record of a run"),
        (json.dumps(RECORD | {"version": 7}), "version 7, this code reads version 1"),
        (json.dumps({"version": 1, "task": "x"}), "lacks the key 'outcome': delete it"),
        (json.dumps(RECORD | {"curve": {}}), r"record\['curve'\] must be list, not dict: delete it"),
        (json.dumps(RECORD | {"seed": True}), r"record\['seed'\] must be int, not bool"),
        (json.dumps(RECORD | {"outcome": "fine"}), "must be one of finished"),
        (json.dumps(RECORD | {"test": {}}), "lacks the key 'test.score'"),
        (json.dumps(RECORD | {"trial": {"lr": 1}}), "must not hold test figures"),
        (json.dumps(UNTESTED | {"trial": {"lr": 1}, "slices": []}), "must not hold test figures"),
        (json.dumps(UNTESTED | {"trial": {"lr": 1}}), "lacks the key 'validation.score'"),
        ("\udcff", "truncated or not JSON"),
    ],
)
def test_a_file_that_is_no_record_says_so(tmp_path, text, words):
    (tmp_path / results.FILE).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=words) as caught:
        results.read(tmp_path / results.FILE)
    assert str(tmp_path) in str(caught.value)


def test_a_sweep_reads_its_own_records_and_nothing_else(tmp_path):
    for seed, sweep in enumerate(["s1", "s2", "s1"]):
        results.write(tmp_path / str(seed), RECORD | {"seed": seed, "sweep": sweep})
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / results.FILE).write_text('{"version": 1, "swe')
    found = results.read_all(tmp_path, "s1")
    assert [r["seed"] for r in found] == [0, 2]
    assert found[1]["path"] == str(tmp_path / "2" / results.FILE)
    with pytest.raises(ValueError, match="old"):
        results.read_all(tmp_path)
    (tmp_path / "old" / results.FILE).write_text('{"version": 1, "sweep": "s1", "outc')
    with pytest.raises(ValueError, match="truncated"):
        results.read_all(tmp_path, "s1")


def test_a_mention_of_the_sweep_elsewhere_in_a_record_is_not_membership(tmp_path):
    results.write(tmp_path, RECORD | {"sweep": "s2", "config": {"note": "s1"}})
    with pytest.raises(ValueError, match="no run of sweep s1 left a record"):
        results.read_all(tmp_path, "s1")


def test_csv_has_every_key(tmp_path):
    path = results.write_csv(tmp_path / "metrics.csv", [{"step": 1, "loss": 0.5}, {"step": 2, "score": 0.1}])
    assert path.read_text() == "step,loss,score\n1,0.5,\n2,,0.1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_the_hash_follows_values_not_order():
    a = {"a": 1, "b": {"c": 2, "d": [1, 2]}}
    assert results.config_hash(a) == results.config_hash({"b": {"d": [1, 2], "c": 2}, "a": 1})
    assert results.config_hash(a) != results.config_hash({"a": 1, "b": {"c": 2, "d": [2, 1]}})


def test_differing_keys_are_dotted():
    a = {"a": 1, "b": {"c": 2, "d": None, "e": {}}, "same": 0}
    b = {"a": 2, "b": {"c": 2, "e": {"f": 1}}, "same": 0}
    assert results.differing_keys(a, b) == ["a", "b.d", "b.e", "b.e.f"]
    assert results.differing_keys(a, a) == []


def test_the_code_version_follows_the_sources(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "mixers").mkdir()
    source = tmp_path / "mixers" / "a.py"
    source.write_text("1")
    outside = results.code()
    assert outside.startswith("source-")
    source.write_text("2")
    assert results.code() != outside
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    clean = results.code()
    assert len(clean) == 12
    assert not clean.startswith("source-")
    (tmp_path / "notes.txt").write_text("not code")
    assert results.code() == clean
    source.write_text("3")
    dirty = results.code()
    assert dirty.startswith(f"{clean}-dirty-")
    source.write_text("4")
    assert results.code() != dirty


def test_the_environment_is_plain(tmp_path):
    environment = results.environment()
    assert {"python", "torch", "platform", "cpu", "threads", "code", "dirty"} <= environment.keys()
    results.write(tmp_path, RECORD | {"environment": environment})


def test_reading_records_needs_the_standard_library_only():
    heavy = "('torch', 'scipy', 'matplotlib', 'numpy')"
    program = f"import compare.results, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=results.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
