"""python -m tasks, as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.__main__ import _hydra, composed, description, every, example, main, names
from tasks.base import IGNORE, Segment

ROOT = Path(__file__).parents[2]
TINY = [f"task.data.{split}=[{{length: 6, n: 4}}]" for split in ("train", "validation", "test")]


def test_list_says_of_every_task_what_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line[:1] != " "]
    assert [row[0] for row in rows] == ["task", *names()]
    assert names() == sorted(p.stem for p in (ROOT / "conf" / "task").glob("*.yaml"))
    assert max(map(len, lines)) <= 80
    assert "recall                 64 to 256      causal     accuracy" in lines
    assert "    Parity of the bits so far, asked for at every token." in lines
    assert lines[lines.index("    two? Path-X: images of 128 x 128 pixels.") + 1].startswith("permutation ")


def test_a_list_does_not_wait_for_torch():
    code = "import sys; from tasks.__main__ import main; main(['list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_every_description_is_a_sentence_without_citations():
    with _hydra():
        facts = every()
        assert facts["recall_forgetting"] == composed("recall_forgetting")
        for name in names():
            text = description(name, facts[name]["data"]["_target_"])
            assert text[0].isupper() and text[-1] in ".?" and 30 < len(text) < 300, text
            assert "http" not in text and "et al" not in text, text


def test_show_says_what_is_written_and_what_is_drawn(capsys):
    assert main(["show", "parity", *TINY]) == 0
    out = capsys.readouterr().out
    assert "targets  1 1 0 1 1" in out and "max_length: 256" in out and "_target_" not in out
    assert "test\n  length 6: 4 of 6 tokens\n" in out and "  chance: 0.5\n" in out
    assert "loss_on: all" in out and "in an earlier split too\n  validation: " in out
    rows = [line.split()[1:] for line in out.splitlines()[-2:]]
    assert [sum(map(int, rows[0][: t + 1])) % 2 for t in range(6)] == list(map(int, rows[1]))
    digests = [line.split()[1] for line in out.split("sha256\n")[1].splitlines()[:3]]
    assert len(set(digests)) == 3 and all(len(digest) == 64 for digest in digests)


def test_examples_as_numbers_and_words():
    tokens = torch.tensor([[3, 10, 7]])
    answers = Segment("a", tokens, torch.tensor([[IGNORE, 4, IGNORE]]))
    assert example(answers) == "  tokens   3 10  7\n  targets  .  4  ."
    label = Segment("a", tokens, torch.tensor([5]), torch.tensor([[True, True, False]]))
    assert example(label) == "  tokens   3 10\n\nlabel: 5"
    pair = Segment("a", tokens.expand(1, 2, 3), torch.tensor([1]))
    assert example(pair).count("tokens") == 2
    few = Segment("a", torch.tensor([[0, 2, 1]]), torch.tensor([[IGNORE, 1, 0]]))
    assert example(few, ("zero", "one", "two")) == "  tokens  zero  two  one\n  targets    .  one zero"
    long = Segment("a", torch.arange(24 * 11)[None], torch.zeros(1, 24 * 11))
    lines = example(long).splitlines()
    assert "  ... 3 times 24 more ..." in lines and lines[0].endswith(" 23") and lines[-2].endswith(" 263")


def test_examples_as_text_and_images():
    tokens = torch.tensor([[104, 105]])
    assert example(Segment("a", tokens, tokens), "text") == "hi"
    question = torch.tensor([[ord(letter) for letter in "what? n"]])
    answer = torch.tensor([[IGNORE] * 5 + [ord("n"), ord("o")]])
    assert example(Segment("a", question, answer), "text") == "what? n\n\nanswer: no"
    padded = Segment("a", 1 + torch.tensor([[[104, 105], [111, -1]]]), torch.tensor([1]))
    assert example(padded, "padded text") == "hi\n\no\n\nlabel: 1"
    letters = torch.full((1, 2000), ord("x"))
    assert "x\n... 800 more characters ...\nx" in example(Segment("a", letters, torch.tensor([0])), "text")
    image = Segment("a", torch.tensor([[0, 255, 128, 0]]), torch.tensor([3]))
    assert example(image, "image") == "  @@\n++\n\nlabel: 3"
    large = torch.zeros(128, 128).int()
    large[-1, -1] = 9
    lines = example(Segment("a", large.view(1, -1), torch.tensor([3])), "image").splitlines()
    assert len(lines) == 34 and lines[31] == 62 * " " + "@@"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "paritty"], "unknown task 'paritty', did you mean parity? there are: associative_retrieval, "),
        (["show", "zzzz"], "unknown task 'zzzz'; there are: associative_retrieval, "),
        (["show", "parity", "task.data.sed=1"], "task.data.sed"),
        (["show", "parity", "task.data.test=[{length: 0, n: 1}]"], "length=0 is too small: make it 1 or more"),
        (["show", "parity", "task.data.test=[{lenth: 8, n: 1}]"], "task.data.test has the size {'lenth': 8, 'n': 1}"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words, capsys):
    small = [text for text in TINY[:2] if len(arguments) == 3]
    assert main([*arguments, *small]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


def test_the_exit_code_reaches_the_shell():
    done = subprocess.run([sys.executable, "-m", "tasks", "show", "paritty"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "did you mean parity?" in done.stderr
