"""What a tuned section says about its tuning: the chosen values, and who leads after n trials.

The scores of a tuned board are those of runs at the board's seeds, with the chosen values. The
trials use seeds of their own and only tell how much tuning a method needs. The expected score of
the best of n trials is an expectation over which trials happen to be drawn. It has no interval
and must not be compared with the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbench.boards.cell_rows import CellRows
from qbench.boards.row_groups import UNFINISHED_STATES, GroupedRows, parse_parameters
from qbench.boards.run_table import Array
from qbench.stats.trial_selection import expected_scores_of_best, find_leaders
from qbench.sweepfile.tuning_space import Tuning
from qbench.util.text import format_count, format_value

UNFINISHED = frozenset(UNFINISHED_STATES) - {"skipped"}
"""A trial that was skipped counts as a failed one: its method refuses such values."""


@dataclass(frozen=True)
class CellTrials:
    """The trials of one cell."""

    count: int
    failed: int
    curve: tuple[float | None, ...] = ()
    """The expected test score of the best of n trials; empty while trials are missing."""
    share: float = 1.0
    """The share of the steps that the runs behind the curve were trained for."""


def mark_trials(rows: CellRows, vocabularies: Mapping[str, Sequence[str]]) -> Array:
    """Return a mask of the rows that are trials, which only tune."""
    stages = vocabularies["stage"]
    code = stages.index("trial") if "trial" in stages else -1
    return np.asarray(rows["stage"] == code)


def summarise_trials(
    rows: CellRows, grouped: GroupedRows, better: str, tuning: Tuning | None
) -> CellTrials:
    """Summarise the trial rows of one cell.

    Under successive halving only the first rung includes all trials, so the curve is computed
    from those shorter runs. The trials that did not continue were stopped because of their
    validation scores, and nobody knows what they would have scored with all steps.
    """
    first = rows["rung"] == 0
    numbers = np.unique(rows["trial"][first]).tolist()
    means = [_average_trial(rows, first & (rows["trial"] == number)) for number in numbers]
    failed = sum(validation is None for validation, _ in means)
    endings = {grouped.vocabularies["end"][code] for code in rows["end"][first]}
    if endings & UNFINISHED or (tuning and len(means) < tuning.trials):
        return CellTrials(len(means), failed)
    shares = rows["own_steps"][first] / rows["steps"][first]
    share = float(np.median(shares)) if len(shares) and np.isfinite(shares).all() else 1.0
    curve = expected_scores_of_best([v for v, _ in means], [test for _, test in means], better)
    return CellTrials(len(means), failed, curve, share)


def _average_trial(rows: CellRows, which: Array) -> tuple[float | None, float | None]:
    """Return validation and test of one trial over its seeds; None if one of its runs failed."""
    good = rows["good"][which] & np.isfinite(rows["validation"][which])
    if not good.all() or not len(good):
        return None, None
    return float(rows["validation"][which].mean()), float(rows["packed"][which].mean())


def read_chosen_values(rows: CellRows, grouped: GroupedRows) -> dict[str, Any]:
    """Return the hyper-parameters that tuning chose for the runs of a cell."""
    codes = rows["chosen"][rows["chosen"] > 0]
    return parse_parameters(grouped.vocabularies["chosen"][codes[0]]) if len(codes) else {}


def list_values_at_edge(values: Mapping[str, Any], method: str, tuning: Tuning | None) -> list[str]:
    """Return `lr=0.0001` for each chosen value that is at an end of the range that was tried."""
    axes = {**tuning.axes, **tuning.own.get(method, {})} if tuning else {}
    chosen = ((name, v) for name, v in values.items() if name in axes)
    return [f"{name}={format_value(v)}" for name, v in chosen if axes[name].is_at_edge(v)]


def write_tuning_notes(
    trials: Mapping[str, Mapping[str, CellTrials]],
    better: str,
    minimum_effect: float,
    tuning: Tuning | None,
) -> Iterator[str]:
    """Say how a section was tuned, and where the leader depends on the number of trials.

    `trials` are given by column and then by entrant. Controls are included.
    """
    cells = [(name, cell) for column in trials.values() for name, cell in column.items()]
    counts = sorted({cell.count for _, cell in cells})
    yield f"tuned on validation: {tuning or format_count(counts[-1], 'trial')}"
    if len(counts) > 1:
        # In reverse, so that of an entrant's cells the first one is named.
        fewer = {name: cell.count for name, cell in reversed(cells) if cell.count < counts[-1]}
        listed = ", ".join(f"{n} for {name}" for name, n in sorted(fewer.items()))
        yield f"unequal numbers of trials: {listed}, {counts[-1]} for the others"
    for column, by_entrant in trials.items():
        curves = {name: cell.curve for name, cell in by_entrant.items()}
        leaders = find_leaders(curves, better, minimum_effect)
        if len(leaders) > 1:
            steps = _describe_share(by_entrant.values())
            yield (
                f"{column}: {_describe_leaders(leaders)} (by the expected test score of the trial"
                f" that is the best of n on validation{steps})"
            )


def _describe_leaders(leaders: Sequence[tuple[str, int]]) -> str:
    """Return `ste leads up to 3 trials, lsq up to 7, lotion from 8`."""
    ends = [start - 1 for _, start in leaders[1:]]
    parts = [f"{leaders[0][0]} leads up to {format_count(ends[0], 'trial')}"]
    for (name, _), end in zip(leaders[1:-1], ends[1:], strict=True):
        parts.append(f"{name} up to {end}")
    return ", ".join([*parts, f"{leaders[-1][0]} from {leaders[-1][1]}"])


def _describe_share(cells: Iterable[CellTrials]) -> str:
    share = min((cell.share for cell in cells), default=1.0)
    return f", of runs with {100 * share:g} % of the steps" if share < 1 else ""
