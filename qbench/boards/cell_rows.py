"""Arithmetic on the runs of one cell or one entrant of a section.

Rows are columns by name, as NumPy arrays of equal length; see `row_groups.GroupedRows`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from qbench.boards.board import Cost, State
from qbench.boards.row_groups import UNFINISHED_STATES
from qbench.boards.run_table import Array

CellRows = Mapping[str, Array]
CellIndex = tuple[int, int]
"""The numbers of a cell's entrant and of its column."""


def split_into_cells(rows: CellRows) -> list[tuple[CellIndex, CellRows]]:
    """Return the rows of each cell. `rows` must be sorted by entrant and column."""
    entrant, column = rows["entrant"], rows["column"]
    starts = np.flatnonzero(
        np.r_[True, (entrant[1:] != entrant[:-1]) | (column[1:] != column[:-1])]
    )
    ends = [*starts[1:], len(entrant)]
    return [
        ((int(entrant[i]), int(column[i])), {name: a[i:j] for name, a in rows.items()})
        for i, j in zip(starts, ends, strict=True)
    ]


def select_rows(rows: CellRows, which: Array) -> CellRows:
    """Return the rows that a mask or an array of indices selects."""
    return {name: column[which] for name, column in rows.items()}


def select_best_rate(rows: CellRows, better: str) -> tuple[CellRows, int, str]:
    """Select the runs at the best learning rate of a cell.

    The best rate has the smallest share of failed runs and then the best mean on validation.
    Return its rows, the number of rates that were tried, and "smallest" or "largest" if the best
    one is at an end of them.
    """
    rates = np.unique(keep_finite(rows["lr"]))
    if len(rates) < 2:
        return rows, 1, ""

    def sort_key(rate: float) -> tuple[float, float, float]:
        selected = rows["lr"] == rate
        validation = finite_mean(rows["validation"][selected])
        loss = np.inf if validation is None else -validation if better == "higher" else validation
        return (float(np.mean(~rows["good"][selected])), loss, rate)

    best = min(rates, key=sort_key)
    edge = "smallest" if best == rates[0] else "largest" if best == rates[-1] else ""
    return select_rows(rows, rows["lr"] == best), len(rates), edge


def scores_by_seed(rows: CellRows) -> dict[int, float]:
    """Return the finite scores by seed, in the order of seeds."""
    good = rows["good"] & np.isfinite(rows["seed"])
    seeds, scores = rows["seed"][good].astype(np.int64).tolist(), rows["packed"][good].tolist()
    # Of two runs with one seed the first by key counts. A dictionary keeps the value that is set
    # last, so the rows go in backwards.
    pairs = zip(seeds[::-1], scores[::-1], strict=True)
    return dict(sorted(dict(pairs).items()))


def find_state(scores: int, asked: int, failures: Mapping[str, int]) -> State:
    """Return the state of a cell from the number of its scores and the outcomes without one."""
    if scores:
        return "ok" if scores == asked else "partial"
    if set(failures) - set(UNFINISHED_STATES):
        return "failed"
    return "skipped" if "skipped" in failures else "planned"


def count_failures(rows: CellRows, endings: Sequence[str]) -> dict[str, int]:
    """Count the outcomes of the runs without a score; `endings` is the vocabulary of `end`."""
    counts = Counter(endings[code] for code in rows["end"][~rows["good"]])
    # A finished run whose score is not finite has diverged.
    counts["diverged"] += counts.pop("ok", 0)
    return {outcome: n for outcome, n in sorted(counts.items()) if n}


def describe_failures(failures: Mapping[str, int], asked: int, message: str) -> str:
    """Return `2 of 3 diverged: the loss is nan at step 57`, or why the cell was skipped."""
    if set(failures) == {"skipped"} and message:
        return f"skipped: {message}"
    counts = ", ".join(f"{n} of {asked} {outcome}" for outcome, n in failures.items())
    return f"{counts}: {message}" if message else counts


# ---- cost ----


def compute_cost(cells: Sequence[CellRows], reference: CellRows | None) -> Cost:
    """Return the cost of an entrant from the rows of its cells and those of full precision."""
    names = ("step_s_median", "device_name", "company", "train_s", "peak_memory_bytes")
    own = {
        name: np.concatenate([rows[name][rows["good"]] for rows in cells])
        for name in (*names, "audit_passed")
    }
    ratios = keep_finite(_step_ratios(own, reference))
    train, peak, audits = (
        keep_finite(own[name]) for name in ("train_s", "peak_memory_bytes", "audit_passed")
    )
    return Cost(
        step_ratio=float(np.median(ratios)) if len(ratios) else None,
        step_runs=len(ratios),
        train_s=float(np.median(train)) if len(train) else None,
        peak_memory_bytes=int(peak.max()) if len(peak) else None,
        audits=len(audits),
        audits_failed=int(np.sum(audits == 0)),
    )


def _step_ratios(own: CellRows, reference: CellRows | None) -> Array:
    """Return each run's step time over full precision's median; NaN where that is unknown.

    Times are compared only between runs on the same device with the same number of stacked runs,
    because the time of a stacked run is its share of a common step.
    """
    ratios = np.full(len(own["step_s_median"]), np.nan)
    if reference is None:
        return ratios
    settings = set(zip(own["device_name"].tolist(), stack_sizes(own).tolist(), strict=True))
    for device, size in sorted(settings):
        comparable = (reference["device_name"] == device) & (stack_sizes(reference) == size)
        base = keep_finite(reference["step_s_median"][reference["good"] & comparable])
        here = (own["device_name"] == device) & (stack_sizes(own) == size)
        # A median of zero means that the clock was too coarse for the step.
        if len(base) and np.median(base) > 0:
            ratios[here] = own["step_s_median"][here] / np.median(base)
    return ratios


def stack_sizes(rows: CellRows) -> Array:
    """Return how many stacked runs shared each run's steps; 1 for a run that trained alone."""
    # The column is empty for a run that trained alone, and is called `company` in result.json.
    return np.nan_to_num(rows["company"], nan=1.0)


# ---- finite values ----


def keep_finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def finite_mean(values: Array) -> float | None:
    """Return the mean of the finite values, or None if there are none."""
    finite = keep_finite(values)
    return float(finite.mean()) if len(finite) else None


def first_finite(values: Array) -> float | None:
    finite = keep_finite(values)
    return float(finite[0]) if len(finite) else None


def first_not_none(*values: float | None) -> float:
    return float(next(value for value in values if value is not None))
