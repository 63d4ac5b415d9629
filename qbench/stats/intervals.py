"""Intervals and tests over seeds: pure functions, arrays in, numbers out.

A benchmark has few seeds, and that decides the tools. A percentile bootstrap over three seeds covers 75 % where it says 95 %; Student's t
covers 95 % at any number of seeds from two, if a seed's noise is roughly normal. So every interval here is a t interval of some kind:

    mean of seeds                       t                       n − 1 degrees of freedom
    difference of two means, unpaired   Welch                   Welch–Satterthwaite's
    mean of the means of several tasks  Welch–Satterthwaite     the same formula over tasks
    ratio of two means                  Fieller                 pairs − 1
    mean of several ratios              Welch–Satterthwaite     over tasks, of linearised ratios

A quotient of two noisy means has no mean of its own: near a zero denominator its interval is the whole line. Fieller turns the question
round: θ belongs to the interval if N − θD, which is an honest mean, cannot be told from 0. That is a quadratic in θ; it has an interval
exactly when D itself can be told from 0, and otherwise there is nothing to print.

The seed is the unit. Runs of one seed share their start and data, so entrants are compared by differences within seeds.
Numbers that are not finite are an error of the caller, who knows what became of the run.
Only scipy.special is used: importing scipy.stats takes longer than the whole of `qbench show`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Numbers = Sequence[float] | npt.NDArray[np.float64]
Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95
SPREADLESS = 1e-12
"""A standard error of so little beside the scores is what floating point makes of none."""


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


def quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """The two-sided t quantile."""
    return float(stdtrit(df, 0.5 + confidence / 2))


def mean_interval(values: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """The mean and its t interval; no interval from one value."""
    x = _sample(values)
    return _around(float(x.mean()), _variance_of_mean(x), len(x) - 1, confidence)


def difference_interval(a: Numbers, b: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """mean(a) − mean(b) of independent samples, by Welch. At three seeds it covers 94 to 96.5 %, whatever the ratio of the two noises."""
    return _satterthwaite([_sample(a), _sample(b)], [1.0, -1.0], confidence)


def mean_of_means_interval(
    tasks: Sequence[Numbers], weights: Numbers | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean over tasks of each one's mean over its own seeds, weighted (up to their sum). Cells of one task share its seeds and are not
    independent: take the mean over cells within each seed first, and give the task the weight of its cells."""
    given = np.ones(len(tasks)) if weights is None else np.asarray(weights, dtype=np.float64)
    return _satterthwaite(
        [_sample(task) for task in tasks], (given / given.sum()).tolist(), confidence
    )


def ratio_interval(
    numerator: Numbers, denominator: Numbers, confidence: float = CONFIDENCE
) -> Estimate | None:
    """mean(numerator) / mean(denominator) of pairs, by Fieller; None where the denominator cannot be told from 0.

    One pair has a ratio and no interval.
    """
    n, d = _sample(numerator), _sample(denominator)
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
    method: Numbers,
    control: Numbers,
    reference: Numbers,
    better: str,
    minimum_effect: float,
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """(m − RTN)/(FP − RTN) of means over seeds, the three given seed by seed.

    None, printed "–", where FP does not beat RTN by the minimum effect or cannot be told from it: there is no gap to recover.
    """
    if not len(method):
        return None
    m, rtn, fp = (_sample(x) for x in (method, control, reference))
    gap = fp - rtn if better == "higher" else rtn - fp
    gain = m - rtn if better == "higher" else rtn - m
    if gap.mean() < minimum_effect or gap.mean() <= 0:
        return None
    return ratio_interval(gain, gap, confidence)


def linearised(numerator: Array, denominator: Array) -> Array:
    """Numbers, one a pair along the last axis, whose mean is mean(numerator) / mean(denominator) and whose spread is, to first order, that
    of the ratio. Ratios of several cells can then be averaged within a seed before their interval is taken."""
    bottom = denominator.mean(-1, keepdims=True)
    ratio = numerator.mean(-1, keepdims=True) / bottom
    return np.asarray(ratio + (numerator - ratio * denominator) / bottom)


# ---- helpers ----


def _sample(values: Numbers) -> Array:
    x = np.asarray(values, dtype=np.float64)
    assert x.size and np.isfinite(x).all(), "statistics are of finite numbers"
    return x


def _two_sided(t: float, df: float) -> float:
    return float(2 * stdtr(df, -abs(t)))


def _variance_of_mean(x: Array) -> float:
    return float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.0


def _around(value: float, variance: float, df: float, confidence: float) -> Estimate:
    if df <= 0:
        return Estimate(value)
    half = quantile(df, confidence) * math.sqrt(variance)
    return Estimate(value, value - half, value + half, df)


def _satterthwaite(
    samples: Sequence[Array], weights: Sequence[float], confidence: float
) -> Estimate:
    """An interval for a weighted sum of independent means."""
    value = float(sum(weight * x.mean() for weight, x in zip(weights, samples, strict=True)))
    if any(len(x) < 2 for x in samples):
        return Estimate(value)
    parts = [
        weight * weight * _variance_of_mean(x) for weight, x in zip(weights, samples, strict=True)
    ]
    total = sum(parts)
    spread = sum(part * part / (len(x) - 1) for part, x in zip(parts, samples, strict=True))
    df = total * total / spread if spread > 0 else float(min(len(x) for x in samples) - 1)
    return _around(value, total, df, confidence)
