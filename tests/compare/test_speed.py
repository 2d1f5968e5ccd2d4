"""The probe: what it leaves behind (nothing), and the bytes it sees, counted by hand."""

import pytest
import torch
from torch import nn

from compare import speed
from mixers.base import Mixer

B, T, D, V = 2, 16, 8, 5


class Sum(Mixer):
    def forward(self, x, state=None, mask=None):
        h = x.cumsum(1) + (0 if state is None else state[:, None])
        return h, h[:, -1]


class Model(nn.Module):
    def __init__(self, causal=True):
        super().__init__()
        self.embed, self.norm = nn.Embedding(V, D), nn.BatchNorm1d(D)
        self.mixer, self.drop, self.head = Sum(), nn.Dropout(0.5), nn.Linear(D, V)
        self.mixer.causal = causal

    def forward(self, tokens, states=None):
        y, states = self.mixer(self.norm(self.embed(tokens).mT).mT, states)
        return self.head(self.drop(y)), states


def loss(model, batch):
    tokens, targets = batch
    return nn.functional.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten())


@pytest.fixture
def batch():
    return torch.randint(V, (B, T)), torch.randint(V, (B, T))


def test_the_probe_measures(batch):
    got = speed.probe(Model(), batch, loss, steps=3)
    assert got["tokens_per_second"] == pytest.approx(1e6 / got["train_us_per_token"])
    assert 0 < got["forward_us_per_token"] < got["train_us_per_token"]
    assert got["decode_us_per_token"] > 0
    assert got["batch"] == [B, T]


def test_time_is_per_token_and_a_median(batch, monkeypatch):
    clock = iter([float(t) for took in (3, 1, 90) for t in (0, took)] * 3)
    monkeypatch.setattr(speed.time, "process_time", lambda: next(clock))
    got = speed.probe(Model(), batch, loss, steps=3)
    assert got["train_us_per_token"] == pytest.approx(3e6 / (B * T))
    assert got["decode_us_per_token"] == pytest.approx(3e6 / B)


def test_looking_ahead_and_pairs_are_not_decoded(batch):
    assert speed.probe(Model(causal=False), batch, loss, steps=1)["decode_us_per_token"] is None


def test_nothing_is_left_behind(batch):
    model = Model().eval()
    model.head.train()
    optimizer = torch.optim.Adam(model.parameters())
    loss(model, batch).backward()
    optimizer.step()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {k: p.grad.clone() for k, p in model.named_parameters()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    seen = set()

    def watching(model, batch):
        seen.add((torch.get_num_threads(), model.training))
        return loss(model, batch)

    torch.set_num_threads(2)
    try:
        speed.probe(model, batch, watching, steps=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == {(1, True), (1, False)}
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training and model.head.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, gradients[k]) for k, p in model.named_parameters())
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(optimizer.state.values(), moments, strict=True))


def test_what_failed_is_put_back_too(batch):
    model, threads = Model().eval(), torch.get_num_threads()

    def broken(model, batch):
        loss(model, batch).backward()
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        speed.probe(model, batch, broken)
    assert not model.training
    assert torch.get_num_threads() == threads
    assert all(p.grad is None for p in model.parameters())


def test_live_bytes_follow_births_and_deaths():
    held = torch.zeros(10)
    with speed.LiveBytes([held]) as live:
        assert live.live == 40
        a = torch.zeros(100)
        view = a[10:]  # the same bytes
        del a
        assert live.live == 440
        del view
        assert live.live == 40
        b = held * 2
        b += 1
        c = b.double()
        assert (live.live, live.peak) == (40 + 40 + 80, 440)
        del b, c
    assert live.live == 40


def test_what_autograd_keeps_is_alive():
    x = torch.zeros(1000, requires_grad=True)
    with speed.LiveBytes([x]) as live:
        y = x.exp().exp()  # two results, both kept for backward
        assert live.live == 12000
        y = y.sum()
        assert live.live == 12004
        y.backward()
        del y
        assert live.live == 8000  # x and its gradient


def test_the_peak_grows_with_what_is_kept_and_forgets_the_past(batch):
    def peak(times):
        def call(model, batch):
            y = model(batch[0])[0]
            for _ in range(times):
                y = y.sin()
            return y.sum()

        return speed.probe(Model(), batch, call, steps=1)["peak_bytes"]

    large, small = peak(40), peak(20)
    assert large - small == 20 * B * T * V * 4
    assert peak(20) == small
