"""Statistics that do not lie: intervals and tests over seeds, for as few seeds as people run.

Below three seeds nothing is inferred. Student's t throughout: a percentile bootstrap covers 74 % at n = 3, not 95 %.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

MINIMUM = 3  # seeds, below which nothing is inferred
SIGN_FLIP = 8  # seeds, from which the exact test can reach 5 % with room for a correction


@dataclass(frozen=True)
class Paired:
    """What the differences to a baseline, seed by seed, allow to say; None where they do not allow it."""

    n: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    sign_flip: float | None  # the exact test's p, from 8 seeds
    smallest: float  # the smallest p that the exact test can reach with so many seeds
    seeds_needed: int | None


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: list[float]) -> float:
    """The sample's standard deviation; exactly 0 where the values differ by rounding only."""
    m = mean(values)
    s = math.sqrt(math.fsum((v - m) ** 2 for v in values) / (len(values) - 1))
    return s if s > 1e-12 * max(abs(v) for v in values) else 0.0


def interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t-interval of the mean; None below three values and where they are all equal, which shows no spread."""
    if len(values) < MINIMUM or deviation(values) == 0:
        return None
    from scipy.stats import t

    half = t.ppf((1 + level) / 2, len(values) - 1) * deviation(values) / math.sqrt(len(values))
    return mean(values) - float(half), mean(values) + float(half)


def paired(differences: list[float]) -> Paired:
    """The paired t-test of differences to a baseline at equal seeds, two-sided.

    Equal differences have no spread to test against: there the exact sign-flip test speaks, at any n.
    """
    n, m = len(differences), mean(differences)
    p, exact = None, None
    if n >= MINIMUM:
        exact = sign_flip(differences)
        p = exact
        if (s := deviation(differences)) > 0:
            from scipy.stats import t

            p = float(2 * t.sf(abs(m) / s * math.sqrt(n), n - 1))
    return Paired(
        n=n,
        mean=m,
        interval=interval(differences),
        p=p,
        sign_flip=exact if n >= SIGN_FLIP else None,
        smallest=2.0 ** (1 - n),
        seeds_needed=seeds_needed(differences),
    )


def sign_flip(differences: list[float]) -> float:
    """The exact two-sided p of the mean when every sign is a fair coin; all 2^n are counted, so n <= 40.

    The two halves' sums are listed apart and matched in sorted order, which makes 40 seeds as cheap as 20.
    """
    import numpy as np

    def sums(values):
        total = np.zeros(1)
        for value in values:
            total = np.concatenate([total + value, total - value])
        return total

    n, observed = len(differences), abs(math.fsum(differences))
    if n > 40:
        raise ValueError(f"{n} seeds are too many to count every sign: use the t-test")
    left, right = sums(differences[: n // 2]), np.sort(sums(differences[n // 2 :]))
    slack = 1e-12 * math.fsum(abs(d) for d in differences)  # equal sums in another order differ by rounding
    above = right.size - np.searchsorted(right, observed - slack - left)
    return min(1.0, 2 * int(above.sum()) / 2**n)


def holm(ps: list[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the chance of even one false claim among them is kept."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = least
    return adjusted


def count_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval of a proportion."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def steps_to(curve: list[tuple[float, float]], threshold: float, higher: bool) -> float | None:
    """The first step of (step, score) at which the score reaches the threshold; None where none does."""
    return next((step for step, score in curve if (score >= threshold if higher else score <= threshold)), None)


def reach(points: list[tuple[float, float]], threshold: float, higher: bool) -> tuple[float, int]:
    """Up to which x of (x, score), by rising x, every score reaches the threshold; and 0, or the sign of a bound.

    Between two points it lies where the score would cross, by the logarithm of x. 1: all reach it, so at least the last
    x; -1: the first does not, so less than it.
    """
    last: tuple[float, float] | None = None
    for x, score in points:
        if (score >= threshold) != higher and score != threshold:
            if last is None:
                return x, -1
            share = (last[1] - threshold) / (last[1] - score)
            return math.exp(math.log(last[0]) + share * (math.log(x) - math.log(last[0]))), 0
        last = x, score
    assert last is not None
    return last[0], 1


def seeds_needed(differences: list[float], power: float = 0.8, alpha: float = 0.05) -> int | None:
    """How many seeds a paired t-test needs to see a true gap and spread as observed; None where that cannot be said.

    None: below three seeds, no spread, no gap, or more than a million.
    """
    if len(differences) < MINIMUM or not (s := deviation(differences)) or not mean(differences):
        return None
    from scipy.stats import nct, t

    effect = abs(mean(differences)) / s

    def enough(n: int) -> bool:
        shift, limit = effect * math.sqrt(n), t.ppf(1 - alpha / 2, n - 1)
        if n > 1000:  # there the t distribution is normal, and scipy's noncentral one slow or nan
            return t.cdf(shift - limit, n - 1) >= power
        return nct.sf(limit, n - 1, shift) >= power or shift > 30

    limits = [MINIMUM, *(2**k for k in range(2, 21))]
    for low, high in pairwise([MINIMUM - 1, *limits]):
        if enough(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(middle) else (middle, high)
            return high
    return None


def slope(xs: list[float], ys: list[float]) -> float | None:
    """The exponent b of the best y = a x^b, by least squares of the logarithms; None below two points above 0."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    x0, y0 = mean([x for x, _ in points]), mean([y for _, y in points])
    return math.fsum((x - x0) * (y - y0) for x, y in points) / math.fsum((x - x0) ** 2 for x, _ in points)


def crossover(ours: dict[float, float], theirs: dict[float, float]) -> float | None:
    """The x from which on our cost stays below theirs, between points by their logarithms: the first x where it always
    does, None where it does not at the last."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared or ours[shared[-1]] >= theirs[shared[-1]]:
        return None
    for low, high in reversed(list(pairwise(shared))):
        if ours[low] >= theirs[low]:
            a, b = (math.log(ours[x] / theirs[x]) for x in (low, high))
            return math.exp(math.log(low) + (math.log(high) - math.log(low)) * a / (a - b))
    return shared[0]
