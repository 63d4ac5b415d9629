"""A board as CSV, and its runs as CSV, from which the board can be built again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.boards.board import Board, BoardCell, DownstreamTask, Row, Section
from qbench.boards.board_text import CSV_HASH
from qbench.boards.run_table import TEXT_COLUMNS
from qbench.stats.intervals import Estimate
from qbench.util import text

if TYPE_CHECKING:
    import pandas as pd


CELL_COLUMNS = [
    "task",
    "size",
    "setting",
    "metric",
    "unit",
    "better",
    "entrant",
    "method",
    "version",
    "params",
    "provenance",
    "role",
    "format",
    "levels",
    "bits_per_weight",
    "state",
    "seeds",
    "asked",
    "mean",
    "low",
    "high",
    "gap",
    "gap_low",
    "gap_high",
    "rr_mean",
    "lr",
    "rates",
    "best",
    "rank_first",
    "rank_last",
    "step_ratio",
    "train_s",
    "peak_memory_bytes",
    "audits_failed",
    "failures",
    "notes",
    "runs",
]
TUNING_COLUMNS = ("chosen", "at_edge", "trials", "best_of", "best_of_share")
"""Columns that tuned boards add."""
DOWNSTREAM_COLUMNS = ("mean", "low", "high", "seeds")
"""Columns that are added for each downstream task; their names contain the task's hash."""


def to_csv(board: Board) -> str:
    """Return the board as CSV, a line for each cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    by_id = {task.id: task for section in board.sections for task in section.downstream}
    tasks = [by_id[id_] for id_ in sorted(by_id)]
    is_tuned = any(cell.trials for _, _, _, cell in _iterate_cells(board))
    downstream = [
        text.escape_csv_cell(
            f"downstream {task.task} {task.metric} {task.sha256[:CSV_HASH]} {name}"
        )
        for task in tasks
        for name in DOWNSTREAM_COLUMNS
    ]
    writer.writerow([*CELL_COLUMNS, *(TUNING_COLUMNS if is_tuned else ()), *downstream])
    for section, row, fmt, cell in _iterate_cells(board):
        values = _cell_values(section, row, fmt, cell)
        values += _tuning_values(cell) if is_tuned else []
        values += _downstream_values(cell, tasks)
        writer.writerow([_format_value(value) for value in values])
    return out.getvalue()


def _iterate_cells(board: Board) -> Iterator[tuple[Section, Row, str, BoardCell]]:
    for section in board.sections:
        for row in section.rows:
            formats = ["fp32"] if row.spans_columns else [c.format for c in section.columns]
            for fmt, cell in zip(formats, row.cells, strict=True):
                yield section, row, fmt, cell


def _cell_values(section: Section, row: Row, fmt: str, cell: BoardCell) -> list[Any]:
    """Return the values of `CELL_COLUMNS`, in their order."""
    cost = row.cost
    setting = ", ".join(filter(None, (section.title, section.setting)))
    failures = "; ".join(f"{n} {reason}" for reason, n in cell.failures.items())
    notes = "; ".join(section.notes[n - 1] for n in cell.notes)
    return [
        *(section.task, section.size, setting, section.metric, section.unit, section.better),
        *(row.entrant, row.method, row.version, row.params, row.provenance, row.role),
        *(fmt, cell.levels, cell.bits_per_weight, cell.state, cell.seeds, cell.asked),
        *_estimate_values(cell.score),
        *_estimate_values(cell.gap),
        *(cell.rr, cell.lr, cell.rates, int(cell.best)),
        *(row.rank or (None, None)),
        *(cost.step_ratio, cost.train_s, cost.peak_memory_bytes, cell.audits_failed),
        *(failures, notes, " ".join(cell.keys)),
    ]


def _estimate_values(estimate: Estimate | None) -> tuple[float | None, ...]:
    return (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)


def _tuning_values(cell: BoardCell) -> list[Any]:
    """Return the values of `TUNING_COLUMNS`, in their order."""
    chosen = json.dumps(dict(cell.chosen), sort_keys=True) if cell.chosen else None
    curve, share = None, None
    if cell.best_of:
        # As many digits as `_format_value` writes elsewhere.
        scores = [None if score is None else float(f"{score:.12g}") for score in cell.best_of]
        curve, share = json.dumps(scores), cell.best_of_share
    return [chosen, ", ".join(cell.at_edge), cell.trials, curve, share]


def _downstream_values(cell: BoardCell, tasks: Sequence[DownstreamTask]) -> list[Any]:
    """Return the values of `DOWNSTREAM_COLUMNS` for each task."""
    values: list[Any] = []
    for task in tasks:
        found = cell.downstream.get(task.id)
        values += _estimate_values(found.score if found else None)
        values.append(found.seeds if found else None)
    return values


def _format_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        # Twelve digits do not depend on the machine; see `board.to_plain_data`.
        return f"{value:.12g}"
    return str(value) if isinstance(value, int) else text.escape_csv_cell(value)


# ---- runs ----


def runs_csv(frame: pd.DataFrame) -> str:
    """Return the runs as CSV, a line for each, sorted by key and attempt.

    `read_runs_csv` returns the same frame, so that the board can be built from the file.
    """
    sort_columns = [column for column in ("key", "attempt") if column in frame]
    ordered = frame.sort_values(sort_columns, kind="stable") if sort_columns else frame
    return str(_map_text(ordered, text.escape_csv_cell).to_csv(index=False, lineterminator="\n"))


def read_runs_csv(source: Any) -> pd.DataFrame:
    """Read what `runs_csv` wrote, from a path or an open file."""
    import pandas as pd

    # Before version 3.1 pandas reads floats exactly only with this option. Later versions always
    # do, and warn about it.
    is_old = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if is_old else {}
    # Text stays text: a label may look like a number.
    text_types = dict.fromkeys(("key", *TEXT_COLUMNS), str)
    frame = pd.read_csv(
        source, keep_default_na=False, na_values=[""], low_memory=False, dtype=text_types, **exact
    )
    return _map_text(frame, text.unescape_csv_cell)


def _map_text(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return the frame with `change` applied to its text, once for each different text."""
    import pandas as pd

    changed_columns: dict[str, Any] = {}
    for name in map(str, frame):
        column = frame[name]
        is_text = isinstance(column.dtype, (pd.StringDtype, pd.CategoricalDtype))
        if column.dtype == object or is_text:
            codes, values = pd.factorize(column)
            changed = [change(value) if isinstance(value, str) else value for value in values]
            # A missing value has the code −1, which selects the None at the end.
            changed_columns[name] = np.array([*changed, None], dtype=object)[codes]
    return frame.assign(**changed_columns)
