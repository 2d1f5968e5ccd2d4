"""What decay does inside a chunk: three kinds behind one interface, with their gradients.

Rows i read what columns j have written, (..., C, K) both, and G_i = g_1 + ... + g_i:

    scores(x, y)_ij = sum_d x_id y_jd e^{G_id - G_jd}     for j <= i; `strict`: for j < i; `before`: for j < i, and
                                                          with G_{i-1}, so that the read comes before the decay
    read(x)_i       = x_i e^{G_i}                         what the state at the chunk's start still is at i
    leave(y)_j      = y_j e^{G_C - G_j}                   what is left of y_j at the chunk's end
    keep            = e^{G_C}                             what is left of the state

Each sum G_i - G_j is formed exactly: in float64 for one number per head, by multiplying step by step for one per
channel. So any g <= 0 is right, and -inf, which forgets everything, too; so is g > 0, as long as nothing overflows.
One number per head is cut off at FORGOTTEN, which changes nothing, since e^g is 0 long before: G stays free of -inf,
whose differences are not numbers, and small enough for its differences to be exact.
The gradients are those of Yang et al., 2023 (https://arxiv.org/abs/2312.06635, appendix C), from pairs j < i only, so
that they stay exact where all is forgotten.
"""

import torch
from torch import Tensor

FORGOTTEN = -2000.0  # e^g is 0 in float64 from -746 on, and no growth that a float holds, e^709, brings it back


def decay_of(g: Tensor | None) -> "NoDecay":
    """The kind that g (..., C, 0, 1 or K) asks for."""
    if g is None:
        return NoDecay()
    return ScalarDecay(g) if g.shape[-1] == 1 else ChannelDecay(g)


class NoDecay:
    """g = 0."""

    keep: Tensor | None = None  # (..., n, 1 or K, 1)

    def age(self, y: Tensor):
        """y in the form that `scores` and `mix` take; `age_grad` turns its gradient back."""
        return y

    def age_grad(self, dys, ys) -> Tensor:
        return dys

    def scores(self, x: Tensor, ys, before: bool = False, strict: bool = False) -> Tensor:
        return (x @ ys.mT).tril_(-1 if before or strict else 0)

    def scores_grad(self, dA: Tensor, x: Tensor, ys, before: bool = False, strict: bool = False):
        """dx and dys of `scores`; of dA only what scores() does not mask is looked at."""
        dA = dA.tril(-1 if before or strict else 0)
        return dA @ ys, dA.mT @ x

    def mix(self, A: Tensor, ys) -> Tensor:
        """sum_j A_ij y_j e^{G_i - G_j}, for lower triangular A."""
        return A @ ys

    def mix_grad(self, do: Tensor, A: Tensor, ys):
        """dA and dys of `mix`."""
        return do @ ys.mT, A.mT @ do

    def read(self, x: Tensor, before: bool = False) -> Tensor:
        return x

    def read_grad(self, dr: Tensor, r: Tensor, before: bool = False) -> Tensor:
        """dx of r = read(x)."""
        return dr

    def leave(self, y: Tensor) -> Tensor:
        return y

    def leave_grad(self, dl: Tensor, l: Tensor) -> Tensor:
        return dl

    def keep_grad(self, S: Tensor, dS: Tensor) -> None:
        """S, what chunks begin with, and dS, the gradient of what they end with, (..., n, K, V)."""

    def gradient(self) -> Tensor | None:
        """dg, of all that was asked for since."""
        return None


class ScalarDecay(NoDecay):
    """g (..., n, C, 1)."""

    def __init__(self, g: Tensor):
        self.g = g
        G = g.double().clamp(min=FORGOTTEN).cumsum(-2)
        self.G = G
        self.start = G.exp().to(g.dtype)
        self.end = (G[..., -1:, :] - G).exp().to(g.dtype)
        self.keep = self.start[..., -1:, :]
        self.rows, self.ends, self.all = torch.zeros_like(g), torch.zeros_like(g), torch.zeros_like(self.keep)
        self._pairs: dict[bool, Tensor] = {}

    def pairs(self, before: bool) -> Tensor:
        """e^{G_i - G_j}, 0 above the diagonal."""
        if before not in self._pairs:
            rows = later(self.G) if before else self.G
            exponents = (rows - self.G.mT).to(self.g.dtype)
            unseen = torch.ones_like(exponents[0, 0, 0, 0], dtype=torch.bool).triu(0 if before else 1)
            self._pairs[before] = exponents.masked_fill_(unseen, -torch.inf).exp_()
        return self._pairs[before]

    def scores(self, x, ys, before=False, strict=False):
        A = (x @ ys.mT) * self.pairs(before)
        return A.tril_(-1) if strict else A

    def scores_grad(self, dA, x, ys, before=False, strict=False):
        dP, s = dA * self.pairs(before), 1 if before else 0
        own = dP.diagonal(-s, -2, -1).unsqueeze(-1).clone()  # pairs without any decay between: kept out of the sums
        dP = dP.tril_(-s - 1)
        dx, dys = dP @ ys, dP.mT @ x
        self._reads((x * dx).sum(-1, keepdim=True), before)
        self.rows = self.rows - (ys * dys).sum(-1, keepdim=True)
        if not strict:
            rows = x.shape[-2] - s
            dx[..., s:, :] += own * ys[..., :rows, :]
            dys[..., :rows, :] += own * x[..., s:, :]
        return dx, dys

    def mix(self, A, ys):
        raise NotImplementedError("a decay of the values is one number per channel")

    def read(self, x, before=False):
        return x * (later(self.start, 1.0) if before else self.start)

    def read_grad(self, dr, r, before=False):
        self._reads((dr * r).sum(-1, keepdim=True), before)
        return dr * (later(self.start, 1.0) if before else self.start)

    def _reads(self, rows: Tensor, before: bool) -> None:
        self.rows = self.rows + (earlier(rows) if before else rows)

    def leave(self, y):
        return y * self.end

    def leave_grad(self, dl, l):
        self.ends = self.ends + (dl * l).sum(-1, keepdim=True)
        return dl * self.end

    def keep_grad(self, S, dS):
        self.all = self.all + self.keep * (S * dS).sum((-1, -2), keepdim=True)

    def gradient(self):
        return self.rows.flip(-2).cumsum(-2).flip(-2) + later(self.ends.cumsum(-2)) + self.all


class ChannelDecay(NoDecay):
    """g (..., n, C, K). `age` walks down the diagonals: list entry s is y, s steps later, (..., n, C - s, K)."""

    def __init__(self, g: Tensor):
        self.a = g.exp()
        self.start = g.cumsum(-2).exp()
        self.end = earlier(g).flip(-2).cumsum(-2).flip(-2).exp()
        self.keep = self.start[..., -1, :].unsqueeze(-1)
        self.rows, self.ends, self.direct = torch.zeros_like(g), torch.zeros_like(g), torch.zeros_like(g)
        self.all = torch.zeros_like(self.start[..., -1:, :])

    def age(self, y):
        ys = [y]
        for s in range(1, self.a.shape[-2]):
            ys.append(self.a[..., s:, :] * ys[-1][..., :-1, :])
        return ys

    def age_grad(self, dys, ys):
        for s in range(len(ys) - 1, 0, -1):
            if dys[s].shape[2] == self.direct.shape[2]:
                self.direct[..., s:, :].addcmul_(dys[s], ys[s])
            else:
                self.direct[..., s:, :] += total(dys[s] * ys[s], self.direct)
            dys[s - 1][..., :-1, :].addcmul_(self.a[..., s:, :], dys[s])
        return dys[0]

    def _seen(self, ys, s: int, before: bool) -> Tensor:
        return ys[s - 1][..., :-1, :] if before else ys[s]

    def scores(self, x, ys, before=False, strict=False):
        size = len(ys)
        products = [
            (x[..., s:, :] * self._seen(ys, s, before)).sum(-1) for s in range(1 if before or strict else 0, size)
        ]
        A = x.new_zeros(*torch.broadcast_shapes(x.shape[:-2], ys[-1].shape[:-2]), size, size)
        for s, product in enumerate(products, 1 if before or strict else 0):
            A.diagonal(-s, -2, -1).copy_(product)
        return A

    def scores_grad(self, dA, x, ys, before=False, strict=False):
        size, shape = len(ys), torch.broadcast_shapes(dA.shape[:-2], x.shape[:-2], ys[-1].shape[:-2])
        dx, dys = x.new_zeros(*shape, size, x.shape[-1]), []
        for s in range(size):
            w = dA.diagonal(-s, -2, -1).unsqueeze(-1)
            if s or not (before or strict):
                dx[..., s:, :].addcmul_(w, self._seen(ys, s, before))
                dys.append(w * x[..., s:, :])
            else:
                dys.append(torch.zeros_like(dx))
        if before:  # the read at j + s has seen s - 1 decays
            last = torch.zeros_like(dys[-1])
            dys = [torch.cat([d, torch.zeros_like(d[..., :1, :])], -2) for d in dys[1:]] + [last]
        return dx, dys

    def mix(self, A, ys):
        o = torch.zeros_like(A[..., :1] * ys[0])
        for s, y in enumerate(ys):
            o[..., s:, :].addcmul_(A.diagonal(-s, -2, -1).unsqueeze(-1), y)
        return o

    def mix_grad(self, do, A, ys):
        return self.scores(do, ys), [A.diagonal(-s, -2, -1).unsqueeze(-1) * do[..., s:, :] for s in range(len(ys))]

    def read(self, x, before=False):
        return x * (later(self.start, 1.0) if before else self.start)

    def read_grad(self, dr, r, before=False):
        rows = total(dr * r, self.rows)
        self.rows = self.rows + (earlier(rows) if before else rows)
        return dr * (later(self.start, 1.0) if before else self.start)

    def leave(self, y):
        return y * self.end

    def leave_grad(self, dl, l):
        self.ends = self.ends + total(dl * l, self.ends)
        return dl * self.end

    def keep_grad(self, S, dS):
        self.all = self.all + (self.keep * S * dS).sum(-1).unsqueeze(-2)

    def gradient(self):
        return self.direct + self.rows.flip(-2).cumsum(-2).flip(-2) + later(self.ends.cumsum(-2)) + self.all


def later(x: Tensor, first: float = 0.0) -> Tensor:
    """x (..., C, D) one row later, and `first` in front."""
    return torch.cat([torch.full_like(x[..., :1, :], first), x[..., :-1, :]], -2)


def earlier(x: Tensor) -> Tensor:
    """x (..., C, D) one row earlier, and 0 at the end."""
    return torch.cat([x[..., 1:, :], torch.zeros_like(x[..., :1, :])], -2)


def total(x: Tensor, like: Tensor) -> Tensor:
    """x, summed over the heads that share what is of the shape of `like`."""
    return x.sum(2, keepdim=True) if x.shape[2] != like.shape[2] else x


def add(a, b):
    """Two gradients of what `age` made, which is a tensor or a list of them."""
    return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b
