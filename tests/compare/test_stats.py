"""Statistics against scipy, against enumeration, and against what they must never claim."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from compare import stats
from compare.tables import Row
from compare.verdict import verdict

VALUES = [0.91, 0.85, 0.97, 0.88, 0.9]


def test_the_interval_is_students():
    low, high = stats.interval(VALUES)
    expected = scipy_stats.t.interval(0.95, 4, np.mean(VALUES), scipy_stats.sem(VALUES))
    assert (low, high) == pytest.approx(expected)


def test_below_three_seeds_nothing_is_inferred():
    assert stats.interval([0.1, 0.9]) is None
    two = stats.paired([0.5, 0.6])
    assert two.mean == pytest.approx(0.55)
    assert (two.interval, two.p, two.sign_flip, two.seeds_needed) == (None, None, None, None)


def test_the_paired_test_is_students():
    got = stats.paired(VALUES)
    expected = scipy_stats.ttest_1samp(VALUES, 0)
    assert got.p == pytest.approx(expected.pvalue)
    assert got.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_differences_without_spread_claim_no_more_than_their_signs():
    got = stats.paired([1.0, 1.0, 1.0])
    assert got.p == 0.25  # not 0, which Student's formula would say
    assert got.interval is None
    assert stats.paired([0.0, 0.0, 0.0]).p == 1
    assert stats.paired([0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4]).p == 0.25  # equal but for rounding


def enumerated(differences):
    observed = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(s >= observed - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize("n", [3, 8, 9, 11])
def test_sign_flips_are_all_counted(n):
    for differences in ([0.1] * n, list(np.random.default_rng(n).normal(0.4, 1, n)), [0.1, -0.1, *[0.2] * (n - 2)]):
        assert stats.sign_flip(differences) == pytest.approx(enumerated(differences))


def test_the_exact_test_stands_beside_from_eight_seeds():
    assert stats.paired([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1]).sign_flip is None
    eight = stats.paired([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2])
    assert eight.sign_flip == eight.smallest == 2**-7


def test_many_seeds_are_refused_or_exact():
    assert stats.sign_flip([1.0] * 30) == pytest.approx(2.0**-29)
    with pytest.raises(ValueError, match="41 seeds"):
        stats.sign_flip([1.0] * 41)


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


@pytest.mark.parametrize(("k", "n"), [(0, 3), (2, 3), (3, 3), (7, 10)])
def test_the_count_interval_is_exact(k, n):
    expected = scipy_stats.binomtest(k, n).proportion_ci(method="exact")
    assert stats.count_interval(k, n) == pytest.approx((expected.low, expected.high))


def power(effect, n):
    limit = scipy_stats.t.ppf(0.975, n - 1)
    shift = effect * math.sqrt(n)
    return scipy_stats.nct.sf(limit, n - 1, shift)


@pytest.mark.parametrize("scale", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_seeds_needed_is_the_smallest_with_the_power(scale):
    differences = [scale + d for d in (-1.0, 0.0, 1.0)]
    n = stats.seeds_needed(differences)
    assert power(scale, n) >= 0.8 - 1e-3
    assert n == 3 or power(scale, n - 1) < 0.8 + 1e-3


def test_seeds_needed_is_the_textbooks():
    assert stats.seeds_needed([-0.5, 0.5, 1.5]) == 34  # d = 0.5: the textbook's 34 pairs


@pytest.mark.parametrize("differences", [[0.1, 0.2], [0.1, 0.1, 0.1], [-0.1, 0.0, 0.1], [1e-5 - 1, 1e-5, 1e-5 + 1]])
def test_seeds_needed_says_when_it_cannot_say(differences):
    assert stats.seeds_needed(differences) is None


def test_a_huge_gap_needs_few_seeds():
    assert stats.seeds_needed([99.0, 100.0, 101.0]) == 3


def test_steps_to_a_threshold_are_the_first_there():
    curve = [(100, 0.2), (200, 0.95), (300, 0.5)]
    assert stats.steps_to(curve, 0.9, True) == 200
    assert stats.steps_to(curve, 0.99, True) is None
    assert stats.steps_to(curve, 0.5, False) == 100
    assert stats.steps_to([], 0.9, True) is None


def test_the_reach_lies_where_the_score_crosses():
    assert stats.reach([(4, 1.0), (8, 0.95), (16, 0.85)], 0.9, True) == (pytest.approx(8 * 2**0.5), 0)
    assert stats.reach([(4, 1.0), (8, 0.9), (16, 0.1)], 0.9, True)[0] == pytest.approx(8)
    assert stats.reach([(4, 1.0), (8, 0.5), (16, 1.0)], 0.9, True)[0] < 8  # every easier one has to be solved
    assert stats.reach([(4, 0.2), (8, 1.0)], 0.9, True) == (4, -1)
    assert stats.reach([(4, 0.9), (8, 1.0)], 0.9, True) == (8, 1)
    assert stats.reach([(4, 1.0), (8, 3.0)], 2.0, False) == (pytest.approx(4 * 2**0.5), 0)


# -- calibration: what is claimed about chance, held against chance ----------------------------------------------------

TRIALS = 2000
SLACK = 3 * math.sqrt(0.05 * 0.95 / TRIALS)  # three standard errors of a share of 5 %


def simulated(n, gap=0.0, seed=0):
    """Differences at n seeds between two mixers that share what a seed brings, of which the first is `gap` better."""
    rng = np.random.default_rng((n, seed))
    shared, a, b = rng.normal(0, 3, (TRIALS, n)), rng.normal(gap, 1, (TRIALS, n)), rng.normal(0, 1, (TRIALS, n))
    return ((shared + a) - (shared + b)).tolist()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stats, "seeds_needed", lambda *_, **__: None)  # slow, and no part of the test


@pytest.mark.parametrize("n", [3, 5, 10])
def test_equal_mixers_differ_in_one_comparison_of_twenty(n, quick):
    found = [stats.paired(d) for d in simulated(n)]
    assert abs(np.mean([p.p < 0.05 for p in found]) - 0.05) <= SLACK
    assert abs(np.mean([p.interval[0] <= 0 <= p.interval[1] for p in found]) - 0.95) <= SLACK
    if n >= stats.SIGN_FLIP:
        assert np.mean([p.sign_flip < 0.05 for p in found]) <= 0.05 + SLACK


@pytest.mark.parametrize(("n", "gap"), [(3, 6.0), (5, 2.5), (10, 1.5)])
def test_a_known_gap_is_found_as_often_as_it_should_be(n, gap, quick):
    found = [stats.paired(d) for d in simulated(n, gap)]
    expected = power(gap / math.sqrt(2), n)
    assert 0.5 < expected < 0.99
    assert abs(np.mean([p.p < 0.05 for p in found]) - expected) <= 3 * 0.5 / math.sqrt(TRIALS)
    covered = np.mean([p.interval[0] <= gap <= p.interval[1] for p in found])
    assert abs(covered - 0.95) <= SLACK


def test_so_many_seeds_as_are_said_to_be_needed_do_resolve_the_gap(quick, monkeypatch):
    monkeypatch.undo()
    pilot = [1.0 + d for d in (-1.5, -0.5, 0.0, 0.5, 1.5)]
    n = stats.seeds_needed(pilot)
    rng = np.random.default_rng(1)
    draws = rng.normal(np.mean(pilot), np.std(pilot, ddof=1), (TRIALS, n))
    found = np.mean([scipy_stats.ttest_1samp(d, 0).pvalue < 0.05 for d in draws])
    assert found >= 0.8 - SLACK * 2


@pytest.mark.parametrize("n", [3, 5, 10])
def test_among_equal_mixers_a_winner_is_rare(n, quick):
    rng = np.random.default_rng(n)
    wins = 0
    for trial in rng.normal(0.5, 0.1, (TRIALS // 4, 4, n)):
        rows = [Row(str(i), str(i), [], dict(enumerate(scores))) for i, scores in enumerate(trial.tolist())]
        wins += " wins: " in verdict(rows, higher=True)
    assert wins / (TRIALS // 4) <= 0.05


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_of_a_count_covers(share):
    counts = np.random.default_rng(0).binomial(5, share, TRIALS)
    ends = {k: stats.count_interval(k, 5) for k in range(6)}
    assert np.mean([ends[k][0] <= share <= ends[k][1] for k in counts]) >= 0.95
