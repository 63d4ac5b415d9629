"""Paired tests, Holm, clear bests, ranges of ranks, McNemar."""

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
    SPREADLESS,
    Estimate,
    _sample,
    _two_sided,
    _variance_of_mean,
    difference_interval,
    mean_interval,
)

if TYPE_CHECKING:
    from qbench.stats.intervals import Array


@dataclass(frozen=True)
class Paired:
    """A comparison seed by seed; of independent samples where `seeds` is 0."""

    difference: Estimate
    p: float | None
    """Two-sided; None where fewer than two seeds are shared, or all differ by the same amount: without spread nothing is known of it.
    The difference has no interval then either."""
    seeds: int


def paired_test(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE
) -> Paired:
    """a − b over the seeds that both have, by the paired t test."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return Paired(Estimate(math.nan), None, 0)
    return _paired(_sample([a[s] for s in shared]), _sample([b[s] for s in shared]), confidence)


def _paired(x: Array, y: Array, confidence: float) -> Paired:
    d = x - y
    error = math.sqrt(_variance_of_mean(d))
    if error <= SPREADLESS * float((np.abs(x) + np.abs(y)).max()):
        return Paired(Estimate(float(d.mean())), None, len(d))
    difference = mean_interval(d, confidence)
    return Paired(difference, _two_sided(difference.value / error, len(d) - 1), len(d))


def paired_tests(
    scores: Sequence[Mapping[int, float]],
    pairs: Sequence[tuple[int, int]],
    confidence: float = CONFIDENCE,
) -> list[Paired]:
    """`paired_test` of many pairs; where all have the same seeds, as on most boards, these are looked up once."""
    seeds = sorted(scores[0]) if scores else []
    if not seeds or any(s.keys() != scores[0].keys() for s in scores):
        return [paired_test(scores[i], scores[j], confidence) for i, j in pairs]
    rows = [_sample([s[seed] for seed in seeds]) for s in scores]
    return [_paired(rows[i], rows[j], confidence) for i, j in pairs]


def unpaired_test(
    a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE
) -> Paired:
    """a − b of entrants that share no seed, by Welch's t test. It knows nothing of starts and data, so it tells less apart than pairs do."""
    assert not a.keys() & b.keys(), "what shares seeds is paired"
    x, y = _sample(list(a.values())), _sample(list(b.values()))
    difference = difference_interval(x, y, confidence)
    error = math.sqrt(_variance_of_mean(x) + _variance_of_mean(y))
    if difference.df is None or error <= SPREADLESS * float(np.abs(x).max() + np.abs(y).max()):
        return Paired(Estimate(difference.value), None, 0)
    return Paired(difference, _two_sided(difference.value / error, difference.df), 0)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: below α together with all of them true nulls at most α of the time."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def clear_bests(
    columns: Sequence[Sequence[Mapping[int, float]]],
    better: str,
    minimum_effect: float,
    alpha: float = 1 - CONFIDENCE,
) -> list[int | None]:
    """In each column of a table the index of the entrant that beats each other one: paired by seed, by the minimum effect or more.

    None where no entrant does, or there is nobody to beat. Holm over the rivals of a column and again over the columns, so that a table marks an
    entrant that is no better than another in at most α of tables, however many columns it has.
    """
    leaders = [_leader(scores, better, minimum_effect) for scores in columns]
    adjusted = iter(holm([p for _, p in leaders if p is not None]))
    return [best if p is not None and next(adjusted) < alpha else None for best, p in leaders]


def _leader(
    scores: Sequence[Mapping[int, float]], better: str, minimum_effect: float
) -> tuple[int | None, float | None]:
    """Who has the best mean, and the p of its being no better than some other; no p where there is nothing to test, 1 where it cannot be best."""
    if len(scores) < 2 or not all(scores):
        return None, None
    means = [float(np.mean(list(s.values()))) for s in scores]
    best = int(np.argmax(means) if better == "higher" else np.argmin(means))
    tests = paired_tests(scores, [(best, i) for i in range(len(scores)) if i != best])
    sign = 1 if better == "higher" else -1
    known = [t.p for t in tests if t.p is not None and sign * t.difference.value >= minimum_effect]
    return best, max(holm(known)) if len(known) == len(tests) else 1.0


def rank_ranges(
    scores: Sequence[Mapping[int, float]],
    better: str,
    minimum_effect: float,
    alpha: float = 1 - CONFIDENCE,
) -> list[tuple[int, int]]:
    """The ranks each entrant may hold, first and last: one more than those who beat it, and the number less those it beats.

    A pair is told apart by the paired t test, Holm over all pairs, and the minimum effect. Give one score a seed: the mean over the cells
    that all entrants have.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i)]
    tests = paired_tests(scores, pairs)
    adjusted = holm([1.0 if t.p is None else t.p for t in tests])
    above, below = [0] * len(scores), [0] * len(scores)
    for (i, j), test, p in zip(pairs, tests, adjusted, strict=True):
        if p >= alpha or abs(test.difference.value) < minimum_effect:
            continue
        winner, loser = (i, j) if (test.difference.value > 0) == (better == "higher") else (j, i)
        above[loser] += 1
        below[winner] += 1
    return [(1 + a, len(scores) - b) for a, b in zip(above, below, strict=True)]


# ---- over items ----


@dataclass(frozen=True)
class Discordant:
    """Two answers to the same items: how many only the first has right, how many only the second, and the exact two-sided p."""

    first: int
    second: int
    p: float


def mcnemar(
    a: Sequence[bool] | npt.NDArray[np.bool_], b: Sequence[bool] | npt.NDArray[np.bool_]
) -> Discordant:
    """McNemar's exact test: of the items on which they disagree, is each right on half? Items on which they agree say nothing of it."""
    x, y = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    assert x.shape == y.shape, "the same items, in the same order"
    first, second = int(np.sum(x & ~y)), int(np.sum(y & ~x))
    return Discordant(
        first, second, min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))
    )
