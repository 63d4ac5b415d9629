"""What a tuned section says beside its scores: what was chosen and how near the edge, what the best of n trials would have scored, and who leads.

The scores are those of runs at the board's seeds, with the chosen values. The trials, at seeds of their own, only tell how much tuning a
method wants: `best_of` is an expectation over which trials one happens to make, without an interval, and not to be held against the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbench.boards.cell_rows import Part
from qbench.boards.row_groups import NOT_RUN, Tidy, parameters
from qbench.boards.run_table import Array
from qbench.stats.trial_selection import best_of, leaders
from qbench.sweepfile.tuning_space import Tuning
from qbench.util.text import count, value

UNFINISHED = frozenset(NOT_RUN) - {"skipped"}
"""A trial that was skipped is a trial that failed: its method has no rule for such values."""


@dataclass(frozen=True)
class Tried:
    """The trials of one cell."""

    count: int
    failed: int
    curve: tuple[float | None, ...] = ()
    """Empty while trials are missing."""
    share: float = 1.0
    """Of the steps, in the runs that the curve is of."""


def is_trial(rows: Part, words: Mapping[str, Sequence[str]]) -> Array:
    """Which rows only tune."""
    code = words["stage"].index("trial") if "trial" in words["stage"] else -1
    return np.asarray(rows["stage"] == code)


def tried(part: Part, data: Tidy, better: str, tuning: Tuning | None) -> Tried:
    """Of a cell's trial rows. Under halving only the first rung has them all, so the curve is of those shorter runs: the others were cut off
    for their validation, and nobody knows how they would have scored."""
    first = part["rung"] == 0
    numbers = np.unique(part["trial"][first]).tolist()
    runs = [_means(part, first & (part["trial"] == number)) for number in numbers]
    failed = sum(validation is None for validation, _ in runs)
    ends = {data.words["end"][code] for code in part["end"][first]}
    if ends & UNFINISHED or (tuning and len(runs) < tuning.trials):
        return Tried(len(runs), failed)
    shares = part["own_steps"][first] / part["steps"][first]
    share = float(np.median(shares)) if len(shares) and np.isfinite(shares).all() else 1.0
    return Tried(
        len(runs), failed, best_of([v for v, _ in runs], [t for _, t in runs], better), share
    )


def _means(part: Part, rows: Array) -> tuple[float | None, float | None]:
    """Validation and test of one trial over its seeds; None for one with a failed run."""
    good = part["good"][rows] & np.isfinite(part["validation"][rows])
    if not good.all() or not len(good):
        return None, None
    return float(part["validation"][rows].mean()), float(part["packed"][rows].mean())


def chosen(part: Part, data: Tidy) -> dict[str, Any]:
    """The values at which a cell's runs were made."""
    codes = part["chosen"][part["chosen"] > 0]
    return parameters(data.words["chosen"][codes[0]]) if len(codes) else {}


def at_edge(values: Mapping[str, Any], method: str, tuning: Tuning | None) -> list[str]:
    """`lr=0.0001` for each chosen value at an end of what was tried."""
    axes = {**tuning.axes, **tuning.own.get(method, {})} if tuning else {}
    return [
        f"{name}={value(v)}" for name, v in values.items() if name in axes and axes[name].is_at_edge(v)
    ]


def notes(
    trials: Mapping[str, Mapping[str, Tried]], better: str, effect: float, tuning: Tuning | None
) -> Iterator[str]:
    """For a section: how it was tuned, and where who leads hangs on the number of trials. `trials` are by column, then by entrant."""
    cells = [(name, cell) for column in trials.values() for name, cell in column.items()]
    counts = sorted({cell.count for _, cell in cells})
    yield f"tuned on validation: {tuning or count(counts[-1], 'trial')}"
    if len(counts) > 1:
        each = {name: cell.count for name, cell in reversed(cells) if cell.count < counts[-1]}
        yield (
            "unequal numbers of trials: "
            + ", ".join(f"{n} for {name}" for name, n in sorted(each.items()))
            + f", {counts[-1]} for the others"
        )
    for column, found in trials.items():
        order = leaders({name: cell.curve for name, cell in found.items()}, better, effect)
        if len(order) > 1:
            yield f"{column}: {_succession(order)} (by the expected test score of the trial that is the best of n on validation{_shorter(found.values())})"


def _succession(order: Sequence[tuple[str, int]]) -> str:
    """`ste leads up to 3 trials, lsq up to 7, lotion from 8`."""
    ends = [after - 1 for _, after in order[1:]]
    first = f"{order[0][0]} leads up to {count(ends[0], 'trial')}"
    return ", ".join(
        [
            first,
            *(f"{name} up to {end}" for (name, _), end in zip(order[1:-1], ends[1:], strict=True)),
            f"{order[-1][0]} from {order[-1][1]}",
        ]
    )


def _shorter(cells: Iterable[Tried]) -> str:
    share = min((cell.share for cell in cells), default=1.0)
    return f", of runs with {100 * share:g} % of the steps" if share < 1 else ""
