"""Feature maps phi for phi(q)^T phi(k): positive ones may be normalised."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1, positive (Katharopoulos et al., 2020, https://arxiv.org/abs/2006.16236, eq. 7)."""
    return F.elu(x) + 1


def orthogonal_features(n: int, d: int, generator: Generator | None = None) -> Tensor:
    """(n, d): rows in orthogonal blocks, each as long as an independent Gaussian vector (Choromanski et al., 2020,
    https://arxiv.org/abs/2009.14794, section 2.4)."""
    blocks = []
    for start in range(0, n, d):
        square, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
        blocks.append(square.T[: min(d, n - start)])
    return torch.cat(blocks) * torch.randn(n, d, generator=generator).norm(dim=1, keepdim=True)
