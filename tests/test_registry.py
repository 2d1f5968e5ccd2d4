"""The registry sees what Hydra sees, fills in what a task would say, and is helpful about what is not there."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import mixers
from mixers import registry
from mixers.base import Mixer

ROOT = Path(__file__).parent.parent


class Fake(Mixer):
    """Keeps what it was given."""

    def __init__(self, d_model, *, n_heads, causal, length, max_length, layer, n_layers):
        super().__init__()
        self.causal = causal
        self.given = (d_model, n_heads, length, max_length, layer, n_layers)


class BackwardOnly(Mixer):
    causal = False

    def __init__(self, d_model, *, rank):
        super().__init__()
        self.rank = rank


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A directory of mixers in place of the project's, in a Hydra that is running already."""
    monkeypatch.setitem(sys.modules, "fakes", sys.modules[__name__])
    (tmp_path / "mixer").mkdir()
    (tmp_path / "mixer" / "fake.yaml").write_text(
        "_target_: fakes.Fake\n_partial_: true\nn_heads: 4\ncausal: ${task.causal}\n"
        "length: ${task.length}\nmax_length: ${task.max_length}\n"
    )
    (tmp_path / "mixer" / "variant.yaml").write_text("defaults: [fake]\nn_heads: 8\n")
    (tmp_path / "mixer" / "backward.yaml").write_text("_target_: fakes.BackwardOnly\n_partial_: true\nrank: 3\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield tmp_path


def test_names_are_the_yamls_of_the_running_hydra(conf):
    assert registry.names() == ["backward", "fake", "variant"]


def test_names_are_the_projects_without_hydra_and_leave_none_behind():
    assert registry.names() == sorted(p.stem for p in (ROOT / "conf" / "mixer").glob("*.yaml"))
    assert not GlobalHydra.instance().is_initialized()


def test_facts_fill_the_yaml(conf):
    mixer = registry.build("fake", d_model=64)
    assert mixer.given == (64, 4, 256, 256, 0, 1) and mixer.causal
    mixer = registry.build("fake", 32, causal=False, length=100, n_heads=2, layer=3, n_layers=5)
    assert mixer.given == (32, 2, 100, 100, 3, 5) and not mixer.causal
    assert registry.build("fake", 32, length=100, max_length=900).given[2:4] == (100, 900)


def test_a_variant_is_a_yaml(conf):
    assert registry.build("variant", 64).given[1] == 8
    assert registry.build("variant", 64, n_heads=2).given[1] == 2


def test_a_mixer_of_one_direction_keeps_it(conf):
    assert not registry.build("backward", 8, causal=True).causal
    assert registry.directions("backward") == [False]
    assert registry.directions("fake") == [True, False]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: registry.build("fakee", 8), ["'fakee'", "did you mean fake?", "backward, fake, variant"]),
        (lambda: registry.build("zzzz", 8), ["'zzzz'; there are: backward, fake, variant"]),
        (lambda: registry.build("fake", 8, n_head=1), ["'n_head'", "'fake'", "did you mean n_heads?", "length"]),
        (lambda: registry.build("fake", 8, _target_="os.system"), ["'_target_'", "n_heads"]),
    ],
)
def test_what_is_not_there_is_an_error_that_lists_what_is(conf, call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_the_package_exports_it():
    assert (mixers.names, mixers.build, mixers.Mixer) == (registry.names, registry.build, Mixer)


def test_importing_the_package_does_not_import_hydra():
    code = "import sys, mixers; a = 'hydra' in sys.modules; mixers.names(); print(a, 'hydra' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.split() == ["False", "True"]


def test_an_applications_search_path_is_seen(tmp_path):
    (tmp_path / "theirs" / "mixer").mkdir(parents=True)
    (tmp_path / "theirs" / "mixer" / "leak.yaml").write_text("_target_: leak.Leak\n_partial_: true\nrate: 0.5\n")
    (tmp_path / "leak.py").write_text(
        "from mixers.base import Mixer\n\n\nclass Leak(Mixer):\n    def __init__(self, d_model, *, rate):\n"
        "        super().__init__()\n        self.rate = rate\n"
    )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "app.yaml").write_text("hydra: {output_subdir: null, run: {dir: .}}\n")
    (tmp_path / "app.py").write_text(
        "import hydra\n\n\n@hydra.main(config_path='own', config_name='app', version_base='1.3')\ndef main(cfg):\n"
        "    import mixers\n    print(mixers.names(), mixers.build('leak', 8).rate)\n\n\nmain()\n"
    )
    out = subprocess.run(
        [sys.executable, "app.py", f"hydra.searchpath=[file://{tmp_path}/theirs]"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert out.stdout.split("\n")[0] == "['leak'] 0.5", out.stderr
