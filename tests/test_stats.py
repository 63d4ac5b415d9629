"""Intervals against scipy.stats, and their coverage by simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from qbench import stats

DRAWS = 4000
finite = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def covers(rng: np.random.Generator, truth: float, interval, draws: int = DRAWS) -> float:
    hits = 0
    for _ in range(draws):
        e = interval(rng)
        hits += e.low <= truth <= e.high
    return hits / draws


def nominal(share: float, draws: int = DRAWS, expected: float = 0.95) -> bool:
    """Within 3.5 standard errors of a binomial share."""
    return abs(share - expected) < 3.5 * math.sqrt(expected * (1 - expected) / draws)


def test_mean_interval_is_scipys() -> None:
    x = [1.0, 2.0, 4.0, 4.5]
    e = stats.mean_interval(x)
    low, high = reference.t.interval(0.95, 3, np.mean(x), reference.sem(x))
    assert (e.value, e.low, e.high) == pytest.approx((2.875, low, high))
    assert e.half == pytest.approx((high - low) / 2) and e.df == 3


def test_one_value_has_no_interval() -> None:
    assert stats.mean_interval([3.0]) == stats.Estimate(3.0)
    assert stats.difference_interval([3.0], [1.0, 2.0]) == stats.Estimate(1.5)
    assert stats.mean_of_means_interval([[1.0, 2.0], [3.0]]).low is None


def test_equal_values_have_an_interval_of_width_zero() -> None:
    assert stats.mean_interval([0.5, 0.5, 0.5]) == stats.Estimate(0.5, 0.5, 0.5, 2)
    assert stats.difference_interval([1.0, 1.0], [1.0, 1.0, 1.0]).half == 0


def test_difference_is_welchs() -> None:
    a, b = [1.0, 2.0, 4.0], [0.0, 0.1, 0.3, 0.2, 0.6]
    expected = reference.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    e = stats.difference_interval(a, b)
    assert (e.low, e.high, e.df) == pytest.approx((interval.low, interval.high, expected.df))


def test_paired_test_is_scipys() -> None:
    a, b = [1.0, 2.0, 4.0, 3.0], [0.5, 2.2, 3.0, 2.0]
    expected = reference.ttest_rel(a, b)
    got = stats.paired_test(dict(enumerate(a)), {**dict(enumerate(b)), 99: 5.0})
    assert got.p == pytest.approx(expected.pvalue) and got.seeds == 4
    assert got.difference.low == pytest.approx(expected.confidence_interval(0.95).low)


def test_paired_test_without_spread_or_pairs() -> None:
    same = {0: 1.0, 1: 2.0}
    assert stats.paired_test(same, same).p is None
    assert stats.paired_test({0: 1.1, 1: 2.1}, same).p is None, "accuracies move in steps: an equal difference twice is no proof"
    assert stats.paired_test({0: 1.0}, {0: 0.5}).p is None
    alone = stats.paired_test({0: 1.0}, {1: 0.5})
    assert alone.p is None and alone.seeds == 0 and math.isnan(alone.difference.value)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm(p: list[float]) -> None:
    adjusted = stats.holm(p)
    assert all(raw <= a <= 1 for raw, a in zip(p, adjusted, strict=True))
    assert sorted(adjusted) == [adjusted[i] for i in sorted(range(len(p)), key=lambda i: p[i])]
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_mean_interval_covers(seeds: int) -> None:
    assert nominal(covers(np.random.default_rng(seeds), 0.0, lambda rng: stats.mean_interval(rng.normal(0, 2, seeds))))


@pytest.mark.parametrize(("seeds", "tasks"), [(3, 1), (3, 8), (5, 8), (10, 20)])
def test_mean_of_means_covers(seeds: int, tasks: int) -> None:
    centre = np.arange(tasks, dtype=float)
    spread = np.linspace(1, 2, tasks)
    rng = np.random.default_rng(seeds * tasks)
    share = covers(
        rng, centre.mean(), lambda r: stats.mean_of_means_interval(list((centre + spread * r.normal(size=(seeds, tasks))).T)), 2000
    )
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_gap_recovered_covers(seeds: int) -> None:
    """Seeds move all three alike, as shared starts do; the true recovery is 0.6."""

    def draw(rng: np.random.Generator) -> stats.Estimate:
        common = rng.normal(0, 0.5, seeds)
        m, rtn, fp = (mean + common + rng.normal(0, 0.05, seeds) for mean in (0.6, 0.0, 1.0))
        e = stats.gap_recovered(m, rtn, fp, "higher", 0.01)
        assert e is not None
        return e

    assert nominal(covers(np.random.default_rng(seeds), 0.6, draw))


def test_fieller_is_unbounded_where_there_is_no_gap() -> None:
    m, fp = np.array([0.5, 0.7, 0.6]), np.array([1.0, 0.2, 0.5])
    assert stats.gap_recovered(m, np.array([0.4, 0.5, 0.3]), fp, "higher", 0.01) is None
    assert stats.gap_recovered(m, fp - 0.005, fp, "higher", 0.01) is None, "below the minimum effect"
    assert stats.gap_recovered(m, fp + 1, fp, "higher", 0.01) is None, "RTN above FP"
    assert stats.gap_recovered([], [], [], "higher", 0.01) is None


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8))
def test_fieller_ends_solve_fiellers_equation(pairs: list[tuple[float, float]]) -> None:
    n, d = np.array(pairs).T
    e = stats.ratio_interval(n, d)
    if e is None or e.df is None:
        return
    assert e.low is not None and e.high is not None
    t = stats.quantile(e.df)
    for end in (e.low, e.high):
        rest = n - end * d
        error = math.sqrt(rest.var(ddof=1) / len(rest))
        assert abs(rest.mean()) == pytest.approx(t * error, rel=1e-4, abs=1e-4 * (1 + abs(end)) * np.abs(pairs).max())


def test_gap_recovered_by_hand() -> None:
    e = stats.gap_recovered([2.0, 2.2, 2.1], [3.0, 3.1, 3.2], [1.0, 1.1, 1.2], "lower", 0.1)
    assert e is not None and e.value == pytest.approx(0.5)
    # The denominator is 2 without spread, so Fieller is the t interval of the numerator, halved.
    gain = stats.mean_interval([1.0, 0.9, 1.1])
    assert (e.low, e.high) == pytest.approx((gain.low / 2, gain.high / 2))  # type: ignore[operator]
    assert stats.gap_recovered([2.0], [3.0], [1.0], "lower", 0.1) == stats.Estimate(0.5)


def test_clear_best() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 5)
    good, poor, same = ({i: x + shift for i, x in enumerate(base + rng.normal(0, 0.01, 5))} for shift in (1.0, 0.0, 1.0))
    assert stats.clear_best([poor, good], "higher", 0.1) == 1
    assert stats.clear_best([poor, good], "lower", 0.1) == 0
    assert stats.clear_best([poor, good], "higher", 2.0) is None, "below the minimum effect"
    assert stats.clear_best([poor, good, same], "higher", 0.0) is None
    assert stats.clear_best([good], "higher", 0.0) is None
    assert stats.clear_best([{0: 1.0}, {0: 0.0}], "higher", 0.0) is None, "one seed decides nothing"


def test_a_method_entered_twice_is_seldom_called_best() -> None:
    """Two equals far above the rest, three seeds that share their noise."""
    rng, bold = np.random.default_rng(1), 0
    for _ in range(2000):
        common = rng.normal(0, 1, 3)
        scores = [dict(enumerate(shift + common + rng.normal(0, 0.4, 3))) for shift in (5.0, 5.0, 0.0, 0.0)]
        bold += stats.clear_best(scores, "higher", 0.0) is not None
    assert bold / 2000 < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 2000)


def test_rank_ranges() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(0, 1, 10)
    scores = [dict(enumerate(shift + common + rng.normal(0, 0.05, 10))) for shift in (0.0, 2.0, 2.0, 1.0)]
    assert stats.rank_ranges(scores, "higher", 0.2) == [(4, 4), (1, 2), (1, 2), (3, 3)]
    assert stats.rank_ranges(scores, "lower", 0.2) == [(1, 1), (3, 4), (3, 4), (2, 2)]
    assert stats.rank_ranges(scores, "higher", 9.0) == [(1, 4)] * 4


def test_scipy_stats_is_not_imported() -> None:
    code = "import sys, qbench.stats; sys.exit('scipy.stats' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
