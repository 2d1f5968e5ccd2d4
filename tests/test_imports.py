"""The import rules: which package may know which; and `import mixers` is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = {"mixers", "models", "tasks", "compare", "train", "conf"}
HEAVY = {"hydra", "omegaconf", "lightning", "wandb"}


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, lazy ones too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def heads(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def violations(path: Path) -> list[str]:
    names, place = imported(path), path.relative_to(ROOT).as_posix()
    found = []
    if place.startswith("mixers/"):
        shared = ("mixers.base", "mixers.layers", "mixers.feature_maps", "mixers.ops")
        if place.startswith("mixers/ops/"):
            shared = ("mixers.ops",)
        entrance = place in ("mixers/registry.py", "mixers/__main__.py", "mixers/testing.py", "mixers/__init__.py")
        measures = {"compare"} if place == "mixers/__main__.py" else set()  # costs, with the same counter as reports
        found += sorted(heads(names) & (OWN - {"mixers"} - measures))
        if not entrance:
            found += sorted(n for n in names if n.split(".")[0] == "mixers" and not n.startswith(shared))
        if place != "mixers/registry.py":
            found += sorted(heads(names) & HEAVY)
    elif place.startswith("models/"):
        allowed = ("mixers.base", "mixers.bidirectional", "mixers.packing", "mixers.layers")
        found += sorted(n for n in names if n.split(".")[0] == "mixers" and not n.startswith(allowed))
        found += sorted(heads(names) & {"tasks", "compare", "omegaconf", "wandb"})
        if place != "models/generate.py":  # makes a model from the configuration in its checkpoint
            found += sorted(heads(names) & {"hydra"})
        if place != "models/learner.py":
            found += sorted(heads(names) & {"lightning"})
    elif place.startswith("tasks/") and place != "tasks/__main__.py":
        found += sorted(heads(names) & {"mixers", "models", "compare", "hydra", "omegaconf", "wandb"})
    elif place.startswith("compare/"):
        found += sorted(n for n in names if n.startswith("tasks"))
        found += sorted(n for n in names if n.startswith("mixers") and not n.startswith(("mixers.base", "mixers.ops")))
    elif place == "train.py":
        found += sorted(n for n in names if n.split(".")[0] in ("mixers", "tasks", "models"))
    return found


FILES = [p for name in sorted(OWN - {"train"}) for p in sorted((ROOT / name).rglob("*.py"))] + [ROOT / "train.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_import_rules(path):
    assert violations(path) == []


def test_the_rule_sees_a_planted_import(tmp_path, monkeypatch):
    planted = tmp_path / "mixers" / "linear_attention" / "planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text(
        "def f():\n    from mixers.softmax.softmax import Softmax\n    import hydra\n    import tasks.recall\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert violations(planted) == ["tasks", "mixers.softmax.softmax.Softmax", "hydra"]


def test_importing_mixers_is_light():
    code = (
        "import sys, mixers; print([m for m in ('hydra', 'lightning', 'triton', 'wandb', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
