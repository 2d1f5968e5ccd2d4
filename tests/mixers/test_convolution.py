"""Convolutions against their papers, tap by tap, or step by step where they are state spaces."""

import math

import pytest
import torch
from plain import D, T, agrees, conv, glu, make

from mixers import registry, testing
from mixers.convolution import h3

ENDLESS = ["hyena", "long_conv", "sgconv"]  # filters as long as the sequence


def convolve(h, x):
    """y_t = sum_l h_l x_{t-l}: h (D, L), x (B, T, D)."""
    rows = [sum(h[:, l] * x[:, t - l] for l in range(t + 1)) for t in range(x.shape[1])]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("at_once", [h3.AT_ONCE, 2 * T * D * 3])  # three columns of values, then the fourth
def test_h3(at_once, monkeypatch):
    monkeypatch.setattr(h3, "AT_ONCE", at_once)

    def plain(m, x):
        q, k, v = m.qkv(x).chunk(3, -1)
        past = torch.cat([torch.zeros(len(x), 7, D, dtype=x.dtype), k], 1)
        k = sum(m.shift[:, l] * past[:, 7 - l : 7 - l + T] for l in range(8))
        ssm, outputs = m.ssm, []
        for head in range(4):
            A = torch.complex(-ssm.log_A_real[head].exp(), ssm.A_imag[head])
            decay = (A * ssm.log_dt[head].exp()).exp()
            C = 2 * torch.complex(ssm.C[head, :, 0], ssm.C[head, :, 1]) * (decay - 1) / A
            mine = slice(4 * head, 4 * head + 4)
            h, out = torch.zeros(len(x), 4, 4, 4, dtype=A.dtype), []
            for t in range(T):
                kv = k[:, t, mine, None] * v[:, t, None, mine]
                h = decay * h + kv.unsqueeze(-1)
                S = (C * h).sum(-1).real + ssm.D[head] * kv
                out.append((q[:, t, mine, None] * S).sum(1))
            outputs.append(torch.stack(out, 1))
        return m.out(torch.cat(outputs, -1))

    agrees(make("h3", n_heads=4, d_state=8), plain)


def test_h3s_law_holds_column_by_column(monkeypatch):
    monkeypatch.setattr(h3, "AT_ONCE", 2 * 37 * 32 * 5)
    testing.check_mixer(dict(testing.variants("h3"))["h3-causal"], [testing.check_law])


def test_h3s_shift_neither_shrinks_nor_swells_a_key():
    torch.manual_seed(0)
    assert abs(registry.build("h3", 64).shift.square().sum(-1).mean() - 1) < 0.1


def test_h3_sees_the_token_before_in_its_key():
    """With a shift by one as its filter, the pair that is remembered is (k_{t-1}, v_t)."""
    m = make("h3", n_heads=4, d_state=8)
    with torch.no_grad():
        m.shift.zero_()
        m.shift[:, 1] = 1
    x = torch.randn(1, 2, D, dtype=torch.float64)
    _, k, v = m.qkv(x).chunk(3, -1)
    _, (_, h) = m(x)
    written = k[0, 0].view(4, 4, 1).mul(v[0, 1].view(4, 1, 4)).permute(1, 2, 0)
    torch.testing.assert_close(h[0].real.mean(-1), written)


def hyena_filter(f, length):
    rows = []
    for l in range(length):
        t = torch.tensor(l / f.max_length, dtype=f.first.dtype)
        h = torch.stack([t, (2 * math.pi * t).cos(), (2 * math.pi * t).sin()])
        for W, b in zip([f.first, f.inner[0], f.inner[1]], f.biases, strict=True):
            h = (f.frequency * (W @ h + b)).sin()
        rows.append(f.last @ h * (-t * f.delta.abs()).exp())
    return torch.stack(rows, 1)


def test_hyena():
    def plain(m, x):
        x_0, x_1, v = conv(m.conv, m.project(x)).chunk(3, -1)
        z = x_1 * v
        return m.out(x_0 * (convolve(hyena_filter(m.filter, T), z) + m.D * z))

    agrees(make("hyena", length=40), plain)


def test_hyenas_window_falls_to_a_hundredth():
    f = registry.build("hyena", 8, length=100).filter
    for weight, inputs in ((f.first, 3), (f.inner, 64), (f.biases, 64), (f.last, 64)):
        assert -(inputs**-0.5) <= weight.min() < 0 < weight.max() <= inputs**-0.5
    torch.testing.assert_close((-1.5 * f.delta[0].abs()).exp().item(), 0.01)
    torch.testing.assert_close((-0.3 * f.delta[-1].abs()).exp().item(), 0.01)


def test_hyenas_filter_is_of_max_length_whatever_the_length():
    f, longer = make("hyena", length=40).filter, make("hyena", length=80).filter
    torch.testing.assert_close(f(10), f(40)[:, :10])
    torch.testing.assert_close(longer(80)[:, ::2], f(40))


def test_long_conv():
    def plain(m, x):
        k = m.k[:, :T]
        kernel = k.sign() * (k.abs() - 0.001).clamp(min=0)
        return glu(m.out, convolve(kernel, x) + m.D * x)

    agrees(make("long_conv", length=40), plain)


def test_long_conv_starts_with_a_kernel_that_is_partly_squashed():
    torch.manual_seed(0)
    k = registry.build("long_conv", 64, length=256).k
    assert 0.3 < (k.abs() < 0.001).float().mean() < 0.45


def test_sgconv(monkeypatch):
    import mixers.convolution.sgconv as module

    monkeypatch.setattr(module, "TAPS", 4)
    m = make("sgconv", length=T)
    assert m.k.shape == (4, D, 4)  # 4 + 4 + 8 + 16 taps

    def tap(k, place):
        """k (D, 4) between its taps, and its ends beyond them."""
        place = min(max(place, 0), 3)
        low = min(int(place), 2)
        return k[:, low] * (low + 1 - place) + k[:, low + 1] * (place - low)

    def plain(m, x):
        kernel = []
        for i, k in enumerate(m.k):
            by = 2 ** max(0, i - 1)
            kernel += [2 ** (3 - i) * tap(k, (j + 0.5) / by - 0.5) for j in range(4 * by)]
        return glu(m.out, convolve(torch.stack(kernel, 1)[:, :T] / m.Z, x) + m.D * x)

    agrees(m, plain)


def test_sgconv_starts_with_a_kernel_of_length_one():
    from mixers.convolution.sgconv import multiscale

    for length, scales in ((3, 1), (64, 1), (65, 2), (128, 2), (256, 3), (1000, 5)):
        m = registry.build("sgconv", 8, length=length)
        kernel = multiscale(m.k) / m.Z
        assert m.k.shape[0] == scales and kernel.shape[1] >= length
        torch.testing.assert_close(kernel.norm(dim=-1), torch.ones(8))


def test_mega_starts_with_weights_of_both_signs():
    torch.manual_seed(0)
    m = registry.build("mega", 256)
    assert 0.18 < m.alpha.std() < 0.22 and 0.18 < m.delta.std() < 0.22
    torch.testing.assert_close(m.beta, torch.tensor([1.0, -1]).expand(256, 2), rtol=0, atol=0.1)


def test_mega():
    def plain(m, x):
        p, d = m.alpha.sigmoid(), m.delta.sigmoid()
        h, out = torch.zeros(len(x), D, 3, dtype=x.dtype), []
        for t in range(T):
            h = (1 - p * d) * h + p * m.beta * x[:, t, :, None]
            y = (m.gamma * h).sum(-1) / 3**0.5 + m.omega * x[:, t]
            out.append(y * y.sigmoid())
        return torch.stack(out, 1)

    agrees(make("mega", d_state=3), plain)


@pytest.mark.parametrize("name", ENDLESS)
def test_the_state_is_the_past_and_ends_at_max_length(name):
    m = make(name, length=12)
    x = torch.randn(2, 12, D, dtype=torch.float64)
    y, state = m(x[:, :7])
    past = state[-1] if name == "hyena" else state
    assert past.shape == (2, 7, D)
    torch.testing.assert_close(torch.cat([y, m(x[:, 7:], state)[0]], 1), m(x)[0])
    with pytest.raises(ValueError, match=f"{name} was built for max_length=12 and got 13 steps: raise task.max_length"):
        m(torch.randn(2, 6, D, dtype=torch.float64), state)


def test_what_does_not_fit_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="n_heads=3"):
        registry.build("h3", D, n_heads=3)
    with pytest.raises(ValueError, match="d_state=7 is not even"):
        registry.build("h3", D, n_heads=4, d_state=7)
