"""The rows of a section, cell by cell: what the arithmetic of a board asks of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qbench.boards.run_table import Array

Part = Mapping[str, Array]
Place = tuple[int, int]
"""Of a cell: entrant and column."""


def slices(rows: Part) -> list[tuple[Place, Part]]:
    """The rows of each entrant and column, which lie together."""
    entrant, column = rows["entrant"], rows["column"]
    starts = np.flatnonzero(
        np.r_[True, (entrant[1:] != entrant[:-1]) | (column[1:] != column[:-1])]
    )
    ends = [*starts[1:], len(entrant)]
    return [
        ((int(entrant[i]), int(column[i])), {name: a[i:j] for name, a in rows.items()})
        for i, j in zip(starts, ends, strict=True)
    ]


def rows_at(rows: Part, which: Array) -> Part:
    return {name: column[which] for name, column in rows.items()}


def best_rate(part: Part, better: str) -> tuple[Part, int, str]:
    """The runs at the learning rate with the fewest failures and the best validation; how many rates there were; and which end of them it is."""
    rates = np.unique(only_finite(part["lr"]))
    if len(rates) < 2:
        return part, 1, ""

    def merit(rate: float) -> tuple[float, float, float]:
        here = part["lr"] == rate
        validation = mean(part["validation"][here])
        worst = np.inf if validation is None else -validation if better == "higher" else validation
        return (float(np.mean(~part["good"][here])), worst, rate)

    best = min(rates, key=merit)
    chosen = part["lr"] == best
    edge = "smallest" if best == rates[0] else "largest" if best == rates[-1] else ""
    return {name: column[chosen] for name, column in part.items()}, len(rates), edge


def scores_of(part: Part) -> dict[int, float]:
    """Finite scores by seed, in their order; of two runs with one seed, the first by key."""
    good = part["good"] & np.isfinite(part["seed"])
    # The first is put in last.
    pairs = zip(
        part["seed"][good].astype(np.int64).tolist()[::-1],
        part["packed"][good].tolist()[::-1],
        strict=True,
    )
    return dict(sorted(dict(pairs).items()))


def why(failures: Mapping[str, int], asked: int, message: str) -> str:
    if set(failures) == {"skipped"} and message:
        return f"skipped: {message}"
    counts = ", ".join(f"{n} of {asked} {word}" for word, n in failures.items())
    return f"{counts}: {message}" if message else counts


def only_finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def known(*values: float | None) -> float:
    """The first number that is one."""
    return float(next(value for value in values if value is not None))


def mean(values: Array) -> float | None:
    good = only_finite(values)
    return float(good.mean()) if len(good) else None


def first(values: Array) -> float | None:
    good = only_finite(values)
    return float(good[0]) if len(good) else None
