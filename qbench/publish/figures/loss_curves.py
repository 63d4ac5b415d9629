"""The losses of runs → a mean curve a cell: each run averaged within stretches of progress, then the mean and the extremes over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


MOST_POINTS, FEWEST_POINTS = 32, 12
BUDGET = 2000
"""Points of all curves of a page, about: many cells get shorter curves."""


@dataclass(frozen=True)
class Curve:
    """Progress; of the seeds the mean loss, the least and the greatest. A t interval of three seeds would cover the panel, and zero."""

    progress: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curves(losses: pd.DataFrame, cells: Mapping[str, str]) -> dict[str, Curve]:
    """By cell. `losses` has key, step and loss, `cells` the cell of each run."""
    if losses.empty or not cells:
        return {}
    names = sorted(set(cells.values()))
    place = {name: i for i, name in enumerate(names)}
    cell = (
        losses["key"]
        .map({key: place[name] for key, name in cells.items()})
        .to_numpy(dtype=np.float64, na_value=np.nan)
    )
    good = np.isfinite(cell) & np.isfinite(
        losses["loss"].to_numpy(dtype=np.float64, na_value=np.nan)
    )
    part = losses[good].assign(cell=cell[good].astype(np.int64))
    buckets = max(FEWEST_POINTS, min(MOST_POINTS, BUDGET // len(names)))
    last = part.groupby("cell")["step"].transform("max").clip(lower=1)
    part = part.assign(
        bucket=np.minimum(part["step"] * buckets // last, buckets - 1), progress=part["step"] / last
    )
    by_run = part.groupby(["cell", "key", "bucket"], sort=True)[["progress", "loss"]].mean()
    found = by_run.groupby(["cell", "bucket"], sort=True).agg(
        progress=("progress", "mean"),
        mean=("loss", "mean"),
        low=("loss", "min"),
        high=("loss", "max"),
    )
    return {
        names[int(c)]: Curve(
            *(group[name].tolist() for name in ("progress", "mean", "low", "high"))
        )
        for c, group in found.groupby("cell", sort=True)
    }
