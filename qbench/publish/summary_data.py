"""Turn the summary of a board (`qbench show --summary`) into plain data for the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qbench.publish.plain_values import Json, estimate_to_json, round_number, to_plain_text

if TYPE_CHECKING:
    from qbench.analysis.entrant_summary import EntrantSummary
    from qbench.analysis.equal_time import TimedCell
    from qbench.analysis.summary import BoardSummary
    from qbench.boards.board import Board


def describe_overall(summary: BoardSummary) -> Json | None:
    """Return the view over all cells, or None if no cell has a gap to recover."""
    if not summary.overall:
        return None
    return {
        "cells": summary.cells,
        "thresholds": [round_number(x) for x in summary.thresholds],
        "rows": [_describe_entrant(row) for row in summary.overall],
        "notes": [to_plain_text(note) for note in summary.notes],
    }


def add_cell_summaries(sections: Sequence[Json], board: Board, summary: BoardSummary) -> None:
    """Add to each cell of the document what the summary says about it.

    This is its training cost, whether it is on the Pareto front, and its score at the time when
    full precision finished its training.
    """
    for section, own, part in zip(sections, board.sections, summary.sections, strict=True):
        points = {(p.entrant, p.params, to_plain_text(p.format)): p for p in part.points}
        timed = {(t.entrant, t.params, to_plain_text(t.format)): t for t in part.equal_time.cells}
        for data, row in zip(section["rows"], own.rows, strict=True):
            for cell in data["cells"]:
                key = row.entrant, row.params, cell["format"]
                point = points.get(key)
                cell["cost"] = round_number(point.cost) if point else None
                cell["front"] = bool(point and point.front)
                cell["equal_time"] = _describe_equal_time(timed.get(key))


def _describe_entrant(row: EntrantSummary) -> Json:
    profile = row.profile and {
        name: [round_number(x) for x in part] if (part := getattr(row.profile, name)) else None
        for name in ("share", "low", "high")
    }
    return {
        "entrant": to_plain_text(row.entrant),
        "control": row.control,
        "gap": estimate_to_json(row.gap),
        "iqm": estimate_to_json(row.iqm),
        "profile": profile,
        "cells": row.cells,
        "seeds": row.seeds,
        "missing": [to_plain_text(why) for why in row.missing],
    }


def _describe_equal_time(timed: TimedCell | None) -> Json | None:
    if timed is None:
        return None
    return {
        "at_steps": estimate_to_json(timed.at_steps),
        "at_time": estimate_to_json(timed.at_time),
        "progress": round_number(timed.progress),
        "note": to_plain_text(timed.note),
    }
