"""The summary of a board (`qbench show --summary`) as plain data: the view over all cells, and what it says of each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qbench.publish.plain_values import Json, estimate, plain, spelled

if TYPE_CHECKING:
    from qbench.analysis.equal_time import Timed
    from qbench.analysis.summary import Overall, Point, Summary
    from qbench.boards.board import Board


def overall(summary: Summary) -> Json | None:
    """None where no cell has a gap to recover."""
    if not summary.overall:
        return None
    return {
        "cells": summary.cells,
        "thresholds": [spelled(x) for x in summary.thresholds],
        "rows": [_row(row) for row in summary.overall],
        "notes": [plain(note) for note in summary.notes],
    }


def _row(row: Overall) -> Json:
    bands = row.profile and {
        name: [spelled(x) for x in part] if (part := getattr(row.profile, name)) else None
        for name in ("share", "low", "high")
    }
    return {
        "entrant": plain(row.entrant),
        "control": row.control,
        "gap": estimate(row.gap),
        "iqm": estimate(row.iqm),
        "profile": bands,
        "cells": row.cells,
        "seeds": row.seeds,
        "missing": [plain(why) for why in row.missing],
    }


def add(sections: Sequence[Json], board: Board, summary: Summary) -> None:
    """To each cell its cost, whether it is on the front, and what it had come to when full precision was done."""
    for section, own, of in zip(sections, board.sections, summary.sections, strict=True):
        points = {(p.entrant, p.params, plain(p.format)): p for p in of.points}
        timed = {(t.entrant, t.params, plain(t.format)): t for t in of.equal_time.cells}
        for data, row in zip(section["rows"], own.rows, strict=True):
            for cell in data["cells"]:
                place = row.entrant, row.params, cell["format"]
                cell |= _point(points.get(place))
                cell |= _timed(timed.get(place))


def _point(point: Point | None) -> Mapping[str, Any]:
    return {"cost": spelled(point.cost) if point else None, "front": bool(point and point.front)}


def _timed(timed: Timed | None) -> Mapping[str, Any]:
    if timed is None:
        return {"equal_time": None}
    found = {
        "at_steps": estimate(timed.at_steps),
        "at_time": estimate(timed.at_time),
        "progress": spelled(timed.progress),
        "note": plain(timed.note),
    }
    return {"equal_time": found}
