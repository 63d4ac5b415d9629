"""Compare the entrants of a section at equal training time instead of equal steps.

A step costs one method three times as much as another, and boards compare at equal steps. Here
the budget is the time T in which full precision finished its training: the median over its runs on
the same device and with as many stacked runs. A run counts with its validation score at T,
interpolated linearly in time between its evaluations. A run that ended before T counts with its
last score. A run that had not been evaluated by T has no score.

Read the result with care:

* It does not say how good an entrant would be if it planned for the time T. A slow entrant is cut
  off in the middle of its learning-rate schedule, before the decay that improves the score most.
  For a fair race at equal time, train again with fewer steps (`recipe.steps` in the sweep file).
* The time is that of the sweep's own runs, with their evaluations and with everything else that
  the machine did.
* The scores are of the validation split, while boards show the test split.

Entrants that take no steps have no validation curve and do not appear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qbench.analysis.section_cells import label_column
from qbench.boards.cell_rows import CellRows, stack_sizes
from qbench.boards.run_table import Array
from qbench.boards.section import FULL_PRECISION, SectionBuilder
from qbench.stats.intervals import Estimate, mean_interval
from qbench.util.text import format_count


class ValidationCurve(NamedTuple):
    """The evaluations of a run on the validation split, in the order of its steps."""

    seconds: Array
    """Training time until each evaluation."""
    progress: Array
    """The share of the steps that was done by then."""
    value: Array
    """The scores."""


ValidationCurves = Mapping[tuple[str, int], ValidationCurve]
"""Curves by key and attempt; runs that were never evaluated are not included."""


@dataclass(frozen=True)
class TimedCell:
    """The validation scores of one entrant under one format.

    A score is None if it is missing for a run that the board counts. The names of the fields are
    keys of `--json`.
    """

    entrant: str
    params: str
    format: str
    seeds: int
    at_steps: Estimate | None
    """At equal steps: the last evaluation of every run."""
    at_time: Estimate | None
    """At the time when full precision finished."""
    progress: float | None
    """The share of its steps that the median run had done by that time."""
    note: str
    """Why a score is missing."""


@dataclass(frozen=True)
class EqualTime:
    """The cells of a section at the time when full precision finished."""

    seconds: Mapping[str, float]
    """That time, by timing group (see `label_timing_groups`)."""
    cells: tuple[TimedCell, ...]


def compare_at_equal_time(builder: SectionBuilder, curves: ValidationCurves) -> EqualTime:
    """Return every cell that has scores, in the order of entrants and columns."""
    budgets = compute_time_budgets(builder)
    cells = [
        _compare_cell(builder, entrant, column, curves, budgets)
        for entrant, column in builder.rows
        if builder.scores[entrant, column]
    ]
    return EqualTime(budgets, tuple(cells))


# ---- the time budget ----


def compute_time_budgets(builder: SectionBuilder) -> dict[str, float]:
    """Return the median training time of full precision for each timing group."""
    if builder.fp_entrant is None:
        return {}
    rows = builder.rows[builder.fp_entrant, FULL_PRECISION]
    usable = rows["good"] & np.isfinite(rows["train_s"])
    times: dict[str, list[float]] = {}
    for group, seconds, is_usable in zip(
        label_timing_groups(builder, rows), rows["train_s"], usable, strict=True
    ):
        if is_usable:
            times.setdefault(group, []).append(seconds)
    return {group: float(np.median(times[group])) for group in sorted(times)}


def label_timing_groups(builder: SectionBuilder, rows: CellRows) -> list[str]:
    """Return for each run its device and, if it was stacked with others, how many there were.

    Only times of one group may be compared: the time of a stacked run is its share of the time of
    all of them.
    """
    names = builder.grouped.vocabularies["device_name"]
    return [
        names[device] if size == 1 else f"{names[device]}, {size:.0f} stacked runs"
        for device, size in zip(rows["device_name"], stack_sizes(rows), strict=True)
    ]


# ---- one cell ----


def _compare_cell(
    builder: SectionBuilder,
    n: int,
    column: int,
    curves: ValidationCurves,
    budgets: Mapping[str, float],
) -> TimedCell:
    rows, entrant = builder.rows[n, column], builder.entrants[n]
    groups = label_timing_groups(builder, rows)
    counted = _select_counted_runs(rows)
    # Rows from before attempts were numbered have no number; each is the first attempt.
    attempts = np.nan_to_num(rows["attempt"], nan=1.0)
    runs = [curves.get((rows["key"][i], int(attempts[i]))) for i in counted]
    limits = [budgets.get(groups[i]) for i in counted]
    with_curve = [run for run in runs if run is not None]
    at_limit = [
        interpolate_at(run, limit)
        for run, limit in zip(runs, limits, strict=True)
        if run is not None and limit is not None
    ]
    values = [value for value, _ in at_limit if value is not None]
    count = len(counted)
    return TimedCell(
        entrant=entrant.label,
        params=entrant.params,
        format=label_column(builder, column),
        seeds=count,
        at_steps=_mean_of_all([float(run.value[-1]) for run in with_curve], count),
        at_time=_mean_of_all(values, count),
        progress=float(np.median([progress for _, progress in at_limit]))
        if len(at_limit) == count
        else None,
        note=_explain_missing(
            count, len(with_curve), sum(limit is not None for limit in limits), len(values)
        ),
    )


def _select_counted_runs(rows: CellRows) -> list[int]:
    """Return the rows that the board counts: those with a score, and one for each seed."""
    good = np.flatnonzero(rows["good"] & np.isfinite(rows["seed"]))
    # Of two runs with one seed, `np.unique` returns the first, as the board does.
    first_of_seed = np.unique(rows["seed"][good], return_index=True)[1]
    return [int(i) for i in good[first_of_seed]]


def interpolate_at(curve: ValidationCurve, seconds: float) -> tuple[float | None, float]:
    """Return a run's score and progress at a time.

    The score is None before the first evaluation. Progress is interpolated from 0 at the start.
    """
    progress = np.interp(seconds, np.r_[0.0, curve.seconds], np.r_[0.0, curve.progress])
    if seconds < curve.seconds[0]:
        return None, float(progress)
    # After the last evaluation, `np.interp` returns the last value.
    return float(np.interp(seconds, curve.seconds, curve.value)), float(progress)


def _mean_of_all(values: Sequence[float], count: int) -> Estimate | None:
    """Return the mean if there is a value for each of `count` runs.

    The runs that have a value are no fair sample: the slowest are missing.
    """
    return mean_interval(values) if len(values) == count else None


def _explain_missing(runs: int, curves: int, limits: int, values: int) -> str:
    """Return why fewer than all runs have a score; the arguments are numbers of runs."""
    of_all = f"of {format_count(runs, 'run')}"
    if curves < runs:
        return f"{runs - curves} {of_all} without a validation curve"
    if limits < runs:
        return (
            f"{runs - limits} {of_all} without a full-precision run on the same device with the "
            "same number of stacked runs"
        )
    return f"{runs - values} {of_all} not evaluated by then" if values < runs else ""
