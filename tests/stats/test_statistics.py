"""Compare intervals and tests with scipy.stats and with results by hand, and give them bad input.

Their coverage is checked in test_interval_coverage.py.
"""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from qbench.stats import intervals
from qbench.stats.aggregates import (
    BOOTSTRAP_DRAWS,
    expanded_percentile_interval,
    find_pareto_front,
    interquartile_mean,
    resample_ratios,
    share_reaching,
)
from qbench.stats.comparisons import (
    DifferenceTest,
    DiscordantItems,
    adjust_by_holm,
    compute_rank_ranges,
    find_clear_bests,
    mcnemar_test,
    paired_test,
    paired_tests,
    unpaired_test,
)

finite = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_mean_interval_is_scipys() -> None:
    x = [1.0, 2.0, 4.0, 4.5]
    e = intervals.mean_interval(x)
    low, high = reference.t.interval(0.95, 3, np.mean(x), reference.sem(x))
    assert (e.value, e.low, e.high) == pytest.approx((2.875, low, high))
    assert e.half_width == pytest.approx((high - low) / 2) and e.df == 3


def test_one_value_has_no_interval() -> None:
    assert intervals.mean_interval([3.0]) == intervals.Estimate(3.0)
    assert intervals.difference_interval([3.0], [1.0, 2.0]) == intervals.Estimate(1.5)
    assert intervals.mean_of_means_interval([[1.0, 2.0], [3.0]]).low is None


def test_equal_values_have_an_interval_of_width_zero() -> None:
    assert intervals.mean_interval([0.5, 0.5, 0.5]) == intervals.Estimate(0.5, 0.5, 0.5, 2)
    assert intervals.difference_interval([1.0, 1.0], [1.0, 1.0, 1.0]).half_width == 0


def test_difference_is_welchs() -> None:
    a, b = [1.0, 2.0, 4.0], [0.0, 0.1, 0.3, 0.2, 0.6]
    expected = reference.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval(0.95)
    e = intervals.difference_interval(a, b)
    assert (e.low, e.high, e.df) == pytest.approx((interval.low, interval.high, expected.df))


def test_paired_test_is_scipys() -> None:
    a, b = [1.0, 2.0, 4.0, 3.0], [0.5, 2.2, 3.0, 2.0]
    expected = reference.ttest_rel(a, b)
    got = paired_test(dict(enumerate(a)), {**dict(enumerate(b)), 99: 5.0})
    assert got.p == pytest.approx(expected.pvalue) and got.seeds == 4
    assert got.difference.low == pytest.approx(expected.confidence_interval(0.95).low)


def test_paired_test_without_spread_or_pairs() -> None:
    same = {0: 1.0, 1: 2.0}
    assert paired_test(same, same) == DifferenceTest(intervals.Estimate(0.0), None, 2), (
        "without spread there is no interval"
    )
    assert paired_test({0: 1.1, 1: 2.1}, same).p is None, (
        "accuracies move in steps: an equal difference twice is no proof"
    )
    assert paired_test({0: 1.0}, {0: 0.5}).p is None
    alone = paired_test({0: 1.0}, {1: 0.5})
    assert alone.p is None and alone.seeds == 0 and math.isnan(alone.difference.value)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_multiplies_the_smallest_p(p: list[float]) -> None:
    adjusted = adjust_by_holm(p)
    assert all(raw <= a <= 1 for raw, a in zip(p, adjusted, strict=True))
    assert sorted(adjusted) == [adjusted[i] for i in sorted(range(len(p)), key=lambda i: p[i])]
    assert min(adjusted) == pytest.approx(min(1, len(p) * min(p)))


def test_holm_by_hand() -> None:
    assert adjust_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_fieller_is_unbounded_where_there_is_no_gap() -> None:
    m, fp = np.array([0.5, 0.7, 0.6]), np.array([1.0, 0.2, 0.5])
    assert (
        intervals.gap_recovered_interval(m, np.array([0.4, 0.5, 0.3]), fp, "higher", 0.01) is None
    )
    assert intervals.gap_recovered_interval(m, fp - 0.005, fp, "higher", 0.01) is None, (
        "below the minimum effect"
    )
    assert intervals.gap_recovered_interval(m, fp + 1, fp, "higher", 0.01) is None, "RTN above FP"
    assert intervals.gap_recovered_interval([], [], [], "higher", 0.01) is None


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8))
def test_fieller_ends_solve_fiellers_equation(pairs: list[tuple[float, float]]) -> None:
    n, d = np.array(pairs).T
    e = intervals.ratio_interval(n, d)
    if e is None or e.df is None:
        return
    assert e.low is not None and e.high is not None
    t = intervals.t_quantile(e.df)
    for end in (e.low, e.high):
        rest = n - end * d
        error = math.sqrt(rest.var(ddof=1) / len(rest))
        assert abs(rest.mean()) == pytest.approx(
            t * error, rel=1e-4, abs=1e-4 * (1 + abs(end)) * np.abs(pairs).max()
        )


def test_gap_recovered_by_hand() -> None:
    e = intervals.gap_recovered_interval(
        [2.0, 2.2, 2.1], [3.0, 3.1, 3.2], [1.0, 1.1, 1.2], "lower", 0.1
    )
    assert e is not None and e.value == pytest.approx(0.5)
    # The denominator is 2 without spread, so Fieller is the t interval of the numerator, halved.
    gain = intervals.mean_interval([1.0, 0.9, 1.1])
    assert (e.low, e.high) == pytest.approx((gain.low / 2, gain.high / 2))  # type: ignore[operator]
    assert intervals.gap_recovered_interval(
        [2.0], [3.0], [1.0], "lower", 0.1
    ) == intervals.Estimate(0.5)


def find_best(*scores: dict[int, float], better: str = "higher", effect: float = 0.0) -> int | None:
    (best,) = find_clear_bests([scores], better, effect)
    return best


def test_a_clear_best_needs_a_significant_difference_above_the_minimum_effect() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 5)
    good, poor, same = (
        {i: x + shift for i, x in enumerate(base + rng.normal(0, 0.01, 5))}
        for shift in (1.0, 0.0, 1.0)
    )
    assert find_best(poor, good, effect=0.1) == 1
    assert find_best(poor, good, better="lower", effect=0.1) == 0
    assert find_best(poor, good, effect=2.0) is None, "below the minimum effect"
    assert find_best(poor, good, same) is None
    assert find_best(good) is None and find_best(good, {}) is None
    assert find_best({0: 1.0}, {0: 0.0}) is None, "one seed decides nothing"
    assert find_best(good, {s + 9: x for s, x in poor.items()}) is None, "nor do disjoint ones"


def test_bests_are_corrected_over_rivals_and_columns() -> None:
    """p = 0.03 is enough for one rival in one column, not for two rivals or two such columns."""
    zero = dict.fromkeys(range(5), 0.0)
    fair, plain = (
        {i: m + d for i, d in enumerate((-0.1, 0.1, 0.0, -0.05, 0.05))} for m in (0.115, 1.0)
    )
    p = paired_test(fair, zero).p
    assert p is not None and 0.025 < p < 0.05
    assert find_clear_bests([[zero, fair]], "higher", 0.0) == [1]
    assert find_clear_bests([[zero, fair, dict(zero)]], "higher", 0.0) == [None]
    assert find_clear_bests([[zero, fair], [zero, fair]], "higher", 0.0) == [None, None]
    assert find_clear_bests([[zero, fair], [zero, plain]], "higher", 0.0) == [1, 1], (
        "Holm: the clearest first"
    )
    assert find_clear_bests([[zero, fair], [fair], []], "higher", 0.0) == [1, None, None], (
        "a column without rivals tests nothing"
    )


def test_rank_ranges_follow_the_means_and_the_minimum_effect() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(0, 1, 10)
    scores = [
        dict(enumerate(shift + common + rng.normal(0, 0.05, 10))) for shift in (0.0, 2.0, 2.0, 1.0)
    ]
    assert compute_rank_ranges(scores, "higher", 0.2) == [(4, 4), (1, 2), (1, 2), (3, 3)]
    assert compute_rank_ranges(scores, "lower", 0.2) == [(1, 1), (3, 4), (3, 4), (2, 2)]
    assert compute_rank_ranges(scores, "higher", 9.0) == [(1, 4)] * 4


def test_entrants_that_cannot_be_paired_share_a_rank() -> None:
    rng = np.random.default_rng(3)
    a, b = (
        {first + i: x for i, x in enumerate(rng.normal(mean, 0.01, 10))}
        for first, mean in ((0, 0.0), (10, 5.0))
    )
    assert compute_rank_ranges([a, b], "higher", 0.0) == [(1, 2)] * 2, "disjoint seeds"
    assert compute_rank_ranges([a, dict(a)], "higher", 0.0) == [(1, 2)] * 2, "identical scores"
    assert compute_rank_ranges([{0: 1.0}, {0: 2.0}], "higher", 0.0) == [(1, 2)] * 2, "one seed"
    assert compute_rank_ranges([a], "higher", 0.0) == [(1, 1)]


# ---- items ----


@pytest.mark.parametrize(
    ("first", "second", "both"), [(12, 3, 50), (3, 12, 0), (1, 1, 4), (5, 0, 5), (40, 60, 900)]
)
def test_mcnemar_is_the_binomial_test_of_the_items_they_disagree_on(
    first: int, second: int, both: int
) -> None:
    a, b = (
        [True] * first + [False] * second + [True] * both,
        [False] * first + [True] * second + [True] * both,
    )
    got = mcnemar_test(a, b)
    assert (got.first, got.second) == (first, second)
    assert got.p == pytest.approx(reference.binomtest(first, first + second, 0.5).pvalue)
    assert mcnemar_test(b, a) == DiscordantItems(second, first, got.p)


def test_mcnemar_of_equal_answers_and_of_none() -> None:
    assert mcnemar_test([True, False], [True, False]) == DiscordantItems(0, 0, 1.0)
    assert mcnemar_test([], []).p == 1.0
    with pytest.raises(AssertionError, match="the same items"):
        mcnemar_test([True], [True, False])


def test_mcnemar_rarely_rejects_equals_and_finds_two_points_on_a_thousand_items() -> None:
    """Of a hundred items 4 are lost and 2 won, which an unpaired test would not find."""
    rng, draws = np.random.default_rng(0), 2000
    kind = rng.random((draws, 1000))
    both, first = kind < 0.6, (kind >= 0.6) & (kind < 0.64)

    def rejected(second: np.ndarray) -> float:
        pairs = zip(both | first, both | second, strict=True)
        return float(np.mean([mcnemar_test(a, b).p < 0.05 for a, b in pairs]))

    equal, fewer = (kind >= 0.64) & (kind < 0.68), (kind >= 0.64) & (kind < 0.66)
    assert rejected(equal) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws) and rejected(fewer) > 0.6
    right, other = (both | first).mean(1), (both | fewer).mean(1)
    error = np.sqrt((right * (1 - right) + other * (1 - other)) / 1000)
    assert np.mean(np.abs(right - other) > 1.96 * error) < 0.01


# ---- cells ----


@given(st.lists(finite, min_size=1, max_size=23))
def test_the_interquartile_mean_is_scipys_trimmed_one(values: list[float]) -> None:
    assert float(interquartile_mean(np.array(values))) == pytest.approx(
        reference.trim_mean(values, 0.25)
    )
    assert interquartile_mean(np.array([values, values])).shape == (2,)


def test_profiles_by_hand() -> None:
    assert share_reaching(np.array([0.2, 0.5, 0.9, -0.4]), np.array([0.0, 0.5, 0.95])).tolist() == [
        0.75,
        0.5,
        0.0,
    ]


def test_linearised_ratios_have_the_ratio_for_a_mean_and_fiellers_spread() -> None:
    rng = np.random.default_rng(0)
    d = 1 + rng.normal(0, 0.01, (3, 10))
    n = 0.5 * d + rng.normal(0, 0.01, (3, 10))
    got = intervals.linearise_ratio(n, d)
    assert got.mean(1) == pytest.approx(n.mean(1) / d.mean(1))
    for one, top, bottom in zip(got, n, d, strict=True):
        fieller, line = intervals.ratio_interval(top, bottom), intervals.mean_interval(one)
        assert fieller is not None and (line.low, line.high) == pytest.approx(
            (fieller.low, fieller.high), rel=1e-3
        )


def test_resampled_ratios_draw_everything_of_a_seed_together() -> None:
    gains = np.array([[0.1, 0.5, 0.9, 0.4], [1.1, 1.5, 1.9, 1.4]])
    draws = resample_ratios([(gains, np.ones((2, 4))), (gains[:1], np.ones((1, 4)))])
    assert draws.shape == (BOOTSTRAP_DRAWS, 3) and np.array_equal(
        draws, resample_ratios([(gains, np.ones((2, 4))), (gains[:1], np.ones((1, 4)))])
    )
    assert draws[:, 1] == pytest.approx(draws[:, 0] + 1), "cells of one task"
    assert abs(np.corrcoef(draws[:, 0], draws[:, 2])[0, 1]) < 0.1, "another task draws its own"
    assert draws[:, 0].var() == pytest.approx(gains[0].var(ddof=1) / 4, rel=0.1), (
        "the variance of the mean, not (n − 1)/n of it"
    )


def test_draws_without_a_gap_are_left_out() -> None:
    gap = np.array([[1.0, -1.0, 1.0]])
    draws = resample_ratios([(gap, gap)])
    assert 0 < len(draws) < BOOTSTRAP_DRAWS and np.isfinite(draws).all()


def test_percentiles_are_expanded_as_far_as_t_is_wider_than_the_normal() -> None:
    draws = np.random.default_rng(0).normal(size=200_000)
    assert expanded_percentile_interval(draws, math.inf) == pytest.approx(
        tuple(np.quantile(draws, (0.025, 0.975)))
    )
    low, high = expanded_percentile_interval(draws, 9)
    assert (float(low), float(high)) == pytest.approx(
        (-reference.t.ppf(0.975, 9), reference.t.ppf(0.975, 9)), abs=0.02
    )


def test_pareto_by_hand() -> None:
    points = np.array([[1, 5, 1], [2, 4, 1], [2, 5, 1], [1, 5, 1], [3, 3, 0.5], [4, 4, 4]])
    assert find_pareto_front(points).tolist() == [True, True, False, True, True, False], (
        "equal rows do not beat each other"
    )
    assert find_pareto_front(np.empty((0, 3))).tolist() == []


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_a_point_that_is_not_on_the_front_is_beaten_by_one_that_is(
    rows: list[tuple[int, int, int]],
) -> None:
    front = find_pareto_front(np.array(rows))
    assert front.any()
    on = [row for row, kept in zip(rows, front, strict=True) if kept]
    for row, kept in zip(rows, front, strict=True):
        assert kept != any(
            other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in on
        )


# ---- bad input ----


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    spoilt, whole = [1.0, bad, 2.0], [1.0, 3.0, 2.0]
    calls = [
        lambda: intervals.mean_interval(spoilt),
        lambda: intervals.difference_interval(whole, spoilt),
        lambda: intervals.mean_of_means_interval([whole, spoilt]),
        lambda: intervals.ratio_interval(spoilt, whole),
        lambda: intervals.gap_recovered_interval(whole, spoilt, [9.0, 9.0, 9.5], "higher", 0.1),
        lambda: paired_test(dict(enumerate(whole)), dict(enumerate(spoilt))),
        lambda: unpaired_test({9: 1.0, 8: 2.0}, dict(enumerate(spoilt))),
        lambda: intervals.mean_interval([]),
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="finite"):
            call()


@given(st.lists(st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=5), st.booleans())
def test_many_pairs_are_tested_as_each_alone(rows: list[list[float]], ragged: bool) -> None:
    scores = [dict(enumerate(row)) for row in rows]
    if ragged:
        scores[-1].pop(2)
    pairs = [(i, j) for i in range(len(scores)) for j in range(i)]
    assert paired_tests(scores, pairs) == [paired_test(scores[i], scores[j]) for i, j in pairs]
    assert paired_tests([], []) == []


def test_unpaired_test_is_welchs() -> None:
    a, b = [1.0, 2.0, 4.0], [0.0, 0.1, 0.3, 0.2, 0.6]
    got = unpaired_test(dict(enumerate(a)), {10 + i: x for i, x in enumerate(b)})
    assert (
        got.p == pytest.approx(reference.ttest_ind(a, b, equal_var=False).pvalue) and got.seeds == 0
    )
    assert unpaired_test({0: 1.0}, {1: 2.0, 2: 3.0}) == DifferenceTest(
        intervals.Estimate(-1.5), None, 0
    )
    assert unpaired_test({0: 1.0, 1: 1.0}, {2: 2.0, 3: 2.0}).p is None
    with pytest.raises(AssertionError, match="paired"):
        unpaired_test({0: 1.0}, {0: 2.0})


def test_the_mean_of_means_weights_the_tasks() -> None:
    tasks = [[1.0, 1.2, 0.8], [5.0, 5.1, 5.3]]
    assert intervals.mean_of_means_interval(tasks, [1, 3]).value == pytest.approx(
        (np.mean(tasks[0]) + 3 * np.mean(tasks[1])) / 4
    )
    parts = [w**2 * reference.sem(task) ** 2 for w, task in zip((0.25, 0.75), tasks, strict=True)]
    weighted = intervals.mean_of_means_interval(tasks, [1, 3])
    assert weighted.df == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 2))
    assert weighted.half_width == pytest.approx(
        reference.t.ppf(0.975, weighted.df) * math.sqrt(sum(parts))
    )
    assert intervals.mean_of_means_interval(tasks, [2, 2]) == intervals.mean_of_means_interval(
        tasks
    )
    assert intervals.mean_of_means_interval(tasks[:1]) == intervals.mean_interval(tasks[0])


def test_scipy_stats_is_not_imported() -> None:
    code = (
        "import sys, qbench.stats; sys.exit('scipy.stats' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
