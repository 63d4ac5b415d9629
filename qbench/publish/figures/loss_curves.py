"""Average the training losses of a cell's runs into one curve per cell.

A run's losses are first averaged within equal stretches of its training, so that runs of different
lengths and logging intervals can be compared. Then the seeds of a cell are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


MAX_POINTS, MIN_POINTS = 32, 12
"""The number of points of a curve."""
PAGE_POINTS = 2000
"""Roughly how many points all curves of a page may have: many cells get shorter curves."""


@dataclass(frozen=True)
class LossCurve:
    """The loss of a cell against progress: the mean over its seeds, the lowest and the highest.

    The band shows extremes, because a t interval of three seeds would often cover the whole panel.
    """

    progress: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def average_loss_curves(losses: pd.DataFrame, cells: Mapping[str, str]) -> dict[str, LossCurve]:
    """Return the curve of each cell, by the cell's id.

    Args:
        losses: one row per recorded loss, with the columns key, step and loss.
        cells: the cell id of each run, by the run's key.
    """
    if losses.empty or not cells:
        return {}
    names = sorted(set(cells.values()))
    points = _select_points(losses, cells, names)
    count = max(MIN_POINTS, min(MAX_POINTS, PAGE_POINTS // len(names)))
    # `progress` is relative to the last step that any seed of the cell has reached.
    last = points.groupby("cell")["step"].transform("max").clip(lower=1)
    points = points.assign(
        bucket=np.minimum(points["step"] * count // last, count - 1),
        progress=points["step"] / last,
    )
    # Each run is averaged first: otherwise a run that logs more often would weigh more.
    by_run = points.groupby(["cell", "key", "bucket"], sort=True)[["progress", "loss"]].mean()
    by_cell = by_run.groupby(["cell", "bucket"], sort=True).agg(
        progress=("progress", "mean"),
        mean=("loss", "mean"),
        low=("loss", "min"),
        high=("loss", "max"),
    )
    columns = ("progress", "mean", "low", "high")
    return {
        names[cast(int, number)]: LossCurve(*(group[name].tolist() for name in columns))
        for number, group in by_cell.groupby("cell", sort=True)
    }


def _select_points(
    losses: pd.DataFrame, cells: Mapping[str, str], names: list[str]
) -> pd.DataFrame:
    """Return the finite losses of the runs in `cells`, with the number of each one's cell."""
    number = {name: i for i, name in enumerate(names)}
    cell = (
        losses["key"]
        .map({key: number[name] for key, name in cells.items()})
        .to_numpy(dtype=np.float64, na_value=np.nan)
    )
    loss = losses["loss"].to_numpy(dtype=np.float64, na_value=np.nan)
    usable = np.isfinite(cell) & np.isfinite(loss)
    points: pd.DataFrame = losses[usable].assign(cell=cell[usable].astype(np.int64))
    return points
