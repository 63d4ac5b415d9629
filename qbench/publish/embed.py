"""The document as the page carries it: small, and unable to leave the element that it lies in. `templates/model.js` unfolds it.

Numbers that the page only shows or sorts by have as many digits as it shows and a few to spare; `board.json` has them all. Scores of runs
have fourteen: ranks are computed from them. Two scores that differ by rounding alone still do after it, as 1e-14 of their size is far below what
`stats.SPREADLESS` calls no spread (1e-12); and no other pair's t moves by more than that part of its size over its standard error, so that
a rank could change only where p lies as near to 0.05.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qbench.publish.plain_values import Json

SCORE, SHOWN, ROUGH = 14, 9, 6
"""Significant digits of a run's score, of what is shown at a section's digits, and of the rest."""
SECTION = (
    "task",
    "size",
    "title",
    "heading",
    "setting",
    "metric",
    "unit",
    "better",
    "digits",
    "minimum_effect",
)
ROW = ("version", "params", "role", "rank", "retired")
COSTS = ("step_ratio", "train_s", "peak_memory_bytes")
WORDS = ("failures", "message", "audits_failed", "chosen", "at_edge", "trials")
NUMBERS = {"rr": SHOWN, "cost": ROUGH, "score": SHOWN, "gap": ROUGH}
"""Of a cell, and to how many digits; what is none or nothing is left out."""
LIKE = {"setting": 0, "levels": 0, "rates": 0, "lr": ROUGH, "bits_per_weight": ROUGH}
SHAPE = ("seed", "state", "audit", "trust", "environment")
"""What many cells share, and columns that many cells' runs share: listed once, pointed to by place."""


def embedded(doc: Json) -> str:
    """JSON that can stand in a script element: it cannot end one, begin a comment, or break a line of JavaScript."""
    found = json.dumps(packed(doc), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        found = found.replace(char, f"\\u{ord(char):04x}")
    return found


def packed(doc: Json) -> Json:
    """What the script needs of the document, each thing once."""
    likes, shapes = Shelf(), Shelf()
    sections = [_section(section, likes, shapes) for section in doc["sections"]]
    kept = {name: doc[name] for name in ("board", "ranked_from", "environments", "settings")}
    return kept | {"likes": likes.things, "shapes": shapes.things, "sections": sections}


class Shelf:
    """Things by their places, each once."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, thing: Any) -> int:
        written = json.dumps(thing, sort_keys=True)
        if written not in self._places:
            self._places[written] = len(self.things)
            self.things.append(thing)
        return self._places[written]


def _section(section: Json, likes: Shelf, shapes: Shelf) -> Json:
    rows = [_row(row, likes, shapes) for row in section["rows"]]
    return {name: section[name] for name in SECTION} | {
        "formats": [c["format"] for c in section["columns"]],
        "rows": rows,
    }


def _row(row: Json, likes: Shelf, shapes: Shelf) -> Json:
    found = {"entrant": row["entrant"]} | {name: row[name] for name in ROW if row[name]}
    found["cost"] = [rounded(row["cost"][name], ROUGH) for name in COSTS]
    if row["method"] != row["entrant"]:
        found["method"] = row["method"]
    if row["provenance"] != "paper":
        found["provenance"] = row["provenance"]
    return found | {"cells": [_cell(cell, likes, shapes) for cell in row["cells"]]}


def _cell(cell: Json, likes: Shelf, shapes: Shelf) -> Json:
    alike = {
        name: rounded(cell[name], digits) for name, digits in LIKE.items() if cell[name] is not None
    }
    found = {"like": likes.place(alike)} | {name: cell[name] for name in WORDS if cell[name]}
    found |= {
        name: rounded(cell[name], digits)
        for name, digits in NUMBERS.items()
        if cell[name] is not None
    }
    if cell["state"] != "ok":
        found["state"] = cell["state"]
    if cell["failures"]:
        found["asked"] = cell["asked"]
    if cell["equal_time"] and cell["equal_time"]["at_time"]:
        found["at_time"] = rounded(cell["equal_time"]["at_time"]["value"], SHOWN)
    return found | ({"runs": _runs(cell["runs"], shapes)} if cell["runs"]["key"] else {})


def _runs(runs: Mapping[str, Sequence[Any]], shapes: Shelf) -> list[Any]:
    """The place of its shape, the keys as base64 of their bytes, the scores, and the seconds of training."""
    keys = base64.b64encode(b"".join(map(bytes.fromhex, runs["key"]))).decode()
    seconds = _column(rounded(runs["train_s"], ROUGH))
    return [
        shapes.place([_column(runs[name]) for name in SHAPE]),
        keys,
        rounded(runs["score"], SCORE),
        seconds,
    ]


def _column(values: Sequence[Any]) -> Any:
    """A column of one value says it once."""
    return values[0] if len(set(values)) == 1 else values


def rounded(x: Any, digits: int) -> Any:
    """Numbers, alone, in lists and in estimates (value, low, high), to significant digits."""
    if isinstance(x, (list, tuple)) and digits:
        return [rounded(part, digits) for part in x]
    if isinstance(x, Mapping) and digits:
        return rounded([x[name] for name in ("value", "low", "high")], digits)
    if not isinstance(x, float) or not digits or not math.isfinite(x):
        return x
    value = float(f"{x:.{digits}g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
