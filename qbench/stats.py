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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtr, stdtr, stdtrit

Numbers = Sequence[float] | npt.NDArray[np.float64]
Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95
SPREADLESS = 1e-12
"""A standard error of so little beside the scores is what floating point makes of none."""
BOOTSTRAP_FROM = 10
"""Seeds that a bootstrap needs: from three it covers 75 % where it says 95 %."""
DRAWS = 2000


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


def mean_of_means_interval(tasks: Sequence[Numbers], weights: Numbers | None = None, confidence: float = CONFIDENCE) -> Estimate:
    """The mean over tasks of each one's mean over its own seeds, weighted (up to their sum). Cells of one task share its seeds and are not
    independent: take the mean over cells within each seed first, and give the task the weight of its cells."""
    given = np.ones(len(tasks)) if weights is None else np.asarray(weights, dtype=np.float64)
    return _satterthwaite([_sample(task) for task in tasks], (given / given.sum()).tolist(), confidence)


def ratio_interval(numerator: Numbers, denominator: Numbers, confidence: float = CONFIDENCE) -> Estimate | None:
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
    method: Numbers, control: Numbers, reference: Numbers, better: str, minimum_effect: float, confidence: float = CONFIDENCE
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


@dataclass(frozen=True)
class Paired:
    """A comparison seed by seed; of independent samples where `seeds` is 0."""

    difference: Estimate
    p: float | None
    """Two-sided; None where fewer than two seeds are shared, or all differ by the same amount: without spread nothing is known of it.
    The difference has no interval then either."""
    seeds: int


def paired_test(a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE) -> Paired:
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


def paired_tests(scores: Sequence[Mapping[int, float]], pairs: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> list[Paired]:
    """`paired_test` of many pairs; where all have the same seeds, as on most boards, these are looked up once."""
    seeds = sorted(scores[0]) if scores else []
    if not seeds or any(s.keys() != scores[0].keys() for s in scores):
        return [paired_test(scores[i], scores[j], confidence) for i, j in pairs]
    rows = [_sample([s[seed] for seed in seeds]) for s in scores]
    return [_paired(rows[i], rows[j], confidence) for i, j in pairs]


def unpaired_test(a: Mapping[int, float], b: Mapping[int, float], confidence: float = CONFIDENCE) -> Paired:
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
    columns: Sequence[Sequence[Mapping[int, float]]], better: str, minimum_effect: float, alpha: float = 1 - CONFIDENCE
) -> list[int | None]:
    """In each column of a table the index of the entrant that beats each other one: paired by seed, by the minimum effect or more.

    None where no entrant does, or there is nobody to beat. Holm over the rivals of a column and again over the columns, so that a table marks an
    entrant that is no better than another in at most α of tables, however many columns it has.
    """
    leaders = [_leader(scores, better, minimum_effect) for scores in columns]
    adjusted = iter(holm([p for _, p in leaders if p is not None]))
    return [best if p is not None and next(adjusted) < alpha else None for best, p in leaders]


def _leader(scores: Sequence[Mapping[int, float]], better: str, minimum_effect: float) -> tuple[int | None, float | None]:
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
    scores: Sequence[Mapping[int, float]], better: str, minimum_effect: float, alpha: float = 1 - CONFIDENCE
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


def mcnemar(a: Sequence[bool] | npt.NDArray[np.bool_], b: Sequence[bool] | npt.NDArray[np.bool_]) -> Discordant:
    """McNemar's exact test: of the items on which they disagree, is each right on half? Items on which they agree say nothing of it."""
    x, y = np.asarray(a, dtype=np.bool_), np.asarray(b, dtype=np.bool_)
    assert x.shape == y.shape, "the same items, in the same order"
    first, second = int(np.sum(x & ~y)), int(np.sum(y & ~x))
    return Discordant(first, second, min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5))))


# ---- over cells ----


def iqm(values: Array) -> Array:
    """The interquartile mean along the last axis: without the lowest and the highest quarter, whole values only (three or fewer all count)."""
    cut = values.shape[-1] // 4
    middle = np.partition(values, (cut, values.shape[-1] - 1 - cut), axis=-1)[..., cut : values.shape[-1] - cut]
    return np.asarray(middle.mean(-1))


def profile(values: Array, thresholds: Array) -> Array:
    """The share of the values along the last axis that reach each threshold."""
    return np.asarray((values[..., None] >= thresholds).mean(-2))


def resampled_ratios(tasks: Sequence[tuple[Array, Array]], draws: int = DRAWS) -> Array:
    """The ratios of all cells (columns) in bootstrap draws (rows). A task is its cells' numerators and denominators, cells × seeds.

    Stratified: each task draws from its own seeds, and what shares a seed is drawn together, both controls included. Of n seeds n − 1 are drawn:
    n draws would make the variance of a mean too small by (n − 1)/n. Draws without a positive denominator in every cell are left out.
    The same numbers give the same draws.
    """
    chance = np.random.default_rng(0)
    tops, bottoms = [], []
    for numerator, denominator in tasks:
        seeds = numerator.shape[1]
        drawn = chance.integers(seeds, size=(draws, seeds - 1)) + seeds * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * seeds).reshape(draws, seeds).astype(np.float64)
        tops.append(counts @ numerator.T)
        bottoms.append(counts @ denominator.T)
    top, bottom = np.concatenate(tops, 1), np.concatenate(bottoms, 1)
    good = (bottom > 0).all(1)
    return np.asarray(top[good] / bottom[good])


def percentiles(draws: Array, df: float, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """The interval that holds the middle of bootstrap draws, along the first axis: between the percentiles at which a normal distribution has
    the t quantile of `df`, the drawn seeds less one a task (Hesterberg's expanded percentiles).

    Of an interquartile mean of gaps recovered it covers 93.5 to 94.5 % at ten and at twenty seeds, on one task and on three; the plain percentiles
    cover 90.5 to 93.5 %.
    """
    tail = ndtr(-quantile(df, confidence))
    low, high = np.quantile(draws, (tail, 1 - tail), axis=0)
    return low, high


def pareto(points: Array) -> npt.NDArray[np.bool_]:
    """Which rows no other row beats: at least as small in every column, and smaller in one. Equal rows do not beat each other."""
    beaten = [bool(((points <= p).all(1) & (points < p).any(1)).any()) for p in points]
    return ~np.array(beaten, dtype=np.bool_)


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


def _satterthwaite(samples: Sequence[Array], weights: Sequence[float], confidence: float) -> Estimate:
    """An interval for a weighted sum of independent means."""
    value = float(sum(weight * x.mean() for weight, x in zip(weights, samples, strict=True)))
    if any(len(x) < 2 for x in samples):
        return Estimate(value)
    parts = [weight * weight * _variance_of_mean(x) for weight, x in zip(weights, samples, strict=True)]
    total = sum(parts)
    spread = sum(part * part / (len(x) - 1) for part, x in zip(parts, samples, strict=True))
    df = total * total / spread if spread > 0 else float(min(len(x) for x in samples) - 1)
    return _around(value, total, df, confidence)
