"""The document as the page carries it: small, and unable to leave the element that it lies in."""

from __future__ import annotations

import json
from typing import Any

from qbench.publish.values import Json

KEPT = ("id", "format", "state", "seeds", "asked", "runs", "setting")
"""Of a cell, whatever it is; the rest is left out where it is nothing, none or not."""
COLUMNS = ("key", "seed", "state", "score", "audit", "trust", "environment", "train_s")


def embedded(doc: Json) -> str:
    """JSON that can stand in a script element: it cannot end one, begin a comment, or break a line of JavaScript."""
    found = json.dumps(packed(doc), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        found = found.replace(char, f"\\u{ord(char):04x}")
    return found


def packed(doc: Json) -> Json:
    """Without what only the file needs: a column of one value says it once."""
    sections = [{**s, "rows": [{**r, "cells": [_cell(c) for c in r["cells"]]} for r in s["rows"]]} for s in doc["sections"]]
    return {name: doc[name] for name in ("board", "ranked_from", "environments", "settings")} | {"sections": sections}


def _cell(cell: Json) -> Json:
    found = {name: value for name, value in cell.items() if name in KEPT or value}
    time = cell["equal_time"] and cell["equal_time"]["at_time"]
    return {name: value for name, value in found.items() if name not in ("best_of", "best_of_share", "equal_time")} | {
        "runs": {name: _column(name, cell["runs"][name]) for name in COLUMNS}
    } | ({"at_time": time["value"]} if time else {})  # fmt: skip


def _column(name: str, values: list[Any]) -> Any:
    return {"all": values[0]} if name != "key" and values and len(set(values)) == 1 else values
