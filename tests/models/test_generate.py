"""Reading in pieces and writing byte by byte: the model's own choices, constant memory, and files from anywhere."""

import io

import pytest
import torch
from hydra.utils import instantiate

from compare.speed import LiveBytes
from models import generate

MIXER = {"_target_": "mixers.state_space.mamba.Mamba", "_partial_": True, "d_state": 4}
TASK = {"name": "code", "causal": True, "pool": "none", "n_inputs": 256, "n_outputs": 256}


def config(mixer=MIXER, **task):
    backbone = {
        "_target_": "models.backbone.Backbone",
        "_partial_": True,
        "n_layers": 2,
        "pattern": [mixer],
        "causal": True,
        "mlp": {"_target_": "models.mlp.MLP", "_partial_": True, "expand": 2.0},
        "dropout": 0.0,
        "piece": None,
        "checkpoint": False,
    }
    model = {"_target_": "models.model.Model", "d_model": 8, "n_inputs": 256, "n_outputs": 256, "pool": "none"}
    model |= {"backbone": backbone, "local_conv": 2, "seed": 3, "label": "a"}
    return {"model": model, "task": TASK | task}


@pytest.fixture
def model():
    return instantiate(config()["model"]).double().eval()


def saved(path, config, weights):
    torch.save({"state_dict": {f"model.{k}": v for k, v in weights.items()}, "seqmix": {"config": config}}, path)
    return path


def test_what_is_written_is_the_whole_forwards_likeliest_byte(model):
    prompt = bytes(range(60, 77))
    n, logits, states = generate.prefill(model, generate.pieces(io.BytesIO(prompt), size=5))
    assert n == len(prompt)
    written = list(generate.decode(model, logits, states, 12, 0.0, torch.Generator()))
    tokens = torch.tensor([list(prompt) + written])
    with torch.no_grad():
        whole = model(tokens)[0][0, len(prompt) - 1 : -1]
    assert written == whole.argmax(-1).tolist() and len(set(written)) > 1
    torch.testing.assert_close(logits[0], whole[0], rtol=1e-10, atol=1e-12)


def test_draws_follow_the_logits_and_the_seed(model):
    _, logits, states = generate.prefill(model, generate.pieces(io.BytesIO(b"abc")))

    def drawn(temperature, seed):
        return list(generate.decode(model, logits, states, 30, temperature, torch.Generator().manual_seed(seed)))

    assert drawn(1.0, 0) == drawn(1.0, 0) != drawn(1.0, 1)
    assert drawn(1e-6, 0) == drawn(0.0, 0)


def test_reading_takes_memory_that_does_not_depend_on_the_length(model):
    def peak(n):
        with LiveBytes(list(model.parameters())) as live:
            generate.prefill(model, generate.pieces(io.BytesIO(b"x" * n), size=16))
        return live.peak

    assert peak(64) == peak(512)


def test_a_command_line_goes_on_from_a_checkpoint(model, tmp_path, capfdbinary, monkeypatch):
    path = saved(tmp_path / "last.ckpt", config(), model.float().state_dict())
    assert generate.main([f"ckpt={path}", "prompt=def main(", "tokens=7"]) == 0
    out, err = capfdbinary.readouterr()
    assert len(out) == 7 and b"read 9 bytes" in err and b"wrote 7 bytes" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"def main(")))
    assert generate.main([f"ckpt={path}", "prompt=-", "tokens=7"]) == 0
    assert capfdbinary.readouterr()[0] == out
    assert generate.main(["--help"]) == 0
    assert b"temperature" in capfdbinary.readouterr()[0]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": "listops", "pool": "mean"}, "is of task listops, which does not go on from bytes"),
        ({"causal": False}, "does not go on from bytes"),
        ({"mixer": {"_target_": "os.system", "_partial_": True, "command": "true"}}, "asks for os.system"),
        ({"mixer": {"_target_": "nowhere.Mixer", "_partial_": True}}, "needs nowhere.Mixer, which is not installed"),
        ({"mixer": MIXER | {"d_state": 5}}, "is of another model than it says"),
        ({"mixer": MIXER | {"states": 5}}, "states"),
    ],
)
def test_a_foreign_checkpoint_gets_a_sentence_and_runs_nothing(changes, words, model, tmp_path, capsys):
    path = saved(tmp_path / "last.ckpt", config(**changes), model.state_dict())
    assert generate.main([f"ckpt={path}", "prompt=a"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_what_is_no_checkpoint_gets_a_sentence(model, tmp_path, capsys):
    good, nothing = saved(tmp_path / "good.ckpt", config(), model.state_dict()), saved(tmp_path / "old.ckpt", {}, {})
    junk = tmp_path / "junk.ckpt"
    junk.write_bytes(b"junk")
    for words, expected in (
        ([f"ckpt={junk}", "prompt=a"], "not a whole checkpoint"),
        ([f"ckpt={nothing}", "prompt=a"], "does not say what model"),
        (["ckpt=/nowhere/x.ckpt", "prompt=a"], "/nowhere/x.ckpt does not exist"),
        ([f"ckpt={good}", "prompt="], "prompt is empty"),
        ([f"ckpt={good}"], "prompt is missing"),
        ([f"ckpt={good}", "prompt=a", "tokens=many"], "tokens=many is no number"),
        ([f"ckpt={good}", "prompt=a", "temperature=nan"], "temperature=nan is out of range"),
        ([f"ckpt={good}", "prompt=a", "token=3"], "'token=3' is not understood"),
    ):
        assert generate.main(words) == 2
        assert expected in capsys.readouterr().err
