"""The trade-off between score, bits and training cost: the cells of a section, and its front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qbench.analysis.equal_time import compute_time_budgets, label_timing_groups
from qbench.analysis.section_cells import SectionCells, label_column
from qbench.boards.section import SectionBuilder
from qbench.stats.aggregates import find_pareto_front
from qbench.stats.intervals import Estimate


@dataclass(frozen=True)
class TradeoffPoint:
    """A cell as a point with three coordinates: score, bits and training cost.

    The names of the fields are keys of `qbench show --summary --json`.
    """

    entrant: str
    params: str
    format: str
    score: Estimate
    bits_per_weight: float | None
    """Bits of the weights with their scales; those of activations are not counted."""
    cost: float | None
    """Training time divided by that of full precision on the same device.

    A method that takes no steps of its own rounds a trained network, whose training is counted.
    """
    front: bool
    """Whether no other cell is at least as good in all three and better in one.

    Means are compared without a test: whether two scores differ is for the board to say.
    """


def list_tradeoff_points(section: SectionCells) -> tuple[TradeoffPoint, ...]:
    """Return a point for each complete cell. One of unknown bits or cost is not on the front."""
    builder, budgets = section.builder, compute_time_budgets(section.builder)
    complete = [
        (n, column, cell.score, cell.bits_per_weight, _training_cost(builder, n, column, budgets))
        for (n, column), cell in section.cells.items()
        if cell.is_complete and cell.score is not None
    ]
    # The front is the set of rows that are small in every coordinate, so high scores change sign.
    sign = -1 if builder.better == "higher" else 1
    coordinates = np.array(
        # None becomes NaN.
        [(sign * score.value, bits, cost) for _, _, score, bits, cost in complete],
        dtype=np.float64,
    ).reshape(-1, 3)
    known = ~np.isnan(coordinates[:, 1:]).any(1)
    on_front = np.zeros(len(complete), dtype=bool)
    on_front[known] = find_pareto_front(coordinates[known])
    return tuple(
        TradeoffPoint(
            entrant=builder.entrants[n].label,
            params=builder.entrants[n].params,
            format=label_column(builder, column),
            score=score,
            bits_per_weight=bits,
            cost=cost,
            front=bool(is_on_front),
        )
        for (n, column, score, bits, cost), is_on_front in zip(complete, on_front, strict=True)
    )


def _training_cost(
    builder: SectionBuilder, n: int, column: int, budgets: Mapping[str, float]
) -> float | None:
    """Return the median over a cell's runs of training time divided by full precision's.

    A run is divided by the time of its own timing group. None means that no run can be.
    """
    rows = builder.rows[n, column]
    groups = label_timing_groups(builder, rows)
    reference = np.array([budgets.get(group, np.nan) for group in groups], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A run without steps of its own (no step time) adds 1: the training of what it rounds.
        ratios = rows["train_s"] / reference + np.isnan(rows["step_s_median"])
    ratios = ratios[rows["good"] & np.isfinite(ratios)]
    return float(np.median(ratios)) if len(ratios) else None
