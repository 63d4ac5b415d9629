"""Interquartile mean, profiles, bootstrap, Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from qbench.stats.intervals import CONFIDENCE, quantile

if TYPE_CHECKING:
    from qbench.stats.intervals import Array


BOOTSTRAP_FROM = 10
"""Seeds that a bootstrap needs: from three it covers 75 % where it says 95 %."""
DRAWS = 2000


# ---- over cells ----


def iqm(values: Array) -> Array:
    """The interquartile mean along the last axis: without the lowest and the highest quarter, whole values only (three or fewer all count)."""
    cut = values.shape[-1] // 4
    middle = np.partition(values, (cut, values.shape[-1] - 1 - cut), axis=-1)[
        ..., cut : values.shape[-1] - cut
    ]
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
        counts = (
            np.bincount(drawn.ravel(), minlength=draws * seeds)
            .reshape(draws, seeds)
            .astype(np.float64)
        )
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
