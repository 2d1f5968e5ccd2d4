"""The command line as a user meets it: real processes, real Hydra, Lightning and W&B, tiny sizes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from compare.run import open_logger
from models.learner import read_checkpoint

ROOT = Path(__file__).parent.parent
TINY = [
    "model.d_model=16",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "learner.log_every=1",
    "probe=false",
    "task.data.batch_size=4",
    "task.data.train=[{length: 16, pairs: 2, n: 64}]",
    "task.data.validation=[{length: 16, pairs: 2, n: 8}]",
    "task.data.test=[{length: 16, pairs: 2, n: 8}, {length: 24, pairs: 4, n: 8}]",
]


def start(*arguments, runs, **more):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_DATA_DIR": str(runs), "WANDB_CACHE_DIR": str(runs)}
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments, f"runs={runs}"],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def train(*arguments, runs):
    process = start(*arguments, runs=runs)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def record(directory):
    return json.loads((directory / "result.json").read_text())


def only(runs):
    """The one directory below runs that holds a result."""
    (path,) = runs.rglob("result.json")
    return path.parent


def comparable(curve):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("finished")
    code, out, err = train("mixer=gla", *TINY, runs=runs)
    assert code == 0, err
    return runs, out, err


def test_a_run_leaves_its_record(finished):
    runs, out, _ = finished
    directory = only(runs)
    assert directory.parts[-3] == "recall" and directory.parts[-2].startswith("gla,") and directory.name == "0"
    result = record(directory)
    assert result["outcome"] == "finished" and result["mixer"] == "gla" and result["seed"] == 0
    assert [s["name"] for s in result["slices"]] and len(result["slices"]) == 2
    assert result["engine"] == "native" and result["config"]["engine"] == "auto"
    assert result["engine_details"]["why"] == "the fastest for cpu"
    assert result["engine_details"]["served"]["linear_attention"] == ["native"]
    assert 0 <= result["test"]["score"] <= 1 and result["parameters"]["total"] > 0
    assert [row["step"] for row in result["curve"]] == [1, 2, 3, 4]
    header = (directory / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"step", "lr", "train/loss", "validation/score"} <= set(header)
    assert "step 4/4" in out
    assert read_checkpoint(directory / "last.ckpt")["seqmix"]["config"] == result["config"]


def test_a_finished_run_is_not_run_again(finished):
    runs, *_ = finished
    before = record(only(runs))
    code, out, err = train("mixer=gla", *TINY, runs=runs)
    assert code == 0 and "already done" in out, err
    assert record(only(runs)) == before


def test_another_configuration_in_the_same_place_is_refused(finished):
    runs, *_ = finished
    path = only(runs) / "result.json"
    whole = path.read_text()
    foreign = json.loads(whole)
    foreign["config"]["optimizer"]["lr"] = 9.0
    foreign["config_hash"] = "other"
    path.write_text(json.dumps(foreign))
    code, _, err = train("mixer=gla", *TINY, runs=runs)
    assert code != 0 and "optimizer.lr" in err and "Traceback" not in err
    path.write_text(whole[: len(whole) // 2])
    code, _, err = train("mixer=gla", *TINY, runs=runs)
    assert code != 0 and "result.json" in err and "Traceback" not in err
    path.write_text(whole)


def test_a_list_in_a_label_is_no_trouble_to_wandb(monkeypatch):
    monkeypatch.setattr("compare.run.instantiate", lambda _, **given: SimpleNamespace(log_hyperparams=len, **given))
    label = "gla,task.data.train=[{length: 256, n: 10}],task.data.root='a/b#c?;d'"
    record = {"label": label, "seed": 0, "task": "induction", "config_hash": "0123456789", "sweep": "", "mixer": "gla"}
    logger = open_logger(OmegaConf.create({"logger": {"any": 1}}), record | {"config": {}})
    assert not set(logger.id) & set(":;,#?/'") and logger.id.startswith("induction-gla-task.data.train-[{length- 256")


def test_wandb_offline_holds_the_run(finished):
    runs, _, err = finished
    assert "wandb" not in err
    out = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", runs / "wandb"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    summary = json.loads(out)
    text = json.dumps(summary)
    assert "test/all" in text and "config_hash" in text and "gla" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["mixer=gal"], ["mixer/gal", "gla"]),
        (["mixr=gla"], ["mixr"]),
        (["mixer.n_headz=4"], ["n_headz"]),
        (["+mixer.foo=3", *TINY], ["foo"]),
        (["mixer.n_heads=3", *TINY], ["n_heads", "16"]),
        (["model.backbone.pattern=[]", *TINY], ["pattern"]),
        (["experiment=hybrid", "mixer=gla", *TINY], ["mixer is composed but"]),
        (["mixer=gla", "mixer=softmax"], ["mixer=gla and mixer=softmax say the same thing twice"]),
        (["+optimizer.foo=1", *TINY], ["foo"]),
        (["mixer=fnet", *TINY], ["looks ahead"]),
        (["ckpt=last", *TINY], ["ckpt=last"]),
        (["ckpt=/nowhere/x.ckpt", *TINY], ["/nowhere/x.ckpt"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else None,
)
def test_bad_input_is_one_clear_sentence(arguments, words, tmp_path):
    code, out, err = train(*arguments, runs=tmp_path)
    assert code != 0
    assert all(word in out + err for word in words), err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unwritable_place_is_one_clear_sentence(tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    for words in ([], ["-m"]):
        code, _, err = train(*words, *TINY, runs=place)
        assert code != 0 and f"runs={place} cannot be written to" in err and err.count("\n") == 1


def test_a_corrupt_checkpoint_is_one_clear_sentence(tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(b"PK not a checkpoint")
    code, _, err = train(f"ckpt={tmp_path}/bad.ckpt", *TINY, runs=tmp_path / "runs")
    assert code != 0 and "bad.ckpt is not a whole checkpoint" in err and "Traceback" not in err


LONGER = [word for word in TINY if not word.startswith("trainer")]
LONGER += ["mixer=delta_net", "logger=none", "trainer.max_steps=150", "trainer.val_check_interval=25"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    code, _, err = train(*LONGER, runs=runs)
    assert code == 0, err
    return record(only(runs))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "crash"])
def test_a_cut_run_goes_on_to_the_same_numbers(number, whole, tmp_path):
    process = start(*LONGER, runs=tmp_path)
    for line in process.stdout:
        if "step 75/150" in line:
            process.send_signal(number)
            break
    process.communicate(timeout=120)
    assert process.returncode != 0
    if number != signal.SIGKILL:
        cut = record(only(tmp_path))
        assert cut["outcome"] == "interrupted" and 75 <= cut["curve"][-1]["step"] < 150
    code, out, err = train("ckpt=last", *LONGER, runs=tmp_path)
    assert code == 0 and "going on from" in out, err
    again = record(only(tmp_path))
    assert again["test"] == whole["test"] and comparable(again["curve"]) == comparable(whole["curve"])


def test_a_run_killed_before_its_record_ends_with_the_same_one(finished, tmp_path):
    runs, *_ = finished
    shutil.copytree(runs, tmp_path / "runs")
    (only(tmp_path / "runs") / "result.json").unlink()
    code, _, err = train("mixer=gla", *TINY, runs=tmp_path / "runs")
    assert code == 0, err
    again, before = record(only(tmp_path / "runs")), record(only(runs))
    assert [again[key] == before[key] for key in ("validation", "test", "slices")] == [True] * 3
    assert comparable(again["curve"]) == comparable(before["curve"])


def test_ctrl_c_ends_the_whole_sweep(tmp_path):
    process = start("-m", *LONGER, "seed=0,1", runs=tmp_path)
    for line in process.stdout:
        if "step 25/150" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "the same command goes on" in err and "Traceback" not in err
    assert record(only(tmp_path))["outcome"] == "interrupted" and "seed=1" not in out


def test_a_loss_that_is_not_finite_names_the_layer_and_is_a_record(tmp_path):
    code, _, err = train("mixer=gla", *TINY, "logger=none", "optimizer.lr=1e30", runs=tmp_path)
    kept = record(only(tmp_path))
    assert code != 0 and kept["outcome"] == "diverged" and "Traceback" not in err
    assert re.search(r"the loss is nan at step \d, first in (embed|backbone\.\S+)", kept["reason"]), kept["reason"]
    assert kept["reason"] in err and "test" not in kept


def test_steps_that_no_interval_ends_at_are_validated(tmp_path):
    words = [word for word in TINY if not word.startswith("trainer")]
    code, _, err = train(*words, "logger=none", "trainer.max_steps=3", runs=tmp_path)
    assert code == 0, err
    (at,) = [row["step"] for row in record(only(tmp_path))["curve"] if "validation/score" in row]
    assert at == 3


def test_a_multirun_compares_what_can_be_compared(tmp_path):
    code, out, err = train("-m", "mixer=softmax,fnet", "seed=0,1", *TINY, runs=tmp_path)
    assert code == 1, "an impossible pair is not a finished run"
    assert {r["outcome"] for r in map(lambda p: record(p.parent), tmp_path.rglob("result.json"))} == {
        "finished",
        "impossible",
    }
    (report,) = tmp_path.rglob("report.html")
    assert "looks ahead" in (report.parent / "comparison.md").read_text()
    assert "softmax" in out and "Traceback" not in err
    # data and backbone do not depend on the mixer
    hashes = {json.dumps(r["data"]) for p in tmp_path.rglob("result.json") if (r := record(p.parent)).get("data")}
    assert len(hashes) == 1


def test_help_and_typing_errors_import_nothing_heavy(tmp_path):
    code = (
        "import sys, train\nsys.argv = ['train.py', '--help']\n"
        "try: train.main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'lightning', 'wandb') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.rstrip().endswith("[]") and "mixer" in out


def test_a_second_package_plugs_in_with_no_edit_here(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    (theirs / "conf" / "mixer").mkdir(parents=True)
    (theirs / "__init__.py").write_text("")
    (theirs / "conf" / "__init__.py").write_text("")
    (theirs / "leak.py").write_text(
        "import torch\nfrom torch import nn\nfrom mixers.base import Mixer\n\n\n"
        "class Leak(Mixer):\n    def __init__(self, d_model, *, rate):\n        super().__init__()\n"
        "        self.rate, self.map = rate, nn.Linear(d_model, d_model)\n\n"
        "    def forward(self, x, state=None, mask=None):\n"
        "        h, out = torch.zeros_like(x[:, 0]) if state is None else state, []\n"
        "        for z in self.map(x).unbind(1):\n            h = self.rate * h + z\n            out.append(h)\n"
        "        return torch.stack(out, 1), h\n"
    )
    (theirs / "conf" / "mixer" / "leak.yaml").write_text("_target_: theirs.leak.Leak\n_partial_: true\nrate: 0.9\n")
    plugin = tmp_path / "hydra_plugins" / "theirs"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(
        "from hydra.core.config_search_path import ConfigSearchPath\n"
        "from hydra.plugins.search_path_plugin import SearchPathPlugin\n\n\n"
        "class Theirs(SearchPathPlugin):\n"
        "    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:\n"
        "        search_path.append('theirs', 'pkg://theirs.conf')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = subprocess.run(
        [
            sys.executable,
            "-c",
            "import mixers; print('leak' in mixers.names(), type(mixers.build('leak', d_model=8)).__name__)",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert seen.split() == ["True", "Leak"]
    code, _, err = train("mixer=leak", *TINY, runs=tmp_path / "runs")
    assert code == 0, err
    assert record(only(tmp_path / "runs"))["mixer"] == "leak"
