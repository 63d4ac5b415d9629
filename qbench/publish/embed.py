"""Encode the document as the data inside the page: small, and unable to leave its element.

The page needs the data to sort and filter its tables and to show the details of a cell. What many
cells or their runs have in common is written once and pointed to by its place in a list.
`templates/model.js` restores it. Numbers have a few digits more than the page shows; `board.json`
has all of them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qbench.publish.plain_values import Json

SCORE_DIGITS, ROUGH_DIGITS = 9, 6
"""Significant digits of scores, and of the other numbers."""
SECTION_FIELDS = (
    "task",
    "size",
    "title",
    "heading",
    "setting",
    "metric",
    "unit",
    "better",
    "digits",
)
ROW_FIELDS = ("version", "params", "role", "rank")
"""Fields of a row that are left out if they are empty."""
COST_FIELDS = ("step_ratio", "train_s", "peak_memory_bytes")
CELL_FIELDS = ("failures", "message", "audits_failed", "chosen", "at_edge", "trials")
"""Fields of a cell that are left out if they are empty."""
CELL_NUMBERS = {
    "rr": SCORE_DIGITS,
    "cost": ROUGH_DIGITS,
    "score": SCORE_DIGITS,
    "gap": ROUGH_DIGITS,
}
"""Numbers of a cell with their digits; they are left out if they are None."""
SHARED_CELL_FIELDS = {
    "setting": 0,
    "levels": 0,
    "rates": 0,
    "lr": ROUGH_DIGITS,
    "bits_per_weight": ROUGH_DIGITS,
}
"""Fields that many cells have in common, with their digits; 0 keeps a value as it is."""
SHARED_RUN_COLUMNS = ("seed", "state", "audit", "trust", "environment")
"""Columns that the runs of many cells have in common."""


def encode_page_data(doc: Json) -> str:
    """Return JSON that can stand in a script element.

    It cannot end the element or begin a comment, and it has no character that older versions of
    JavaScript read as the end of a line.
    """
    data = json.dumps(
        pack_document(doc), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    # These characters occur in strings only, where JSON allows the escape.
    for char in "<>&\u2028\u2029":
        data = data.replace(char, f"\\u{ord(char):04x}")
    return data


def pack_document(doc: Json) -> Json:
    """Return what the page's script needs of the document, each thing once."""
    shared_cells, shared_runs = UniqueList(), UniqueList()
    sections = [_pack_section(section, shared_cells, shared_runs) for section in doc["sections"]]
    return {
        "board": doc["board"],
        "environments": doc["environments"],
        "settings": doc["settings"],
        "shared_cells": shared_cells.values,
        "shared_runs": shared_runs.values,
        "sections": sections,
    }


class UniqueList:
    """A list that holds equal values once, in the order of their first use."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._indices: dict[str, int] = {}

    def index(self, value: Any) -> int:
        """Return the place of a value, which is appended if it is new."""
        written = json.dumps(value, sort_keys=True)
        if written not in self._indices:
            self._indices[written] = len(self.values)
            self.values.append(value)
        return self._indices[written]


def _pack_section(section: Json, shared_cells: UniqueList, shared_runs: UniqueList) -> Json:
    return {name: section[name] for name in SECTION_FIELDS} | {
        "formats": [column["format"] for column in section["columns"]],
        "rows": [_pack_row(row, shared_cells, shared_runs) for row in section["rows"]],
    }


def _pack_row(row: Json, shared_cells: UniqueList, shared_runs: UniqueList) -> Json:
    packed = {"entrant": row["entrant"]} | {name: row[name] for name in ROW_FIELDS if row[name]}
    packed["cost"] = [round_digits(row["cost"][name], ROUGH_DIGITS) for name in COST_FIELDS]
    # The defaults of these two are known to model.js.
    if row["method"] != row["entrant"]:
        packed["method"] = row["method"]
    if row["provenance"] != "paper":
        packed["provenance"] = row["provenance"]
    packed["cells"] = [_pack_cell(cell, shared_cells, shared_runs) for cell in row["cells"]]
    return packed


def _pack_cell(cell: Json, shared_cells: UniqueList, shared_runs: UniqueList) -> Json:
    packed: Json = {"shared": shared_cells.index(_round_fields(cell, SHARED_CELL_FIELDS))}
    packed |= {name: cell[name] for name in CELL_FIELDS if cell[name]}
    packed |= _round_fields(cell, CELL_NUMBERS)
    if cell["state"] != "ok":
        packed["state"] = cell["state"]
    if cell["failures"]:
        packed["asked"] = cell["asked"]
    if cell["equal_time"] and cell["equal_time"]["at_time"]:
        packed["at_time"] = round_digits(cell["equal_time"]["at_time"]["value"], SCORE_DIGITS)
    if cell["runs"]["key"]:
        packed["runs"] = _pack_runs(cell["runs"], shared_runs)
    return packed


def _round_fields(cell: Json, digits: Mapping[str, int]) -> Json:
    """Return the fields of a cell that are not None, each with its digits."""
    return {
        name: round_digits(cell[name], n) for name, n in digits.items() if cell[name] is not None
    }


def _pack_runs(runs: Mapping[str, Sequence[Any]], shared_runs: UniqueList) -> list[Any]:
    """Return the place of the shared columns, the keys, the scores, and the training times.

    A key is 16 bytes in hexadecimal. Base64 of all keys together takes two thirds of the letters.
    """
    columns = [_pack_column(runs[name]) for name in SHARED_RUN_COLUMNS]
    keys = base64.b64encode(b"".join(map(bytes.fromhex, runs["key"]))).decode()
    scores = round_digits(runs["score"], SCORE_DIGITS)
    seconds = _pack_column(round_digits(runs["train_s"], ROUGH_DIGITS))
    return [shared_runs.index(columns), keys, scores, seconds]


def _pack_column(values: Sequence[Any]) -> Any:
    """Return a column, or its only value if all runs have the same."""
    return values[0] if len(set(values)) == 1 else values


def round_digits(x: Any, digits: int) -> Any:
    """Return a value with its numbers rounded to significant digits; 0 digits keep it as it is.

    Lists are rounded item by item. An estimate becomes the list of its value, low and high end.
    """
    if isinstance(x, (list, tuple)) and digits:
        return [round_digits(part, digits) for part in x]
    if isinstance(x, Mapping) and digits:
        return round_digits([x[name] for name in ("value", "low", "high")], digits)
    if not isinstance(x, float) or not digits or not math.isfinite(x):
        return x
    value = float(f"{x:.{digits}g}")
    # 3 is shorter than 3.0, and the same number to JavaScript.
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
