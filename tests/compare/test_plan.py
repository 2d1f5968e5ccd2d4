"""Budgets that are met or said not to be, values that validation alone chose, and a twin that shows the noise."""

import json
import math
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module

from compare import budget, notes, plan, results
from compare.comparison import compare

TINY = [
    *("model.d_model=16", "trainer.max_steps=4", "trainer.val_check_interval=2", "logger=none", "probe=false"),
    *("task.data.batch_size=4", "task.data.train=[{length: 16, pairs: 2, n: 64}]"),
    "task.data.validation=[{length: 16, pairs: 2, n: 8}]",
    "task.data.test=[{length: 16, pairs: 2, n: 8}, {length: 24, pairs: 4, n: 8}]",
]


def train(*arguments, runs):
    done = subprocess.run(
        [sys.executable, "train.py", *arguments, *TINY, f"runs={runs}"],
        cwd=results.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def config():
    with initialize_config_module("conf", version_base="1.3"):

        def make(*overrides):
            cfg = compose("train", overrides=["task.max_length=64", *overrides])
            cfg.label = "a"
            return cfg

        yield make


# -- the solver -------------------------------------------------------------------------------------------------------


def refusing(n):
    if n % 6:
        raise ValueError("it does not divide")
    return n


@pytest.mark.parametrize(
    ("measure", "start", "target", "best"),
    [
        (lambda n: 3 * n, 4, 300, 100),
        (lambda n: 3 * n, 400, 300, 100),
        (lambda n: n * n, 4, 10_000, 100),
        (lambda n: 1200 / n, 2, 12, 100),  # falls with the size
        (lambda n: 1200 / n, 1000, 12, 100),
        (refusing, 6, 602, 600),
        (lambda n: min(n, 50), 4, 300, 64),  # what it can reach
    ],
)
def test_a_size_is_moved_to_the_closest(measure, start, target, best):
    sizes, reached = budget.solve(lambda s: measure(s["n"]), {"n": start}, target)
    assert sizes["n"] == best and reached == measure(best)


def test_the_next_size_moves_only_where_the_first_is_not_enough():
    assert budget.solve(lambda s: min(s["a"], 8) * s["b"], {"a": 4, "b": 4}, 400) == ({"a": 4, "b": 100}, 400)
    both = budget.solve(lambda s: min(s["a"], 8) * min(s["b"], 64), {"a": 4, "b": 4}, 400)
    assert both == ({"a": 8, "b": 50}, 400)
    assert budget.solve(lambda s: s["a"] * s["b"], {"a": 4, "b": 4}, 400) == ({"a": 100, "b": 4}, 400)
    assert budget.solve(lambda s: s["a"], {"a": 99}, 100) == ({"a": 99}, 99)  # within the tolerance


# -- match ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["params", "state", "flops"])
@pytest.mark.parametrize("mixer", ["mamba2", "sliding_window", "gsa"])
def test_a_budget_is_met_by_sizes_and_never_by_depth(config, mixer, by):
    cfg = config(f"mixer={mixer}", f"match={by}", "match_to=softmax")
    before = results.flat(json.loads(json.dumps(plan.OmegaConf.to_container(cfg, resolve=True))))
    done = plan.match(cfg, lambda name: config(f"mixer={name}"))
    after = results.flat(plan.OmegaConf.to_container(cfg, resolve=True))
    changed = set(results.differing_keys(before, after)) - {"model.backbone.pattern"}  # which repeats the mixer
    assert changed == set(done["moved"]) <= set(done["sizes"])
    again = budget.cost(lambda: plan.instantiate(cfg.model), by, 64)
    target = budget.cost(lambda: plan.instantiate(config("mixer=softmax").model), by, 64)
    assert again == done["reached"] and target == done["target"]
    assert done["met"] == (abs(again / target - 1) <= 0.02)
    assert by == "flops" or (mixer, by) == ("sliding_window", "params") or done["met"], notes.matched(done)
    if by == "state":
        assert plan.MLP not in done["sizes"]


def test_only_params_may_move_the_mlp_and_it_says_so(config):
    cfg = config("mixer=gla", "match=params", "match_to=200000")
    done = plan.match(cfg, config)
    assert done["met"] and list(done["moved"]) == [plan.MLP]
    assert f"{plan.MLP} 2 -> " in notes.matched(done)


def test_what_cannot_be_met_says_what_it_could_reach(config):
    done = plan.match(config("mixer=gla", "match=state", "match_to=1000000"), config)
    assert not done["met"] and "does NOT match 1,000,000 bytes of state" in notes.matched(done)
    assert f"it could reach {done['reached']:,.0f}" in notes.matched(done) and "no sizes" in notes.matched(done)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["match=depth"], "match=depth: it must be params, state, flops"),
        (["match=state", "match_to=sofmax"], "match_to=sofmax is no number and no mixer"),
        (["match=state", "match_to=-3"], "must be above 0"),
        (["match=state", "match_to=identity"], "costs nothing"),
        (["match=state", "experiment=hybrid"], "has several"),
    ],
)
def test_a_match_that_makes_no_sense_is_a_sentence(config, overrides, words):
    with pytest.raises(ValueError, match=words):
        plan.match(config(*overrides), lambda name: config(f"mixer={name}"))


# -- select -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_read_as_hydra_reads_it():
    assert plan.grid("optimizer.lr=1e-3,3e-3 model.d_model=range(1,4)") == {
        "optimizer.lr": [0.001, 0.003],
        "model.d_model": [1, 2, 3],
    }
    for text in ("", "optimizer.lr", "optimizer.lr=1e-3", "a=[1", "=1,2"):
        with pytest.raises(ValueError, match="select"):
            plan.grid(text)


def selecting(config, tmp_path, scores, *overrides):
    cfg = config("select='optimizer.lr=1e-3,3e-3,1e-2'", "selection_seeds=[7,8]", *overrides)
    seen = []

    def train(trial, values, place):
        seen.append((trial.optimizer.lr, trial.seed, values, trial.learner.optimizer.lr))
        score = scores[trial.optimizer.lr]
        metric = {"metric": {"name": "accuracy", "higher_is_better": True}}
        if score is None:
            return metric | {"outcome": "diverged"}
        return metric | {"outcome": "finished", "validation": {"score": score + trial.seed / 1000}}

    return cfg, plan.select(cfg, tmp_path / "select", train), seen


def test_validation_chooses_among_as_many_trials_for_all(config, tmp_path):
    cfg, done, seen = selecting(config, tmp_path, {0.001: 0.5, 0.003: 0.9, 0.01: None})
    assert [(lr, seed) for lr, seed, *_ in seen] == [(lr, seed) for lr in (0.001, 0.003, 0.01) for seed in (7, 8)]
    assert all(values == {"optimizer.lr": lr} and used == lr for lr, _, values, used in seen)
    assert cfg.optimizer.lr == 0.003 and cfg.seed == 0 and done["chosen"] == {"optimizer.lr": 0.003}
    assert done["edge"] == []
    assert done["trials"][2]["scores"] == [None, None]


def test_a_choice_on_the_edge_of_the_grid_is_a_warning(config, tmp_path, record):
    _, done, _ = selecting(config, tmp_path, {0.001: 0.5, 0.003: 0.6, 0.01: 0.9})
    got = compare([record("softmax", 0, selection=done)])
    assert got.warnings == ["recall: softmax chose optimizer.lr=0.01, on the edge of its grid: widen it"]
    (table,) = got.tables
    assert "selected by validation on seed 7, 8 alone, 6 trials for each mixer" in table.notes[0]
    assert "softmax optimizer.lr=0.01" in table.notes[0] and notes.HANDS_OFF not in table.notes
    assert notes.HANDS_OFF in compare([record("softmax", 0)]).tables[0].notes


LOG = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def searching(config, place, *overrides, best=0.01):
    """A search whose score falls with the distance to `best`, in decades; nan steps diverge."""
    cfg, seen = config(f"select='{LOG}'", "select_trials=12", *overrides), []

    def train(trial, values, place):
        seen.append((trial.optimizer.lr, trial.seed))
        if trial.optimizer.lr > 0.05:
            return {"outcome": "diverged"}
        return {"outcome": "finished", "validation": {"score": 1 - abs(math.log10(trial.optimizer.lr / best))}}

    return cfg, plan.select(cfg, place / "select", train), seen


def test_optuna_searches_an_interval_and_repeats(config, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="seqmix[sweep] is not installed")
    cfg, done, seen = searching(config, tmp_path / "a")
    assert len(seen) == len(done["trials"]) == 12 and {seed for _, seed in seen} == {1000}
    assert all(1e-4 <= lr <= 1e-1 for lr, _ in seen) and len({lr for lr, _ in seen}) == 12
    assert cfg.optimizer.lr == done["chosen"]["optimizer.lr"] == min(seen, key=lambda s: abs(math.log(s[0] / 0.01)))[0]
    assert done["edge"] == [] and done["grid"] == {"optimizer.lr": [1e-4, 1e-1]}
    assert searching(config, tmp_path / "b")[2] == seen
    assert searching(config, tmp_path / "c", best=1e-4)[1]["edge"] == ["optimizer.lr"]


def test_an_interval_and_its_number_of_trials_need_each_other(config, tmp_path):
    for words, error in (
        ([f"select='{LOG}'"], "select_trials=20"),
        (["select='a=1,2'", "select_trials=3"], "leave it"),
    ):
        with pytest.raises(ValueError, match=error):
            plan.select(config(*words), tmp_path, lambda *_: {})


def test_optuna_over_the_runs_that_report_is_refused(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="seqmix[sweep] is not installed")
    done = train("-m", "hydra/sweeper=optuna", "mixer=gla,softmax", runs=tmp_path)
    assert done.returncode == 1 and "would choose among the runs that report" in done.stderr
    assert not all_of(tmp_path)


@pytest.mark.slow
def test_a_sweep_whose_rates_optuna_chooses(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="seqmix[sweep] is not installed")
    done = train("-m", "mixer=identity,softmax", "seed=0,1", f"select={LOG}", "select_trials=3", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    trials = results.read_all(tmp_path, file=results.TRIAL)
    assert sorted(t["mixer"] for t in trials) == ["identity"] * 3 + ["softmax"] * 3
    assert not any(key in trial for trial in trials for key in ("test", "slices"))
    rates = {
        mixer: sorted(t["trial"]["optimizer.lr"] for t in trials if t["mixer"] == mixer)
        for mixer in ("identity", "softmax")
    }
    for run in all_of(tmp_path):
        assert run["config"]["optimizer"]["lr"] in rates[run["mixer"]]
    text = next(tmp_path.rglob("comparison.md")).read_text()
    assert "3 trials for each mixer" in text and notes.HANDS_OFF not in text


def test_selection_on_the_seed_that_reports_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="would select on what it reports"):
        selecting(config, tmp_path, {}, "seed=8")
    with pytest.raises(ValueError, match=r"selection_seeds=\[\] must be seeds"):
        selecting(config, tmp_path, {}, "selection_seeds=[]")


def test_of_a_loss_the_least_is_chosen(config, tmp_path):
    cfg, done, _ = selecting(config, tmp_path, {0.001: 0.5, 0.003: 0.9, 0.01: 0.6}, "task=code")
    assert cfg.optimizer.lr == 0.001 and done["edge"] == ["optimizer.lr"]


def test_what_cannot_be_built_is_left_to_the_run(config, tmp_path):
    cfg, seen = config("select='optimizer.lr=1e-3,3e-3'"), []
    assert plan.select(cfg, tmp_path, lambda *trial: seen.append(trial) or {"outcome": "impossible"}) == {}
    assert len(seen) == 1 and cfg.optimizer.lr == config().optimizer.lr
    assert plan.match(config("mixer.n_heads=7", "match=params"), config) == {}


def test_where_no_trial_finished_nothing_is_chosen(config, tmp_path):
    with pytest.raises(ValueError, match="no trial finished"):
        selecting(config, tmp_path, {0.001: None, 0.003: None, 0.01: None})


def test_a_key_that_does_not_exist_is_refused(config, tmp_path):
    cfg = config("select='optimizer.rate=1,2'")
    with pytest.raises(ValueError, match="'optimizer.rate' is not a key"):
        plan.select(cfg, tmp_path, lambda *_: {})


def test_the_record_of_a_trial_holds_no_test_figures(tmp_path, record):
    whole = record("gla", 0, trial={"optimizer.lr": 0.1})
    with pytest.raises(ValueError, match="must not hold test figures"):
        results.write(tmp_path, whole)
    bare = {key: value for key, value in whole.items() if key not in ("test", "slices")}
    assert results.write(tmp_path, bare).name == results.TRIAL
    assert results.read_all(tmp_path) == []


# -- the whole way ----------------------------------------------------------------------------------------------------


def test_a_sweep_selects_matches_and_trains_the_twin(tmp_path):
    plans = ["select=optimizer.lr=1e-3,3e-3", "match=state", "aa=true"]
    done = train("-m", "mixer=mamba2,softmax", "seed=0,1", *plans, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = {(r["label"].split(",")[0] + r["label"][-3:].replace("aa", "+"), r["seed"]): r for r in all_of(tmp_path)}
    twins = [r for r in all_of(tmp_path) if r.get("aa")]
    assert {r["mixer"] for r in twins} == {"softmax"} and len(twins) == 2 and len(runs) == 6
    trials = results.read_all(tmp_path, file=results.TRIAL)
    assert sorted((t["mixer"], t["trial"]["optimizer.lr"], t["seed"]) for t in trials) == [
        (mixer, lr, 1000) for mixer in ("mamba2", "softmax") for lr in (0.001, 0.003)
    ]  # once for both seeds
    assert not any(key in trial for trial in trials for key in ("test", "slices", "speed"))
    for run in all_of(tmp_path):
        assert run["config"]["optimizer"]["lr"] == run["selection"]["chosen"]["optimizer.lr"]
        assert run["protocol"]["learner"]["optimizer"]["lr"] == "selected"
        assert run["match"]["met"]
        if run.get("aa"):
            base = next(r for r in all_of(tmp_path) if (r["label"], r["seed"]) == (run["aa"], run["seed"]))
            assert base["data"] == run["data"] and base["curve"][0]["step"] == run["curve"][0]["step"]
            assert base["validation"]["loss"] != run["validation"]["loss"]
            assert results.differing_keys(base["config"], run["config"]) == [
                "label",
                "learner.title",
                "model.label",
            ], "nothing else"
    text = next(tmp_path.rglob("comparison.md")).read_text()
    for words in ("A/A: softmax", "smaller gaps are noise", "mixer.d_state", "selected by validation on seed 1000"):
        assert words in text


def all_of(runs):
    return results.read_all(runs)


def test_a_mixer_without_parameters_has_no_twin_and_the_report_says_so(tmp_path):
    done = train("-m", "mixer=identity", "aa=true", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(all_of(tmp_path)) == 1
    (text,) = tmp_path.rglob("comparison.md")
    assert "A/A: none, for identity" in text.read_text()


def test_the_floor_is_of_equal_seeds_and_no_contender(record):
    noise = [0.0, 0.01, -0.01, 0.02]
    runs = [record("softmax", seed, 0.5 + n) for seed, n in enumerate(noise)]
    runs += [record("gla", seed, 0.9 + n / 2) for seed, n in enumerate(noise)]
    without = compare(runs).tables[0]
    assert any(note.startswith("A/A: not measured") for note in without.notes)
    runs += [record("softmax,aa", seed, 0.95 + n, aa="softmax") for seed, n in enumerate(noise[::-1])]
    got = compare(runs).tables[0]
    assert got.baseline == "softmax" and got.verdict == without.verdict  # the twin neither wins nor is in the way
    rows = {row.label: row for row in got.rows}
    assert rows["softmax,aa"].p is None and rows["softmax,aa"].difference.mean == pytest.approx(0.45)
    assert rows["gla"].p == without.rows[1].p
    (note,) = [note for note in got.notes if note.startswith("A/A")]
    assert note.startswith("A/A: softmax initialised anew differs from itself by +0.450 [")
    assert note.endswith("], at most 0.470 at one of 4 seeds: smaller gaps are noise")
