"""Records of runs that never ran."""

import random

import pytest


def record(label, seed, score=0.5, task="recall", **changes):
    noise = random.Random(f"{label}{seed}")
    steps = range(0, 1000, 100)
    return {
        "version": 1,
        "outcome": "finished",
        "reason": "",
        "sweep": "s1",
        "task": task,
        "mixer": label.split(",")[0],
        "label": label,
        "seed": seed,
        "config": {"seed": seed},
        "config_hash": f"{seed:04x}",
        "code": "abc",
        "environment": {"torch": "2.13", "platform": "linux", "cpu": "AVX2"},
        "data": {"train": "11", "validation": "22", "test": "33"},
        "overlap": {"validation": 0.0, "test": 0.0},
        "protocol": {"trainer": {"max_steps": 1000}, "threads": 1},
        "engine": "torch",
        "metric": {"name": "accuracy", "higher_is_better": True},
        "baselines": {"chance": 0.125, "majority": 0.2},
        "parameters": {"total": 123456, "mixer": 50000, "embedding": 1000},
        "state_bytes": {"256": 65536 if label == "softmax" else 4096},
        "flops": {"at": 256, "forward_per_token": 250000, "training_per_token": 750000, "decode_per_token": 300000},
        "speed": {"tokens_per_second": 1e5 + seed, "train_us_per_token": 10.0, "peak_bytes": 5 << 20}
        | {"by_length": {str(T): {"us_per_token": 5.0 + T / 64, "peak_bytes": T << 12} for T in (64, 128, 256)}},
        "validation": {"score": score, "loss": 1.0},
        "test": {"score": score, "loss": 1.0},
        "slices": [
            {"name": f"{n} pairs", "values": {"pairs": n}, "reason": "", "score": score * 8 / (7 + n), "n": 100}
            for n in (4, 8, 16, 32)
        ],
        "curve": [
            {
                "step": s,
                "seconds": s / 10,
                "train/loss": 2.0,
                "validation/score": score * s / 900 + noise.gauss(0, 0.01),
            }
            for s in steps
        ],
    } | changes


def stopped(label, seed, outcome, reason, task="recall"):
    kept = (
        "version",
        "sweep",
        "task",
        "mixer",
        "label",
        "seed",
        "config",
        "config_hash",
        "code",
        "environment",
        "protocol",
    )
    whole = record(label, seed, task=task)
    return {key: whole[key] for key in kept} | {"outcome": outcome, "reason": reason}


def sweep(n_seeds=3, task="recall"):
    scores = {"softmax": 0.95, "linear_attention": 0.62, "gated_delta_net": 0.93, "mamba2": 0.84}
    runs = [
        record(label, seed, score + random.Random(f"{label} {seed}").gauss(0, 0.015), task=task)
        for label, score in scores.items()
        for seed in range(n_seeds)
    ]
    runs += [
        stopped("fnet", seed, "impossible", "looks ahead: FNet sees the future, recall is causal", task)
        for seed in range(n_seeds)
    ]
    return runs


@pytest.fixture(name="record")
def record_fixture():
    return record


@pytest.fixture(name="stopped")
def stopped_fixture():
    return stopped


@pytest.fixture(name="sweep")
def sweep_fixture():
    return sweep
