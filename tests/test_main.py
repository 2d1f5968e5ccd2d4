"""python -m mixers, as a user types it."""

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from compare.budget import Counter, tensors
from mixers import __main__ as command
from mixers import registry
from mixers.__main__ import citation, knob, main, markdown
from mixers.base import Mixer
from mixers.testing import CHECKS

ROOT = Path(__file__).parent.parent
OURS = "their_mixers"


class Leak(Mixer):
    """Forgets at a fixed rate."""

    def __init__(self, d_model, *, rate):
        super().__init__()
        self.rate, self.W, self.V = rate, nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def forward(self, x, state=None, mask=None):
        h, out = torch.zeros_like(x[:, 0]) if state is None else state, []
        for z in self.W(x).unbind(1):
            h = self.rate * h + z
            out.append(h)
        return self.V(torch.stack(out, 1)), h


class Raises(Leak):
    def forward(self, x, state=None, mask=None):
        if x.shape[1] == 1:
            raise RuntimeError("no single steps")
        return super().forward(x, state)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, OURS, sys.modules[__name__])


@pytest.fixture
def free(monkeypatch):
    """Costs that cost nothing to measure."""
    monkeypatch.setattr(command, "costs", lambda name: ("1 KiB", "2 KiB", "3"))


def test_list_has_a_row_per_mixer_under_its_family(free, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines if line[:1] == " " and line[1:2].strip()]
    families = [line.strip() for line in lines if line[:1].strip()]
    assert sorted(name for name in first if name != "mixer") == registry.names()
    assert families == sorted(families) and "fast_weights" in families and first.count("mixer") == len(families)


def test_the_markdown_table_is_rectangular_and_complete(free):
    rows = [line.strip("| ").split(" | ") for line in markdown().splitlines()]
    assert sorted(row[0] for row in rows[2:]) == registry.names()
    gla = next(row for row in rows if row[0] == "gla")
    assert gla[1:3] == ["linear_attention", "causal"]
    assert gla[4:] == [
        "[Yang et al., 2023](https://arxiv.org/abs/2312.06635)",
        "1 KiB",
        "2 KiB",
        "3",
        "linear_attention",
    ]
    directions = {row[0]: row[2] for row in rows[2:]}
    assert (directions["softmax"], directions["fnet"]) == ("either", "looks ahead")


OLD = "the README's table is old: run `python -m mixers list --into README.md`"


def test_the_table_of_the_readme_is_current(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    assert main(["list", "--into", str(copy)]) == 0
    assert copy.read_text() == (ROOT / "README.md").read_text(), OLD


def test_a_table_needs_its_place(tmp_path, capsys, free):
    copy = tmp_path / "README.md"
    copy.write_text("no marks")
    assert main(["list", "--into", str(copy)]) == 2
    assert "lacks the lines <!-- mixers --> and <!-- /mixers -->" in capsys.readouterr().err
    assert copy.read_text() == "no marks"


@pytest.mark.parametrize("name", ["softmax", "memorizing", "log_linear", "sliding_window"])
def test_a_state_is_as_large_as_one_that_was_walked(name):
    """One that grows, for a while, by the logarithm, and that does not."""
    with torch.device("meta"):
        mixer = registry.build(name, command.WIDTH, length=8192)
    with torch.no_grad(), Counter():
        _, state = mixer(torch.empty(1, 8192, command.WIDTH, device="meta"))
    assert command.held(name, 8192) == sum(z.numel() * z.element_size() for z in tensors(state))


@pytest.mark.parametrize(
    ("paragraph", "parts"),
    [
        (
            "A thing (Doe, 2020, https://a.b/c, eq. 3), made\nsmall.\n\nx (Eq, 1999)",
            ("A thing, made small", "Doe, 2020", "https://a.b/c"),
        ),
        ("One thing (Doe, 2020). Another.", ("One thing", "Doe, 2020", "")),
        ("No paper (at all).", ("No paper (at all)", "", "")),
        ("Two (A et al., 2021, eq. 2; B, 2024, https://d.e).", ("Two", "A et al., 2021", "https://d.e")),
    ],
)
def test_citation_comes_from_the_first_sentence(paragraph, parts):
    assert citation(paragraph) == parts


def test_show_says_what_is_written_and_what_is_measured(capsys):
    assert main(["show", "softmax"]) == 0
    out = capsys.readouterr().out
    assert "softmax_j(q_i . k_j / sqrt(D)" in out and "n_heads: 2" in out
    assert f"parameters at d_model=64: {4 * 64 * 64:,}" in out and "_target_" not in out and " after 300" in out
    assert "half-lives" not in out
    assert main(["show", "retnet"]) == 0
    assert "in tokens: 10% up to 21.8, 50% up to 21.8, 90% up to 44" in capsys.readouterr().out


# Tokens in which the middle 80% of a mixer's decays forget all but 1 / e, as its paper or official code starts it:
# dt from 0.001 to 0.1 times a rate from 1 to 16 for Mamba and the gated delta rules; twice that for S4, whose
# real parts are -1/2. Below are those that say otherwise.
MEMORIES = {
    "retnet": (31, 64),  # 2^(5 + head)
    "gla": (16, 33),  # sigmoid^(1/16)
    "gsa": (7, 21),  # sigmoid^(1/8)
    "mlstm": (19, 420),  # sigmoid of 3 to 6
    "fox": (0.8, 3),  # sigmoid of 0, as with all gates that start there
    "lightning": (0.2, math.inf),  # its first head never forgets
    "delta_product": (0.6, math.inf),  # only the first of a token's steps does
}


@pytest.mark.parametrize("name", registry.names())
def test_memories_are_as_long_at_first_as_they_should_be(name):
    lengths = command.half_lives(registry.factory(name)) / math.log(2)
    if name in MEMORIES:
        assert lengths.numel(), "its decays are not seen"
    if lengths.numel():
        least, most = MEMORIES.get(name, (0.6, 2000))
        middle = [lengths.quantile(share, interpolation="lower").item() for share in (0.1, 0.9)]
        assert least <= middle[0] <= middle[1] <= most, f"{middle[0]:.3g} to {middle[1]:.3g} tokens"


def test_half_lives_are_those_of_the_decays():
    assert torch.allclose(
        command.half_lives(registry.factory("retnet")).unique(), torch.tensor([21.83, 44.01]), rtol=1e-3
    )
    assert not command.half_lives(registry.factory("linear_attention")).numel()


def test_show_says_which_engine_runs_and_why(capsys, monkeypatch):
    from mixers.ops import engines

    assert main(["show", "gla"]) == 0
    assert "engine: native, the fastest for cpu; linear_attention by native" in capsys.readouterr().out
    monkeypatch.setenv("SEQMIX_ENGINE", "fla")
    engines.choice.cache_clear()
    assert main(["show", "gla"]) == 2
    assert "the engine fla is for cuda" in capsys.readouterr().err
    monkeypatch.undo()
    engines.choice.cache_clear()


def test_check_says_ok_for_every_check_and_direction(capsys):
    assert main(["check", "identity"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("identity-causal (1 of 2)", "all ok")
    each = [f"  {check.__name__} ok" for check in CHECKS]
    assert lines[1:-1] == [*each, "identity-bidirectional (2 of 2)", *each]


def test_check_takes_a_class_from_anywhere_and_its_keywords(capsys):
    assert main(["check", f"{OURS}.Leak", "rate=0.9"]) == 0
    assert main(["check", f"{OURS}.Leak", "rate=0.1"]) == 1
    out = capsys.readouterr().out
    assert "check_remembers FAILED: after 100 steps" in out and "1 failed" in out


def test_check_goes_on_after_a_mixer_that_raises(capsys):
    assert main(["check", f"{OURS}.Raises", "rate=0.9"]) == 1
    out = capsys.readouterr().out
    assert "check_law FAILED: RuntimeError: no single steps" in out and "check_copies ok" in out


def test_check_takes_other_values_than_the_yamls(capsys):
    assert main(["check", "identity", "causal=false"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "identity-bidirectional"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "gl"], "did you mean gla?"),
        (["show", "gl"], "did you mean gla?"),
        (["check", "gla", "n_head=2"], "did you mean n_heads?"),
        (["check", "gla", "n_heads"], "key=value"),
        (["check", "gla", "n_heads=3"], "n_heads=3"),
        (["check", "nowhere.Mixer"], "nowhere"),
        (["check", f"{OURS}.ROOT"], "not a class"),
        (["check", f"{OURS}.Leak"], "rate"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_2(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and len(err.splitlines()) == 1 and not out


def test_values_are_read_as_yaml_and_python_write_them():
    texts = ["a=4", "a=1e-3", "a=false", "a=True", "a=null", "a=elu1", "a=[1, 2]"]
    assert [knob(text)[1] for text in texts] == [4, 1e-3, False, True, None, "elu1", [1, 2]]


def test_the_exit_code_reaches_the_shell():
    done = subprocess.run([sys.executable, "-m", "mixers", "show", "gl"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "did you mean gla?" in done.stderr


@pytest.mark.parametrize("words", ["mixers show gla", "tasks list"])
def test_a_reader_that_leaves_ends_it_quietly(words):
    command = [sys.executable, "-m", *words.split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()  # before anything is printed
        assert run.stderr.read() == b""
    assert run.returncode == -signal.SIGPIPE
