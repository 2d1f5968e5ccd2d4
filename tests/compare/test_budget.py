"""The costs, against counts by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixers
from compare import budget
from mixers.base import Mixer
from mixers.ops import chunks
from mixers.ops.attention import attention

D, V = 4, 11


class Sum(Mixer):
    """A running sum: the state is one float64 vector, whatever the length."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x, state=None, mask=None):
        h = x.double().cumsum(1) + (0 if state is None else state[0][:, None])
        steps = torch.full((x.shape[0],), x.shape[1], device=x.device)
        return self.out(h.to(x.dtype)), (h[:, -1], steps if state is None else state[1] + steps)


class Attention(Mixer):
    """One head; keys and values are the state."""

    def forward(self, x, state=None, mask=None):
        kv = x if state is None else torch.cat([state, x], 1)
        return F.scaled_dot_product_attention(x, kv, kv, is_causal=state is None), kv


class Backwards(Mixer):
    causal = False

    def forward(self, x, state=None, mask=None):
        return x.flip(1), None


class Model(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.embed, self.mixer, self.head = nn.Embedding(V, D), mixer(), nn.Linear(D, V, bias=False)

    def forward(self, tokens, states=None):
        y, states = self.mixer(self.embed(tokens), states)
        return self.head(y), [states]


class Carry(Model):
    def forward(self, tokens, states=None):
        return super().forward(tokens, states[0] if states else None)


def test_parameters_by_kind():
    model = Model(Sum)
    assert budget.parameters(model) == {"total": 2 * V * D + D * D, "mixer": D * D, "embedding": V * D}
    model.head.weight = model.embed.weight
    assert budget.parameters(model)["total"] == V * D + D * D


def test_a_mixer_inside_a_mixer_counts_once():
    class Two(Mixer):
        def __init__(self):
            super().__init__()
            self.forward_one = Sum()

    assert budget.parameters(Two())["mixer"] == D * D


@pytest.mark.parametrize(
    ("mixer", "length", "batch", "expected"),
    [
        (Sum, 5, 1, D * 8 + 8),
        (Sum, 65536, 3, 3 * (D * 8 + 8)),
        (Attention, 5, 1, 5 * D * 4),
        (Attention, 100, 2, 2 * 100 * D * 4),
        (Backwards, 5, 1, 0),
    ],
)
def test_state_is_what_comes_back(mixer, length, batch, expected):
    assert budget.state_bytes(lambda: Carry(mixer), length, batch) == expected


def test_nothing_is_computed_or_kept():
    model = Carry(Sum)
    budget.flops(lambda: Carry(Sum), 64)
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())


def test_flops_of_a_recurrence():
    T, head = 8, 2 * D * V
    got = budget.flops(lambda: Carry(Sum), T)
    per_token = head + 2 * D * D + D  # the head, the projection, the cumsum
    assert got == {
        "at": T,
        "forward_per_token": per_token,
        "training_per_token": 3 * per_token,
        "decode_per_token": per_token,
    }


def test_flops_of_causal_attention_are_its_visible_pairs():
    T, head = 8, 2 * D * V
    got = budget.flops(lambda: Carry(Attention), T)
    assert got["forward_per_token"] == head + 2 * 2 * D * (T + 1) / 2
    assert got["decode_per_token"] == head + 2 * 2 * D * T  # the last token sees all of them


def test_looking_ahead_is_not_decoded():
    assert budget.flops(lambda: Carry(Backwards), 8)["decode_per_token"] is None


class Pairs(Carry):
    pool = "pair"

    def forward(self, tokens, states=None):
        return super().forward(tokens.flatten(0, 1), states)


def test_pairs_are_two_sequences():
    one, two = budget.flops(lambda: Carry(Sum), 8), budget.flops(lambda: Pairs(Sum), 8)
    assert two["forward_per_token"] == one["forward_per_token"]
    assert two["decode_per_token"] is None
    assert budget.state_bytes(lambda: Pairs(Sum), 8) == 2 * budget.state_bytes(lambda: Carry(Sum), 8)


def count(call):
    return budget._count(call)


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, device="meta", dtype=dtype)


@pytest.mark.parametrize(
    ("name", "call", "expected"),
    [
        ("rfft", lambda: torch.fft.rfft(meta(3, 8), n=16), 3 * 5 * 16 * 4),
        ("irfft", lambda: torch.fft.irfft(meta(3, 9, dtype=torch.complex64), n=16), 3 * 5 * 16 * 4),
        ("fft", lambda: torch.fft.fft(meta(3, 16, dtype=torch.complex64)), 3 * 5 * 16 * 4),
        ("fft2", lambda: torch.fft.fft2(meta(2, 4, 8, dtype=torch.complex64)), 2 * 5 * 32 * 5),
        ("fft of one point", lambda: torch.fft.fft(meta(3, 1, dtype=torch.complex64)), 0),
        ("solve", lambda: torch.linalg.solve_triangular(meta(2, 4, 4), meta(2, 4, 3), upper=False), 2 * 4 * 4 * 3),
        (
            "solve from the right",
            lambda: torch.linalg.solve_triangular(meta(4, 4), meta(3, 4), upper=True, left=False),
            4 * 4 * 3,
        ),
        ("exp", lambda: meta(2, 5).exp(), 10),
        ("exp in place", lambda: meta(2, 5).exp_(), 10),
        ("cumsum", lambda: meta(2, 5).cumsum(-1), 10),
        ("mv", lambda: meta(3, 4) @ meta(4), 2 * 3 * 4),
        ("dot", lambda: meta(4) @ meta(4), 2 * 4),
        ("mm", lambda: meta(2, 3) @ meta(3, 5), 2 * 2 * 3 * 5),
        ("addmm", lambda: F.linear(meta(2, 3), meta(5, 3), meta(5)), 2 * 2 * 3 * 5),
        ("complex mm", lambda: meta(2, 3, dtype=torch.complex64) @ meta(3, 5, dtype=torch.complex64), 8 * 2 * 3 * 5),
        ("einsum", lambda: torch.einsum("bhtk,bhkv->bhtv", meta(2, 3, 4, 5), meta(2, 3, 5, 6)), 2 * 6 * 4 * 5 * 6),
        ("depthwise conv", lambda: F.conv1d(meta(1, 4, 10), meta(4, 1, 3), groups=4), 2 * 4 * 8 * 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_formulas(name, call, expected):
    assert count(call) == expected


def sdpa(T, S, heads=1, **options):
    return lambda: F.scaled_dot_product_attention(
        meta(1, 4, T, 8), meta(1, heads, S, 8), meta(1, heads, S, 8), **options
    )


def test_attention_by_visible_pairs():
    all_pairs = 2 * 2 * 4 * 8
    assert count(sdpa(6, 10, 4)) == all_pairs * 60
    assert count(sdpa(6, 6, 4, is_causal=True)) == all_pairs * 21
    assert count(sdpa(6, 10, 4, is_causal=True)) == all_pairs * 21  # top left: the last four keys are never seen
    assert count(sdpa(10, 6, 4, is_causal=True)) == all_pairs * (21 + 4 * 6)
    assert count(sdpa(6, 6, 2, is_causal=True, enable_gqa=True)) == all_pairs * 21
    mask = torch.ones(6, 6, dtype=torch.bool, device="meta")
    assert count(sdpa(6, 6, 4, attn_mask=mask)) == all_pairs * 36


def test_work_with_gradients_inside_a_forward_counts():
    def inner():
        with torch.enable_grad():
            w = meta(3, 4).requires_grad_()
            (gradient,) = torch.autograd.grad((meta(2, 3) @ w).sum(), w)
        return gradient

    assert count(inner) == 2 * (2 * 2 * 3 * 4)


def test_attention_that_is_masked_counts_its_visible_pairs_too():
    q = meta(1, 4, 6, 8)

    def run(**options):
        return count(lambda: attention(q, q, q, **options))

    pair = 2 * 2 * 4 * 8
    assert run(window=2) == pair * (1 + 2 * 5)
    assert run(window=2, causal=False) == pair * (2 + 3 * 4 + 2)
    assert run(bias=meta(1, 4, 6)) == run() == pair * 21  # as ALiBi's and FoX's: no more than plain attention
    assert run(sink=meta(4)) == pair * (21 + 6)
    assert run(window=2, prefix=1) == pair * (1 + 2 + 3 * 4)


# -- the registry's mixers, by what their equations say ---------------------------------------------------------------


class Around(nn.Module):
    """A mixer with an embedding, which multiplies nothing, in front."""

    def __init__(self, name, d_model, length):
        super().__init__()
        self.embed = nn.Embedding(7, d_model)
        self.mixer = mixers.build(name, d_model=d_model, causal=True, length=length, max_length=length)

    def forward(self, tokens, states=None):
        return self.mixer(self.embed(tokens), states)


def closed_form(name, D, T):
    """(parameters, bytes of state, FLOPs per token of a forward, of decoding), for the values of conf: two heads."""
    H, w, C = 2, D // 2, chunks.CHUNK
    maps = 8 * D * D  # q, k, v and the output, a multiply and an add each
    W, m, n, N = 32, 32, 256, 64  # the window, Linformer's rank, MLP-Mixer's hidden units, LRU's state
    seen = (W * (W + 1) / 2 + (T - W) * W) / T  # keys that a query sees on average
    chunk = H * (2 * C * w + 2 * C * (w + 1) + 2 * 2 * w * (w + 1))  # scores, their values, the state's write and read
    retained = H * (2 * C * w + 2 * C * 2 * w + 2 * 2 * w * 2 * w + C + 3)  # the same; C + 2 exp and one cumsum
    return {
        "identity": (0, 0, 0, 0),
        "shift": (0, 4 * D, 0, 0),
        "causal_mean": (0, 4 * D + 8, D, D),
        "softmax": (4 * D * D, 8 + 2 * T * D * 4, maps + 4 * D * (T + 1) / 2, maps + 4 * D * T),
        "sliding_window": (4 * D * D, 8 + 2 * (W - 1) * D * 4, maps + 4 * D * seen, maps + 4 * D * W),
        "linear_attention": (4 * D * D, H * w * (w + 1) * 4, maps + chunk, maps + 2 * H * w * (w + 1)),
        "retnet": (8 * D * D, 8 + H * w * 2 * w * 4, 2 * maps + retained, 2 * maps + H + 2 * H * w * 2 * w),
        "min_gru": (6 * D * D + 5 * D, 2 * D * 4, 12 * D * D, 12 * D * D),
        "min_lstm": (8 * D * D + 7 * D, 2 * D * 4, 16 * D * D, 16 * D * D),
        "lru": (
            *(3 * N + 4 * N * D + 2 * D * D + 3 * D, 8 * N),
            *(8 * N * D + 4 * D * D + 4 * N / T, 8 * N * D + 4 * D * D + 4 * N),  # four exp of N, once a call
        ),
        "linformer": (4 * D * D + 2 * m * T, 0, maps + 2 * 2 * m * D + 4 * D * m, None),
        "fnet": (0, 0, 5 * D * math.log2(T * D), None),
        "mlp_mixer": (2 * n * T + n + T, 0, 2 * 2 * n * D, None),
        "gfnet": ((T // 2 + 1) * D * 2, 0, 2 * 5 * D * math.log2(T), None),
    }[name]


@pytest.mark.parametrize("T", [128, 256])
@pytest.mark.parametrize(
    "name",
    [
        *("identity", "shift", "causal_mean", "softmax", "sliding_window", "linear_attention", "retnet"),
        *("min_gru", "min_lstm", "lru", "linformer", "fnet", "mlp_mixer", "gfnet"),
    ],
)
def test_what_a_mixer_costs_is_what_its_equation_says(name, T):
    def make():
        return Around(name, 64, T)

    parameters, state, forward, decode = closed_form(name, 64, T)
    assert budget.parameters(make())["mixer"] == parameters
    assert budget.state_bytes(make, T) == state
    got = budget.flops(make, T)
    assert got["forward_per_token"] == pytest.approx(forward)
    assert got["training_per_token"] == 3 * got["forward_per_token"]
    assert got["decode_per_token"] == decode
