"""What a command line may say, and what it makes of a run's name and place."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from compare import identity, overrides, results


@pytest.fixture
def composed():
    with initialize_config_module("conf", version_base="1.3"):

        def make(*words):
            cfg = compose("train", overrides=list(words), return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
            cfg.label = identity.label()
            return cfg

        yield make
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["experiment=hybrid", "mixer=gla"], "mixer is composed but model.backbone.pattern="),
        (["+mixer@mixers.c=gla"], "mixers.c is composed but"),
        (["+foo=1"], "nothing reads foo: leave it out"),
        (["+task.foo=1"], "nothing reads task.foo: leave it out"),
        (["task.length=32", "task.data.train=[]", "task.data.test=[]"], "task.length has no effect: recall gives"),
        (["match_to=gla"], "match_to has no effect without match="),
        (["select_trials=3"], "select_trials has no effect without select="),
        (["selection_seeds=[1]"], "selection_seeds has no effect without select="),
    ],
)
def test_what_a_run_would_ignore_is_refused(composed, words, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        overrides.unused(composed(*words))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["experiment=hybrid", "mixers.a.n_heads=2"],
        ["match=params", "match_to=gla"],
        ["select='optimizer.lr=1e-3,3e-3'", "selection_seeds=[1]"],
        ["task=bytes", "task.length=32"],
        ["+foo=1", "optimizer.lr=${foo}"],
    ],
)
def test_what_a_run_reads_is_not(composed, words):
    overrides.unused(composed(*words))


def test_a_key_that_is_given_twice_is_named():
    words = ["-m", "mixer=gla", "seed=0", "++seed=1", "--cfg", "job", "mixer=softmax"]
    assert overrides.repeated(words) == ["mixer=gla", "mixer=softmax"]
    assert overrides.repeated(["seed=0", "+seed=1"]) == ["seed=0", "+seed=1"]
    assert overrides.repeated(["mixer=gla", "mixer.n_heads=2", "-m", "-m"]) == []


def test_a_grid_gets_back_the_quotes_that_a_shell_took():
    assert overrides.quoted(["select=optimizer.lr=1,2"]) == ['select="optimizer.lr=1,2"']
    for word in ('select="optimizer.lr=1,2"', "select='a=1,2'", "select=null", "mixer=a,b"):
        assert overrides.quoted([word]) == [word]


def test_a_label_is_what_tells_runs_apart(composed):
    def label(*words):
        return composed(*words).label

    assert label() == label("seed=3", "task=copying", "threads=2", "probe=false", "logger=none", "aa=true") == "softmax"
    assert label("select='optimizer.lr=1,2'", "selection_seeds=[1]", "select_trials=3") == "softmax"
    assert label("mixer=gla", "optimizer.lr=1", "mixer.n_heads=2") == "gla,mixer.n_heads=2,optimizer.lr=1"
    swapped = ["experiment=hybrid", "mixer@mixers.a=gla", "mixer@mixers.b=s4d"]
    assert {label(*swapped), label(swapped[0], "mixer@mixers.a=s4d", "mixer@mixers.b=gla")} == {"gla+s4d", "s4d+gla"}
    long = [label(f"+note={'x' * 100}{i}") for i in range(2)]
    assert {len(text) for text in long} == {80} and long[0] != long[1] and long[0].startswith("softmax,note=xx")


def test_a_run_has_a_place_of_its_own(composed):
    assert identity.place(composed("runs=r", "seed=2")) == Path("r/recall/softmax/2")
    cfg = composed("runs=r", "experiment=smoke", "mixer=gla", "task=copying")
    assert identity.place(cfg) == Path("r/smoke/copying/gla/0")
    cfg = composed("runs=r", "experiment=mad_difficulty", "task=noisy_recall", "level=noise_40", "mixer=gla")
    assert identity.place(cfg) == Path("r/mad_difficulty/noisy_recall-noise_40/gla/0")  # its data are its own


def test_the_hash_is_of_what_a_run_is_and_not_of_where_it_lies(composed, monkeypatch):
    monkeypatch.setenv(identity.SWEEP, "s7")
    record = identity.described(composed())
    moved = identity.described(composed("runs=elsewhere", "threads=3", "probe=false", "logger=none", "aa=true"))
    assert record["config_hash"] == moved["config_hash"] == results.config_hash(moved["config"])
    assert record["config_hash"] != identity.described(composed("optimizer.lr=1"))["config_hash"]
    assert (record["sweep"], record["task"], record["mixer"], record["seed"]) == ("s7", "recall", "softmax", 0)


def test_what_is_done_is_not_done_again(tmp_path, record, stopped):
    whole = record("gla", 0)
    again = {"sweep": "s2", "config": whole["config"], "config_hash": whole["config_hash"]}
    assert identity.done(again, tmp_path) is None
    for outcome, kept in (("impossible", True), ("interrupted", False), ("diverged", False), ("failed", False)):
        results.write(tmp_path, stopped("gla", 0, outcome, "why"))
        assert (identity.done(again, tmp_path) is not None) == kept
    results.write(tmp_path, whole)
    assert identity.done(again | {"sweep": ""}, tmp_path) == whole
    identity.done(again, tmp_path)
    assert results.read(tmp_path / results.FILE) == whole | {"sweep": "s2"}  # the sweep's report shows it too
    other = {"sweep": "", "config": {"seed": 9}, "config_hash": "other"}
    with pytest.raises(ValueError, match="holds a run that differs in seed: remove it, or choose another runs="):
        identity.done(other, tmp_path)
