"""Intervals and tests over seeds: pure functions, arrays in, numbers out.

A benchmark has few seeds, and that decides the tools. A percentile bootstrap over three seeds covers 75 % where it says 95 %; Student's t
covers 95 % at any number of seeds from two, if a seed's noise is roughly normal. So every interval here is a t interval of some kind:

    mean of seeds                       t                       n − 1 degrees of freedom
    difference of two means, unpaired   Welch                   Welch–Satterthwaite's
    mean of the means of several cells  Welch–Satterthwaite     the same formula over cells
    ratio of two means                  Fieller                 pairs − 1

A quotient of two noisy means has no mean of its own: near a zero denominator its interval is the whole line. Fieller turns the question
round: θ belongs to the interval if N − θD, which is an honest mean, cannot be told from 0. That is a quadratic in θ; it has an interval
exactly when D itself can be told from 0, and otherwise there is nothing to print.

The seed is the unit. Runs of one seed share their start and data, so entrants are compared by differences within seeds.
Only scipy.special is used: importing scipy.stats takes longer than the whole of `qbench show`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Numbers = Sequence[float] | npt.NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; both ends are None where the data allow none."""

    value: float
    low: float | None = None
    high: float | None = None
    df: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of an interval that is symmetric about its value."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """The two-sided t quantile."""
    return float(stdtrit(df, 0.5 + confidence / 2))


def mean_interval(values: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """The mean and its t interval; no interval from one value."""
    x = np.asarray(values, dtype=np.float64)
    return _around(float(x.mean()), _variance_of_mean(x), len(x) - 1, confidence)


def difference_interval(a: Numbers, b: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """mean(a) − mean(b) of independent samples, by Welch."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return _satterthwaite(float(x.mean() - y.mean()), [x, y], 1.0, confidence)


def mean_of_means_interval(cells: Sequence[Numbers], confidence: float = CONFIDENCE) -> Estimate:
    """The mean over cells (tasks) of each one's mean over its own seeds. Cells whose seeds are shared are not independent: take
    the mean over cells within each seed first, and `mean_interval` of those."""
    samples = [np.asarray(cell, dtype=np.float64) for cell in cells]
    return _satterthwaite(float(np.mean([x.mean() for x in samples])), samples, 1 / len(samples), confidence)


def ratio_interval(numerator: Numbers, denominator: Numbers, confidence: float = CONFIDENCE) -> Estimate | None:
    """mean(numerator) / mean(denominator) of pairs, by Fieller; None where the denominator cannot be told from 0.

    One pair has a ratio and no interval.
    """
    n, d = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    assert n.shape == d.shape, "a ratio is of pairs"
    top, bottom = float(n.mean()), float(d.mean())
    if len(n) < 2:
        return Estimate(top / bottom) if bottom else None
    cov = np.cov(n, d) / len(n)
    t2 = quantile(len(n) - 1, confidence) ** 2
    a = bottom * bottom - t2 * float(cov[1, 1])
    b = top * bottom - t2 * float(cov[0, 1])
    c = top * top - t2 * float(cov[0, 0])
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Estimate(top / bottom, (b - root) / a, (b + root) / a, len(n) - 1)


def gap_recovered(
    method: Numbers, control: Numbers, reference: Numbers, better: str, minimum_effect: float, confidence: float = CONFIDENCE
) -> Estimate | None:
    """(m − RTN)/(FP − RTN) of means over seeds, the three given seed by seed.

    None, printed "–", where FP does not beat RTN by the minimum effect or cannot be told from it: there is no gap to recover.
    """
    m, rtn, fp = (np.asarray(x, dtype=np.float64) for x in (method, control, reference))
    gap = fp - rtn if better == "higher" else rtn - fp
    gain = m - rtn if better == "higher" else rtn - m
    if not len(m) or float(gap.mean()) < minimum_effect or gap.mean() <= 0:
        return None
    return ratio_interval(gain, gap, confidence)


@dataclass(frozen=True)
class Paired:
    """A comparison seed by seed."""

    difference: Estimate
    p: float | None
    """Two-sided; None where fewer than two seeds are shared, or all differ by the same amount: without spread nothing is known of it."""
    seeds: int


def paired_test(a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE) -> Paired:
    """a − b over the seeds that both have, by the paired t test."""
    shared = sorted(a.keys() & b.keys())
    x, y = (np.array([scores[s] for s in shared], dtype=np.float64) for scores in (a, b))
    d = x - y
    if len(d) < 2:
        return Paired(Estimate(float(d.mean()) if len(d) else math.nan), None, len(d))
    difference = mean_interval(d, confidence)
    error = math.sqrt(_variance_of_mean(d))
    if error <= 1e-12 * float((np.abs(x) + np.abs(y)).max()):
        return Paired(difference, None, len(d))
    return Paired(difference, float(2 * stdtr(len(d) - 1, -abs(difference.value) / error)), len(d))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: below α together with all of them true nulls at most α of the time."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def clear_best(scores: Sequence[Mapping[int, float]], better: str, minimum_effect: float, alpha: float = 1 - CONFIDENCE) -> int | None:
    """The index of the entrant that beats each other one: paired by seed, Holm over the comparisons, by the minimum effect or more.

    None where no entrant does, or there is nobody to beat.
    """
    if len(scores) < 2 or not all(scores):
        return None
    means = [float(np.mean(list(s.values()))) for s in scores]
    best = int(np.argmax(means) if better == "higher" else np.argmin(means))
    tests = [paired_test(scores[best], other) for i, other in enumerate(scores) if i != best]
    if any(t.p is None for t in tests):
        return None
    sign = 1 if better == "higher" else -1
    clear = all(sign * t.difference.value >= minimum_effect for t in tests) and max(holm([t.p for t in tests if t.p is not None])) < alpha
    return best if clear else None


def rank_ranges(
    scores: Sequence[Mapping[int, float]], better: str, minimum_effect: float, alpha: float = 1 - CONFIDENCE
) -> list[tuple[int, int]]:
    """The ranks each entrant may hold, first and last: one more than those who beat it, and the number less those it beats.

    A pair is told apart by the paired t test, Holm over all pairs, and the minimum effect. Give one score a seed: the mean over the cells
    that all entrants have.
    """
    pairs = [(i, j) for i in range(len(scores)) for j in range(i)]
    tests = [paired_test(scores[i], scores[j]) for i, j in pairs]
    adjusted = holm([1.0 if t.p is None else t.p for t in tests])
    above, below = [0] * len(scores), [0] * len(scores)
    for (i, j), test, p in zip(pairs, tests, adjusted, strict=True):
        if p >= alpha or abs(test.difference.value) < minimum_effect:
            continue
        winner, loser = (i, j) if (test.difference.value > 0) == (better == "higher") else (j, i)
        above[loser] += 1
        below[winner] += 1
    return [(1 + a, len(scores) - b) for a, b in zip(above, below, strict=True)]


def _variance_of_mean(x: npt.NDArray[np.float64]) -> float:
    return float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.0


def _around(value: float, variance: float, df: float, confidence: float) -> Estimate:
    if df <= 0:
        return Estimate(value)
    half = quantile(df, confidence) * math.sqrt(variance)
    return Estimate(value, value - half, value + half, df)


def _satterthwaite(value: float, samples: Sequence[npt.NDArray[np.float64]], weight: float, confidence: float) -> Estimate:
    """An interval for a sum of independent means, each weighted alike (up to its sign)."""
    if any(len(x) < 2 for x in samples):
        return Estimate(value)
    parts = [weight * weight * _variance_of_mean(x) for x in samples]
    total = sum(parts)
    spread = sum(part * part / (len(x) - 1) for part, x in zip(parts, samples, strict=True))
    df = total * total / spread if spread > 0 else float(min(len(x) for x in samples) - 1)
    return _around(value, total, df, confidence)
