"""Confidence intervals over seeds: pure functions that take arrays and return numbers.

A benchmark has few seeds, and that decides which interval can be used. A percentile bootstrap
over three seeds covers the truth in 75 % of cases where it claims 95 %. Student's t covers 95 %
at any number of seeds from two, provided that the noise of a seed is roughly normal. So every
interval here is a t interval of some kind:

    mean over seeds                     t                       n − 1 degrees of freedom
    difference of two means, unpaired   Welch                   Welch–Satterthwaite's formula
    mean of the means of several tasks  Welch–Satterthwaite     the same formula, over tasks
    ratio of two means                  Fieller                 number of pairs − 1
    mean of several ratios              Welch–Satterthwaite     over tasks, of linearised ratios

Fieller's interval. The ratio of two noisy means has no finite variance: when the denominator may
be zero, the ratio may be anything. Fieller therefore tests each candidate ratio θ. If θ is the
true ratio, then N − θD has the mean zero, and N − θD is an ordinary mean, so a t test applies.
The interval holds every θ that this test does not reject. With t the t quantile, n̄ and d̄ the two
means, and var and cov those of the means, this condition is

    (n̄ − θ d̄)² ≤ t² (var(n̄) − 2 θ cov(n̄, d̄) + θ² var(d̄)),

a quadratic inequality in θ. Its solutions are an interval exactly when d̄² > t² var(d̄), that is
when the denominator itself differs from zero by a t test. Otherwise the solutions are unbounded,
and there is no interval to print.

The Welch–Satterthwaite formula. A weighted sum of independent means has the variance V = Σ vᵢ with
vᵢ = wᵢ² sᵢ²/nᵢ. An estimate of V does not follow a chi-squared distribution, but it is close to the
one with the same mean and variance, whose degrees of freedom are V² / Σ(vᵢ² / (nᵢ − 1)).

The unit of all statistics is the seed. Runs of one seed share their start and their data, so
entrants are compared by their differences within seeds. Callers must pass finite numbers only:
they know what became of a run that has none. Only scipy.special is used, because importing
scipy.stats takes longer than the whole of `qbench show`.
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
NEGLIGIBLE_SPREAD = 1e-12
"""A standard error below this share of the scores is rounding noise and counts as zero."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; both ends are None where the data do not allow an interval."""

    value: float
    low: float | None = None
    high: float | None = None
    df: float | None = None
    """Degrees of freedom of the t distribution that the interval comes from."""

    @property
    def half_width(self) -> float | None:
        """Half the width of an interval that is symmetric about its value."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """Return the quantile of Student's t that a two-sided interval uses."""
    return float(stdtrit(df, 0.5 + confidence / 2))


def mean_interval(values: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean and its t interval. One value has a mean and no interval."""
    x = as_sample(values)
    return _t_interval(float(x.mean()), variance_of_mean(x), len(x) - 1, confidence)


def difference_interval(a: Numbers, b: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """Return mean(a) − mean(b) of independent samples with Welch's interval.

    At three seeds the interval covers 94 to 96.5 %, whatever the ratio of the two noise levels.
    """
    return _welch_interval([as_sample(a), as_sample(b)], [1.0, -1.0], confidence)


def mean_of_means_interval(
    tasks: Sequence[Numbers], weights: Numbers | None = None, confidence: float = CONFIDENCE
) -> Estimate:
    """Return the weighted mean over tasks of each task's mean over its own seeds.

    Only the ratios of the weights matter. Tasks must be independent samples. Cells of one task
    share its seeds and are not independent: average over the cells within each seed first, and
    give the task a weight that is its number of cells.
    """
    given = np.ones(len(tasks)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = (given / given.sum()).tolist()
    return _welch_interval([as_sample(task) for task in tasks], shares, confidence)


def ratio_interval(
    numerator: Numbers, denominator: Numbers, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Return mean(numerator) / mean(denominator) of pairs with Fieller's interval.

    The result is None where the denominator cannot be distinguished from zero. One pair has a
    ratio and no interval.
    """
    n, d = as_sample(numerator), as_sample(denominator)
    assert n.shape == d.shape, "a ratio is of pairs"
    top, bottom = float(n.mean()), float(d.mean())
    if len(n) < 2:
        return Estimate(top / bottom) if bottom else None
    # The covariance matrix of the two means. Both come from the same seeds, so they correlate.
    cov = np.cov(n, d) / len(n)
    t2 = t_quantile(len(n) - 1, confidence) ** 2
    # Fieller's condition as a θ² − 2 b θ + c ≤ 0; see the top of the file.
    a = bottom * bottom - t2 * float(cov[1, 1])
    b = top * bottom - t2 * float(cov[0, 1])
    c = top * top - t2 * float(cov[0, 0])
    if a <= 0:
        return None
    # Rounding can make the discriminant slightly negative where the two solutions coincide.
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Estimate(top / bottom, (b - root) / a, (b + root) / a, len(n) - 1)


def gap_recovered_interval(
    method: Numbers,
    control: Numbers,
    reference: Numbers,
    better: str,
    minimum_effect: float,
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """Return (m − RTN)/(FP − RTN) of the means over seeds, with Fieller's interval.

    The three arrays hold the scores of the method, of RTN and of FP, for the same seeds in the
    same order. The result is None, which tables print as "–", where FP is not better than RTN by
    the minimum effect, or where the two cannot be distinguished: there is no gap to recover.
    """
    if not len(method):
        return None
    m, rtn, fp = (as_sample(x) for x in (method, control, reference))
    # Both are positive where the left one is better, whatever the direction of the metric.
    gap = fp - rtn if better == "higher" else rtn - fp
    gain = m - rtn if better == "higher" else rtn - m
    if gap.mean() < minimum_effect or gap.mean() <= 0:
        return None
    return ratio_interval(gain, gap, confidence)


def linearise_ratio(numerator: Array, denominator: Array) -> Array:
    """Return one number for each pair along the last axis, in place of the ratio of the means.

    The mean of these numbers is mean(numerator) / mean(denominator), and their spread is that of
    the ratio to first order (the delta method). So the ratios of several cells can be averaged
    within a seed before an interval is taken.
    """
    bottom = denominator.mean(-1, keepdims=True)
    ratio = numerator.mean(-1, keepdims=True) / bottom
    # The residual n − r d has the mean zero, so it adds the spread and leaves the mean unchanged.
    return np.asarray(ratio + (numerator - ratio * denominator) / bottom)


# ---- helpers, also of the tests in `comparisons` ----


def as_sample(values: Numbers) -> Array:
    """Return the values as float64; assert that there is at least one and that all are finite."""
    x = np.asarray(values, dtype=np.float64)
    assert x.size and np.isfinite(x).all(), "statistics are of finite numbers"
    return x


def two_sided_p(t: float, df: float) -> float:
    """Return the two-sided p value of a t statistic."""
    # Twice the lower tail: the upper one, 1 − cdf, would lose the digits of a small p value.
    return float(2 * stdtr(df, -abs(t)))


def variance_of_mean(x: Array) -> float:
    """Return the squared standard error of the mean; 0 for one value, whose spread is unknown."""
    return float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.0


def _t_interval(value: float, variance: float, df: float, confidence: float) -> Estimate:
    if df <= 0:
        return Estimate(value)
    half_width = t_quantile(df, confidence) * math.sqrt(variance)
    return Estimate(value, value - half_width, value + half_width, df)


def _welch_interval(
    samples: Sequence[Array], weights: Sequence[float], confidence: float
) -> Estimate:
    """Return a weighted sum of independent means with the interval of Welch and Satterthwaite."""
    pairs = list(zip(weights, samples, strict=True))
    value = float(sum(weight * x.mean() for weight, x in pairs))
    if any(len(x) < 2 for x in samples):
        return Estimate(value)
    variances = [weight * weight * variance_of_mean(x) for weight, x in pairs]
    total = sum(variances)
    spread = sum(v * v / (len(x) - 1) for v, x in zip(variances, samples, strict=True))
    # Without any spread the formula is 0/0. The width is 0 whatever df is; take the least one.
    df = total * total / spread if spread > 0 else float(min(len(x) for x in samples) - 1)
    return _t_interval(value, total, df, confidence)
