"""A multirun from its sweep id to its exit code, through Hydra itself."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

from compare import callback, results

APP = """
import json, os
from pathlib import Path
import hydra
from compare import callback, results

@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg):
    record = json.loads(Path(cfg.record).read_text()) | {
        "label": cfg.label, "mixer": cfg.label, "seed": cfg.seed, "sweep": os.environ["SEQMIX_SWEEP"],
    }
    if cfg.label == "bad":
        record |= {"outcome": "diverged", "reason": "nan"}
    if cfg.label == "other":
        record["engine"] = "other"
    results.write(Path(cfg.runs) / cfg.label / str(cfg.seed), record)

main()
"""


@pytest.fixture
def multirun(tmp_path, record):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "record.json").write_text(json.dumps(record("x", 0)))
    config = {
        "runs": str(tmp_path / "runs"),
        "record": str(tmp_path / "record.json"),
        "label": "a",
        "seed": 0,
        "logger": None,
        "hydra": {
            "sweep": {"dir": str(tmp_path / "hydra")},
            "callbacks": {"compare": {"_target_": "compare.callback.CompareCallback"}},
        },
    }
    (tmp_path / "app.yaml").write_text(json.dumps(config))
    places = {f"WANDB_{name}_DIR": str(tmp_path / "wandb" / name) for name in ("DATA", "CACHE", "CONFIG")}

    def call(*overrides):
        return subprocess.run(
            [sys.executable, str(tmp_path / "app.py"), "-cd", str(tmp_path), "-m", *overrides],
            cwd=tmp_path,
            env=os.environ | places | {"PYTHONPATH": str(results.ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    return call


def test_a_sweep_ends_with_its_report(multirun, tmp_path, record):
    results.write(tmp_path / "runs" / "earlier" / "0", record("earlier", 0, sweep="before"))
    done = multirun("label=softmax,gla", "seed=0,1,2")
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "runs" / "comparisons").rglob("report.html")
    records = results.read_all(tmp_path / "runs", page.parent.name)
    assert len(records) == 6
    assert str(page) in done.stdout
    assert "earlier" not in page.read_text()
    assert not (tmp_path / "wandb").exists()


def test_an_outcome_other_than_finished_ends_with_1_after_the_report(multirun, tmp_path):
    done = multirun("label=a,bad")
    assert done.returncode == 1
    (page,) = (tmp_path / "runs" / "comparisons").rglob("report.html")
    assert "diverged" in page.read_text()
    assert "Traceback" not in done.stderr


def test_a_refusal_is_a_sentence_and_1(multirun, tmp_path):
    done = multirun("label=a,other")
    assert done.returncode == 1
    assert (
        "error: the runs of task recall cannot be compared: engine is torch in a seed 0, other in other seed 0"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_the_comparison_is_one_finished_wandb_run(multirun, tmp_path):
    done = multirun("label=a,b", f"logger={{project:test,save_dir:{tmp_path}/runs,offline:true}}")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "runs" / "wandb").glob("offline-run-*-comparison-*/*.wandb")
    assert log.read_bytes()[:4] == b":W&B"
    (table,) = (tmp_path / "runs" / "wandb").rglob("*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"][:2] == ["task", "mixer"]
    assert [row[1] for row in shown["data"]] == ["a", "b", "chance", "majority"]
    assert list((tmp_path / "runs" / "wandb").rglob("*.html"))
    assert "wandb" not in done.stdout.lower()


def kept(path):
    """What an offline file holds: the run's record, the summary, and the last value of every metric. The log is in
    frames of 32 KiB, as LevelDB's, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    position, part, run, summary, history = 7, b"", None, {}, {}
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, n, kind = struct.unpack_from("<IHB", data, position)
        part, position = part + data[position + 7 : position + 7 + n], position + 7 + n
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part, what = b"", record.WhichOneof("record_type")
            run = record.run if what == "run" else run
            for items, into in ((record.summary.update, summary), (record.history.item, history)):
                into |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
    return run, summary, history


def test_the_comparison_reads_back_from_its_offline_file(multirun, tmp_path):
    done = multirun("label=a,b", f"logger={{project:test,save_dir:{tmp_path}/runs,offline:true}}")
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "runs" / "wandb").glob("offline-run-*-comparison-*/*.wandb")
    run, summary, history = kept(log)
    (page,) = (tmp_path / "runs" / "comparisons").rglob("report.html")
    assert (run.run_group, run.job_type, list(run.tags)) == ("recall", "compare", [page.parent.name, "recall"])
    assert (summary["recall/a"], summary["recall/b"]) == (0.5, 0.5)
    assert not any("chance" in key for key in summary)
    assert (history["comparison._type"], history["comparison.nrows"]) == ("table-file", 4)
    drawn = [key.removesuffix("._type") for key, value in history.items() if value == "html-file"]
    assert {"report", "recall/accuracy by pairs", "recall/accuracy against state"} < set(drawn) and len(drawn) == 8
    wandb = Path(sys.executable).with_name("wandb")  # its own reader of offline runs
    words = [wandb, "leet", "inspect", "--summary", "--json", tmp_path / "runs" / "wandb"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"comparison-{page.parent.name}" in shown and "recall/a" in shown and "accuracy by pairs" in shown


def test_a_run_reads_back_from_its_offline_file(tmp_path, monkeypatch):
    import wandb

    from compare.logger import RunLogger

    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")  # which the logger sets, and the next test must not find
    place = {"project": "test", "save_dir": str(tmp_path), "offline": True, "id": "recall-gla-s0"}
    logger = RunLogger(**place, name="gla-s0", group="recall", job_type="train", tags=["recall", "gla", "s1"])
    for step, score in enumerate((0.2, 0.9, 0.6)):
        logger.log_metrics({"validation/score": score, "trainer/global_step": step}, step=step)
    wandb.finish()
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    run, summary, history = kept(log)
    for _ in range(100):  # W&B's writer is a process of its own, which a busy machine may keep waiting
        if "validation/score" in history and summary:
            break
        time.sleep(0.2)
        run, summary, history = kept(log)
    assert (run.run_group, run.display_name, list(run.tags)) == ("recall", "gla-s0", ["recall", "gla", "s1"])
    assert history["validation/score"] == 0.6 and history["trainer/global_step"] == 2
    best = summary.get("validation/score.max", summary.get("validation/score", {}))
    assert (best["max"] if isinstance(best, dict) else best) == 0.9


def test_a_wandb_run_that_fails_is_finished_too(tmp_path, record, monkeypatch):
    import wandb

    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    (tmp_path / "comparison.csv").write_text("task,mixer\nrecall,a\n")  # and no page beside it
    config = OmegaConf.create({"runs": str(tmp_path), "logger": {"project": "test", "offline": True}})

    def broken(path):
        raise RuntimeError("planted")

    monkeypatch.setattr(wandb, "Html", broken)
    with pytest.raises(RuntimeError, match="planted"):
        callback.log_comparison(config, [record("a", 0)], tmp_path, "s1", {})
    assert wandb.run is None


def test_a_comparison_without_a_single_score_is_logged_too(tmp_path, monkeypatch):
    import wandb

    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    (tmp_path / "comparison.csv").write_text("task,mixer,outcome\nrecall,a,failed\n")  # and so no mean
    (tmp_path / "report.html").write_text("<p>")
    config = OmegaConf.create({"runs": str(tmp_path), "logger": {"project": "test", "offline": True}})
    callback.log_comparison(config, [{"task": "recall"}], tmp_path, "s1", {})
    assert wandb.run is None and list(tmp_path.rglob("offline-run-*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mixer=gla,softmax"], "softmax"),
        (["mixer=gla,mamba2"], "gla"),
        (["mixer=gla"], "gla"),
        (["mixer=glob(s*,exclude=sl*)"], "softmax"),
        (["seed=0,1"], ""),
    ],
)
def test_the_baseline_is_known_before_the_runs(words, expected):
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.create({"hydra": {"sweeper": {"params": None}, "overrides": {"task": words}}})
        assert callback.baseline(callback.swept(config, "mixer")) == expected
        config.hydra.sweeper.params = {"mixer": "softmax,identity"}
        config.hydra.overrides.task = ["mixer=gla,mamba2"]  # the command line counts
        assert callback.baseline(callback.swept(config, "mixer")) == "gla"
