"""Tests that decide whether entrants differ: paired t tests, Holm's correction, McNemar's test.

Paired tests. Two runs of one seed share their initial weights and the order of their data, so
much of their noise is the same. The paired t test looks at the differences within seeds, where
this shared part cancels. Cells of one entrant share a seed as well; they are not further pairs.
Average over them within each seed, or the test finds differences between a method and itself.
Where all differences are equal there is no spread to compare with. Accuracies move in steps, so
two seeds with an equal difference prove nothing, and such a test has no p value.

Holm's correction. A table holds many tests, and at a level of 5 % one in twenty rejects by
chance. Holm sorts the p values and multiplies the smallest by the number of tests m, the next by
m − 1, and so on, and never lets an adjusted value fall below the one before it. If the adjusted
values are compared with α, the probability of any false rejection in the whole family is at most
α, whatever the dependence between the tests. That matters here: all tests share the same runs.

A difference must also reach the minimum effect of its metric. With many seeds a test can tell
apart what nobody needs to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from qbench.stats.intervals import (
    CONFIDENCE,
    NEGLIGIBLE_SPREAD,
    Estimate,
    as_sample,
    difference_interval,
    mean_interval,
    two_sided_p,
    variance_of_mean,
)

if TYPE_CHECKING:
    from qbench.stats.intervals import Array


@dataclass(frozen=True)
class DifferenceTest:
    """The difference between two entrants and its p value."""

    difference: Estimate
    """Without an interval where there is no p value."""
    p: float | None
    """Two-sided. None where fewer than two seeds are shared or all differences are equal."""
    seeds: int
    """The number of pairs; 0 if the samples were compared as independent ones."""


def paired_test(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE
) -> DifferenceTest:
    """Test a − b with the paired t test over the seeds that both have."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return DifferenceTest(Estimate(math.nan), None, 0)
    x, y = as_sample([a[s] for s in shared]), as_sample([b[s] for s in shared])
    return _test_pairs(x, y, confidence)


def _test_pairs(x: Array, y: Array, confidence: float) -> DifferenceTest:
    differences = x - y
    error = math.sqrt(variance_of_mean(differences))
    # Subtraction leaves rounding errors, so "no spread" is measured against the size of the scores.
    if error <= NEGLIGIBLE_SPREAD * float((np.abs(x) + np.abs(y)).max()):
        return DifferenceTest(Estimate(float(differences.mean())), None, len(differences))
    difference = mean_interval(differences, confidence)
    p = two_sided_p(difference.value / error, len(differences) - 1)
    return DifferenceTest(difference, p, len(differences))


def paired_tests(
    scores: Sequence[Mapping[int, float]],
    pairs: Sequence[tuple[int, int]],
    confidence: float = CONFIDENCE,
) -> list[DifferenceTest]:
    """Return `paired_test(scores[i], scores[j])` for each pair (i, j).

    On most boards all entrants have the same seeds. Then each mapping is turned into an array
    once, instead of once for each pair that it is part of.
    """
    seeds = sorted(scores[0]) if scores else []
    if not seeds or any(s.keys() != scores[0].keys() for s in scores):
        return [paired_test(scores[i], scores[j], confidence) for i, j in pairs]
    rows = [as_sample([s[seed] for seed in seeds]) for s in scores]
    return [_test_pairs(rows[i], rows[j], confidence) for i, j in pairs]


def unpaired_test(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE
) -> DifferenceTest:
    """Test a − b with Welch's t test, for entrants that share no seed.

    Nothing cancels here, so this test needs a larger difference than the paired one.
    """
    assert not a.keys() & b.keys(), "what shares seeds is paired"
    x, y = as_sample(list(a.values())), as_sample(list(b.values()))
    difference = difference_interval(x, y, confidence)
    error = math.sqrt(variance_of_mean(x) + variance_of_mean(y))
    scale = float(np.abs(x).max() + np.abs(y).max())
    if difference.df is None or error <= NEGLIGIBLE_SPREAD * scale:
        return DifferenceTest(Estimate(difference.value), None, 0)
    return DifferenceTest(difference, two_sided_p(difference.value / error, difference.df), 0)


def adjust_by_holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        # The running maximum keeps the adjusted values in the order of the p values: once a test
        # fails, every test after it fails too.
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


# ---- who is best, and ranks ----


def find_clear_bests(
    columns: Sequence[Sequence[Mapping[int, float]]],
    better: str,
    minimum_effect: float,
    alpha: float = 1 - CONFIDENCE,
) -> list[int | None]:
    """Return for each column of a table the index of the entrant that beats all others.

    A win is a significant paired test and a difference of at least the minimum effect. The entry
    is None where no entrant wins all its comparisons, or where there is nobody to beat. Holm's
    correction is applied over the rivals within a column and then over the columns. So at most
    α of all tables mark an entrant that is no better than another one, however many columns the
    tables have.
    """
    candidates = [_test_best_mean(scores, better, minimum_effect) for scores in columns]
    # A column that tests nothing must not make the correction of the others stricter.
    adjusted = iter(adjust_by_holm([p for _, p in candidates if p is not None]))
    return [best if p is not None and next(adjusted) < alpha else None for best, p in candidates]


def _test_best_mean(
    scores: Sequence[Mapping[int, float]], better: str, minimum_effect: float
) -> tuple[int | None, float | None]:
    """Return the entrant with the best mean, and the p value of "it does not beat all others".

    The p value is None where there is nothing to test, and 1 where one of the comparisons has no
    p value or a difference below the minimum effect.
    """
    if len(scores) < 2 or not all(scores):
        return None, None
    means = [float(np.mean(list(s.values()))) for s in scores]
    best = int(np.argmax(means) if better == "higher" else np.argmin(means))
    tests = paired_tests(scores, [(best, i) for i in range(len(scores)) if i != best])
    sign = 1 if better == "higher" else -1
    wins = [t.p for t in tests if t.p is not None and sign * t.difference.value >= minimum_effect]
    # All comparisons must be won, so the weakest one decides.
    return best, max(adjust_by_holm(wins)) if len(wins) == len(tests) else 1.0


def compute_rank_ranges(
    scores: Sequence[Mapping[int, float]],
    better: str,
    minimum_effect: float,
    alpha: float = 1 - CONFIDENCE,
) -> list[tuple[int, int]]:
    """Return the first and the last rank that each entrant may hold.

    The first rank is one more than the number of entrants that beat it. The last rank is the
    number of entrants less those that it beats. A pair is decided by the paired t test with
    Holm's correction over all pairs, and by the minimum effect. Pass one score for each seed: the
    mean over the cells that all entrants have.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i)]
    tests = paired_tests(scores, pairs)
    # A test without a p value counts in the family, as one that cannot reject.
    adjusted = adjust_by_holm([1.0 if t.p is None else t.p for t in tests])
    beaten_by, beats = [0] * len(scores), [0] * len(scores)
    for (i, j), test, p in zip(pairs, tests, adjusted, strict=True):
        if p >= alpha or abs(test.difference.value) < minimum_effect:
            continue
        winner, loser = (i, j) if (test.difference.value > 0) == (better == "higher") else (j, i)
        beaten_by[loser] += 1
        beats[winner] += 1
    return [(1 + a, len(scores) - b) for a, b in zip(beaten_by, beats, strict=True)]


# ---- tests over items of a downstream task ----


@dataclass(frozen=True)
class DiscordantItems:
    """The items that exactly one of two models answers correctly."""

    first: int
    """How many only the first answers correctly."""
    second: int
    """How many only the second answers correctly."""
    p: float
    """The exact two-sided p value of "both counts have the same expectation"."""


def mcnemar_test(
    a: Sequence[bool] | npt.NDArray[np.bool_], b: Sequence[bool] | npt.NDArray[np.bool_]
) -> DiscordantItems:
    """Compare two lists of correct and wrong answers to the same items by McNemar's exact test.

    Items on which both agree do not tell the models apart. If the models are equally good, then
    of the other items each is right on half, so the smaller count is binomial with p = 1/2.
    """
    x, y = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    assert x.shape == y.shape, "the same items, in the same order"
    first, second = int(np.sum(x & ~y)), int(np.sum(y & ~x))
    # The distribution is symmetric, so twice one tail is two-sided. With equal counts that tail
    # holds more than half, and the sum is cut at 1.
    p = min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))
    return DiscordantItems(first, second, p)
