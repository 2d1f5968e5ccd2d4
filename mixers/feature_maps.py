"""Feature maps phi for kernels phi(q) . phi(k), by name.

A map says how wide its features are (`dim`), whether its kernel is positive, so that weights may be divided by their
sum (`positive`), whether it learns (`learned`: queries and keys then have one each), whether features depend on the
position (`placed`), and whether it gives their logarithms (`log`: the mixer then takes a common factor out of them
before the exponential, since they overflow).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mixers.ops.precision import exact, wide

PRODUCTS = 3  # DPFP's nu


class FeatureMap(nn.Module):
    """x (B, H, T, d), steps (B, T) int64 -> phi(x) (B, H, T, dim)."""

    positive = learned = placed = log = False

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__()
        self.d, self.dim = d, d

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        raise NotImplementedError

    def resample(self, generator: Generator) -> None:
        """Redraw random features, if there are any."""


class Identity(FeatureMap):
    """x."""

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x


class Silu(FeatureMap):
    """x sigmoid(x)."""

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return F.silu(x)


class Elu1(FeatureMap):
    """elu(x) + 1 (Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 7)."""

    positive = True

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return elu1(x)


class Relu(FeatureMap):
    """max(x, 0)."""

    positive = True

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return F.relu(x)


class SquaredRelu(FeatureMap):
    """max(x, 0)^2."""

    positive = True

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return F.relu(x).square()


class Exp(FeatureMap):
    """e^x."""

    positive = log = True

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x


class Softmax(FeatureMap):
    """softmax over the features."""

    positive = True

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x.softmax(-1)


class Taylor(FeatureMap):
    """phi(q) . phi(k) = 1 + z + z^2 / 2, z = q . k / sqrt(d) (Arora et al., 2024, https://arxiv.org/abs/2402.18668,
    section 4.1): e^z to second order, which is never below 1/2.
    """

    positive = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim = 1 + d + d * (d + 1) // 2

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        x = x.to(wide(x.dtype)) * self.d**-0.25
        return torch.cat([torch.ones_like(x[..., :1]), x, squares(x) * 0.5**0.5], -1)


class Power(FeatureMap):
    """phi(q) . phi(k) = (q . k)^2 / d, the symmetric power of degree 2 (Buckman et al., 2025,
    https://arxiv.org/abs/2507.04239).
    """

    positive = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim = d * (d + 1) // 2

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return squares(x.to(wide(x.dtype)) * self.d**-0.25)


class Rebased(FeatureMap):
    """phi(q) . phi(k) = (y(q) . y(k))^2 / d, y(x) = gamma norm(x) + beta (Aksenov et al., 2024,
    https://arxiv.org/abs/2402.10644, section 4): a parabola whose vertex is learned.
    """

    positive = learned = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim, self.norm = d * (d + 1) // 2, nn.LayerNorm(d)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return squares(self.norm(x.to(self.norm.weight.dtype)) * self.d**-0.25)


class DPFP(FeatureMap):
    """r_i r_{i + j}, j = 1 ... nu, r = relu([x, -x]) (Schlag et al., 2021, https://arxiv.org/abs/2102.11174,
    section 5.3).
    """

    positive = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim = 2 * d * PRODUCTS

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        r = F.relu(torch.cat([x, -x], -1))
        return torch.cat([r * r.roll(j, -1) for j in range(1, PRODUCTS + 1)], -1)


class Hedgehog(FeatureMap):
    """softmax([y, -y]), y = W_h x + b_h per head, W = 1 at first (Zhang et al., 2024,
    https://arxiv.org/abs/2402.04347, section 4.2).
    """

    positive = learned = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim = 2 * d
        self.weight = nn.Parameter(torch.eye(d).repeat(n_heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(n_heads, 1, d))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        y = x @ self.weight + self.bias
        return torch.cat([y, -y], -1).softmax(-1)


class T2R(FeatureMap):
    """relu(W_h x + b_h) per head (Kasai et al., 2021, https://arxiv.org/abs/2103.13076, eq. 4)."""

    positive = learned = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.weight = nn.Parameter(torch.randn(n_heads, d, d) * d**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_heads, 1, d))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return F.relu(x @ self.weight + self.bias)


class Cosformer(FeatureMap):
    """[relu(x) cos(pi i / 2 M), relu(x) sin(pi i / 2 M)] (Qin et al., 2022, https://arxiv.org/abs/2202.08791, eq. 10):
    weights fall with the distance as cos(pi (i - j) / 2 M), which is positive up to M, the longest length.
    """

    positive = placed = True

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim, self.max_length = 2 * d, max_length

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        if steps.device.type != "meta" and steps.numel() and steps[:, -1].max() >= self.max_length:
            raise ValueError(
                f"cosformer was built for max_length={self.max_length} and got more steps: raise task.max_length"
            )
        angle = (math.pi / 2 / self.max_length * steps.to(wide(x.dtype)))[:, None, :, None]
        r = F.relu(x).to(angle.dtype)
        return torch.cat([r * angle.cos(), r * angle.sin()], -1)


class RandomFeatures(FeatureMap):
    """What both kinds of random features share: m = d ln d rows Omega, redrawn by `resample`."""

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim = max(8, math.ceil(d * math.log(d)))
        self.omega: Tensor
        self.register_buffer("omega", orthogonal_features(self.dim, d))

    def resample(self, generator: Generator) -> None:
        self.omega.copy_(orthogonal_features(*self.omega.shape, generator))


class PositiveRandom(RandomFeatures):
    """exp(Omega x - |x|^2 / 2) / sqrt(m), x scaled by d^{-1/4}: without bias e^{q . k / sqrt(d)} (Choromanski et al.,
    2020, https://arxiv.org/abs/2009.14794, lemma 1).
    """

    positive = log = True

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return random_logits(x, self.omega) - math.log(self.dim) / 2


class TrigonometricRandom(RandomFeatures):
    """e^{|x|^2 / 2} [cos(Omega x), sin(Omega x)] / sqrt(m), x scaled by d^{-1/4}: without bias e^{q . k / sqrt(d)}
    (Rahimi and Recht, 2007; Peng et al., 2021, https://arxiv.org/abs/2103.02143), but estimates may be negative.
    """

    def __init__(self, d: int, *, n_heads: int, max_length: int):
        super().__init__(d, n_heads=n_heads, max_length=max_length)
        self.dim *= 2

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        x = x.to(wide(x.dtype)) * self.d**-0.25
        z = project(x, self.omega.to(x.dtype))
        size = (x.square().sum(-1, keepdim=True) / 2).exp() * (self.dim / 2) ** -0.5
        return size * torch.cat([z.cos(), z.sin()], -1)


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    "identity": Identity,
    "silu": Silu,
    "elu1": Elu1,
    "relu": Relu,
    "squared_relu": SquaredRelu,
    "exp": Exp,
    "softmax": Softmax,
    "taylor": Taylor,
    "power": Power,
    "rebased": Rebased,
    "dpfp": DPFP,
    "hedgehog": Hedgehog,
    "t2r": T2R,
    "cosformer": Cosformer,
    "positive_random": PositiveRandom,
    "trigonometric_random": TrigonometricRandom,
}


def build(name: str, d: int, *, n_heads: int, max_length: int) -> FeatureMap:
    """The map `name` for heads of width d. Raises ValueError for unknown names."""
    if name not in FEATURE_MAPS:
        raise ValueError(f"unknown feature map '{name}': there are {', '.join(sorted(FEATURE_MAPS))}")
    return FEATURE_MAPS[name](d, n_heads=n_heads, max_length=max_length)


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1, positive (Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 7)."""
    return F.elu(x) + 1


def squares(x: Tensor) -> Tensor:
    """All products x_i x_j, i <= j, those with i < j times sqrt(2): squares(q) . squares(k) = (q . k)^2."""
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    return x[..., i] * x[..., j] * torch.full_like(i, 2, dtype=x.dtype).masked_fill(i == j, 1).sqrt()


def random_logits(x: Tensor, omega: Tensor) -> Tensor:
    """Omega x - |x|^2 / 2 for x scaled by D^(-1/4), in float32 at least: (B, H, T, m)."""
    x = x.to(wide(x.dtype)) * x.shape[-1] ** -0.25
    return project(x, omega.to(x.dtype)) - (x * x).sum(-1, keepdim=True) / 2


@exact
def project(x: Tensor, omega: Tensor) -> Tensor:
    return x @ omega.mT


def orthogonal_features(n: int, d: int, generator: Generator | None = None) -> Tensor:
    """(n, d): rows in orthogonal blocks, each as long as an independent Gaussian vector (Choromanski et al., 2020,
    https://arxiv.org/abs/2009.14794, section 2.4)."""
    blocks = []
    for start in range(0, n, d):
        Q, R = torch.linalg.qr(torch.randn(d, d, generator=generator))
        Q = Q * R.diagonal().sign()  # else their signs are the algorithm's, and estimates are biased (Mezzadri, 2006)
        blocks.append(Q.T[: min(d, n - start)])
    return torch.cat(blocks) * torch.randn(n, d, generator=generator).norm(dim=1, keepdim=True)
