"""A section at equal training time: what each entrant's runs had reached on the validation split when full precision's runs were done.

Boards compare at equal steps, and a step costs one method three times what it costs another. Here the clock is the budget: T is the
median training time of the section's full-precision runs on the same device and in as large a company, and a run counts with its validation at T, linear in time between
its evaluations. A run that ends before T counts with its last one, and one that had not been evaluated by T with nothing.

What this does not say: how good an entrant is that plans for T. A run that is looked at on its way was cut short in the middle of its learning
rate's schedule, before the decay that gives much of the score, so the slower entrant is shown at its worst; a fair race at equal time trains
again with fewer steps (`recipe.steps` in the sweep file). The clock is that of the sweep's own runs, evaluations included, with whatever else the machine
did; and it is validation, where boards show the test split. Entrants that take no steps have no curve and are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qbench.boards.cell_rows import Part
from qbench.boards.run_table import Array
from qbench.boards.section import SectionMaker, alone_is_one
from qbench.stats import intervals
from qbench.stats.intervals import Estimate
from qbench.util.text import count


class Evaluations(NamedTuple):
    """When a run was evaluated on the validation split, in seconds of training and in its share of the steps, and what came out."""

    seconds: Array
    progress: Array
    value: Array


Curves = Mapping[tuple[str, int], Evaluations]
"""By key and attempt; runs that were never evaluated are not in it."""


@dataclass(frozen=True)
class Timed:
    """One entrant under one format, on the validation split. None where a run that has a score cannot say."""

    entrant: str
    params: str
    format: str
    seeds: int
    at_steps: Estimate | None
    """At equal steps: the last evaluation of every run."""
    at_time: Estimate | None
    progress: float | None
    """The share of its steps that the median run had done by then."""
    note: str
    """Why something is missing."""


@dataclass(frozen=True)
class EqualTime:
    """A section's cells when full precision was done."""

    seconds: Mapping[str, float]
    """When that was, by device, and by company where runs trained side by side."""
    cells: tuple[Timed, ...]


def equal_time(maker: SectionMaker, curves: Curves) -> EqualTime:
    """Every cell that has scores, in the order of entrants and columns."""
    seconds = budgets(maker)
    return EqualTime(
        seconds,
        tuple(timed(maker, n, c, curves, seconds) for n, c in maker.parts if maker.scores[n, c]),
    )


def budgets(maker: SectionMaker) -> dict[str, float]:
    """Median training time of full precision, by where it ran."""
    if maker.fp is None:
        return {}
    part = maker.parts[maker.fp, -1]
    found: dict[str, list[float]] = {}
    for where, seconds, usable in zip(
        places(maker, part),
        part["train_s"],
        part["good"] & np.isfinite(part["train_s"]),
        strict=True,
    ):
        if usable:
            found.setdefault(where, []).append(seconds)
    return {where: float(np.median(found[where])) for where in sorted(found)}


def places(maker: SectionMaker, part: Part) -> list[str]:
    """The device that each run trained on, and in what company: among such runs times are compared."""
    names, rows = (
        maker.data.words["device_name"],
        zip(part["device_name"], alone_is_one(part), strict=True),
    )
    return [
        names[device] if company == 1 else f"{names[device]}, {company:.0f} side by side"
        for device, company in rows
    ]


def timed(
    maker: SectionMaker, n: int, column: int, curves: Curves, budget: Mapping[str, float]
) -> Timed:
    part, entrant = maker.parts[n, column], maker.entrants[n]
    rows = _first_of_each_seed(part)
    runs = [
        curves.get((part["key"][i], int(np.nan_to_num(part["attempt"][i], nan=1.0)))) for i in rows
    ]
    where = places(maker, part)
    limits = [budget.get(where[i]) for i in rows]
    whole = [run for run in runs if run is not None]
    reached = [
        at(run, limit)
        for run, limit in zip(runs, limits, strict=True)
        if run is not None and limit is not None
    ]
    values = [value for value, _ in reached if value is not None]
    return Timed(
        entrant.label,
        entrant.params,
        maker.data.columns[column] if column >= 0 else "fp32",
        len(rows),
        intervals.mean_interval([float(run.value[-1]) for run in whole])
        if len(whole) == len(rows)
        else None,
        intervals.mean_interval(values) if len(values) == len(rows) else None,
        float(np.median([progress for _, progress in reached]))
        if len(reached) == len(rows)
        else None,
        _note(len(rows), len(whole), sum(limit is not None for limit in limits), len(values)),
    )


def at(run: Evaluations, seconds: float) -> tuple[float | None, float]:
    """What a run's validation was at a time, if it had been evaluated by then, and how much of its steps it had done."""
    progress = float(np.interp(seconds, np.r_[0.0, run.seconds], np.r_[0.0, run.progress]))
    return (
        float(np.interp(seconds, run.seconds, run.value)) if seconds >= run.seconds[0] else None
    ), progress


def _first_of_each_seed(part: Part) -> list[int]:
    """Rows with a score, as the board counts them: of two with one seed the first."""
    good = np.flatnonzero(part["good"] & np.isfinite(part["seed"]))
    return [int(i) for i in good[np.unique(part["seed"][good], return_index=True)[1]]]


def _note(runs: int, curves: int, limits: int, values: int) -> str:
    if curves < runs:
        return f"{runs - curves} of {count(runs, 'run')} without a validation curve"
    if limits < runs:
        return f"no full precision on the device and in the company of {runs - limits} of {count(runs, 'run')}"
    return f"{runs - values} of {count(runs, 'run')} not evaluated by then" if values < runs else ""
