"""A board, or its runs, as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.boards.board import Board, Cell, Exam, Row, Section
from qbench.boards.run_table import TEXT
from qbench.boards.words import CSV_HASH
from qbench.util import text

if TYPE_CHECKING:
    import pandas as pd


# ---- CSV ----

CELLS = (
    *(
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
    ),
    *(
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
    ),
    *(
        "lr",
        "rates",
        "best",
        "rank_first",
        "rank_last",
        "step_ratio",
        "train_s",
        "peak_memory_bytes",
        "audits_failed",
    ),
    *("failures", "notes", "runs"),
)
TUNED = ("chosen", "at_edge", "trials", "best_of", "best_of_share")
"""Of tuned boards, after the others."""
GRADE = ("mean", "low", "high", "seeds")
"""Of boards that were asked something, after these: for each downstream task by its hash."""


def to_csv(board: Board) -> str:
    """A line for each cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    tuned = any(
        cell.trials for section in board.sections for row in section.rows for cell in row.cells
    )
    exams = {exam.id: exam for section in board.sections for exam in section.downstream}
    asked = [exams[name] for name in sorted(exams)]
    names = [
        text.cell(f"downstream {e.task} {e.metric} {e.sha256[:CSV_HASH]} {word}")
        for e in asked
        for word in GRADE
    ]
    writer.writerow([*CELLS, *(TUNED if tuned else ()), *names])
    for section in board.sections:
        for row in section.rows:
            formats = ["fp32"] if row.spans else [c.format for c in section.columns]
            for fmt, cell in zip(formats, row.cells, strict=True):
                line = (
                    _csv_line(section, row, fmt, cell)
                    + (_csv_tuned(cell) if tuned else [])
                    + _csv_downstream(cell, asked)
                )
                writer.writerow([_csv_value(x) for x in line])
    return out.getvalue()


def _csv_line(section: Section, row: Row, fmt: str, c: Cell) -> list[Any]:
    s, g, cost, rank = c.score, c.gap, row.cost, row.rank
    setting = ", ".join(filter(None, (section.title, section.setting)))
    failures = "; ".join(f"{n} {reason}" for reason, n in c.failures.items())
    notes = "; ".join(section.notes[n - 1] for n in c.notes)
    return [
        *(section.task, section.size, setting, section.metric, section.unit, section.better),
        *(
            row.entrant,
            row.method,
            row.version,
            row.params,
            "reconstructed" if row.reconstructed else "paper",
            row.role,
        ),
        *(fmt, c.levels, c.bits_per_weight, c.state, c.seeds, c.asked),
        *((s.value, s.low, s.high) if s else (None,) * 3),
        *((g.value, g.low, g.high) if g else (None,) * 3),
        *(c.rr, c.lr, c.rates, int(c.best), *(rank or (None, None))),
        *(
            cost.step_ratio,
            cost.train_s,
            cost.peak_memory_bytes,
            c.audits_failed,
            failures,
            notes,
            " ".join(c.keys),
        ),
    ]


def _csv_tuned(c: Cell) -> list[Any]:
    curve = (
        json.dumps([None if value is None else float(f"{value:.12g}") for value in c.best_of])
        if c.best_of
        else None
    )
    values = json.dumps(dict(c.chosen), sort_keys=True) if c.chosen else None
    return [values, ", ".join(c.at_edge), c.trials, curve, c.best_of_share if c.best_of else None]


def _csv_downstream(cell: Cell, exams: Sequence[Exam]) -> list[Any]:
    found = [cell.downstream.get(exam.id) for exam in exams]
    each = [(g.score, g.seeds) if g else (None, None) for g in found]
    return [
        value
        for s, seeds in each
        for value in (*((s.value, s.low, s.high) if s else (None,) * 3), seeds)
    ]


def _csv_value(x: object) -> str:
    return (
        ""
        if x is None
        else f"{x:.12g}"
        if isinstance(x, float)
        else str(x)
        if isinstance(x, int)
        else text.cell(x)
    )


def runs_csv(frame: pd.DataFrame) -> str:
    """A line for each run, in the order of keys and attempts. `read_runs_csv` gives the frame back, and so the board."""
    by = [column for column in ("key", "attempt") if column in frame]
    ordered = frame.sort_values(by, kind="stable") if by else frame
    return str(_mapped(ordered, text.cell).to_csv(index=False, lineterminator="\n"))


def read_runs_csv(source: Any) -> pd.DataFrame:
    """What `runs_csv` wrote, from a path or an open file."""
    import pandas as pd

    # Before version 3.1 pandas reads a number to the last bit only if told to; from then on it warns when told.
    old = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if old else {}
    # Text stays text: a label may look like a number.
    words = dict.fromkeys(("key", *TEXT), str)
    frame = pd.read_csv(
        source, keep_default_na=False, na_values=[""], low_memory=False, dtype=words, **exact
    )
    return _mapped(frame, text.uncell)


def _mapped(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The frame with its text changed, each different text once."""
    import pandas as pd

    new: dict[str, Any] = {}
    for name in map(str, frame):
        column = frame[name]
        if column.dtype == object or isinstance(
            column.dtype, (pd.StringDtype, pd.CategoricalDtype)
        ):
            codes, words = pd.factorize(column)
            changed = np.array(
                [*(change(w) if isinstance(w, str) else w for w in words), None], dtype=object
            )
            new[name] = changed[codes]
    return frame.assign(**new)
