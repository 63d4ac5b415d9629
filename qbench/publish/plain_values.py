"""Turn values of a board into plain JSON data: harmless text, and numbers written alike everywhere.

Names and messages may come from other people's plugins and submissions, so every text passes
`to_plain_text` before it is published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qbench.stats.intervals import Estimate
from qbench.util import text

Json = dict[str, Any]
MAX_TEXT = 2000
"""Longer texts are cut."""


# The same names occur in every cell. `typed` keeps 1, 1.0 and True apart, which are equal keys.
@lru_cache(maxsize=10_000, typed=True)
def to_plain_text(value: str | int | float, keep_indent: bool = False) -> str:
    """Return text without control characters, on one line; `keep_indent` keeps leading blanks."""
    words = text.clean_line(value, MAX_TEXT)
    return (re.match(r" *", str(value)) or [""])[0] + words if keep_indent else words


def to_plain_value(value: Any) -> Any:
    """Return a value of a configuration with harmless text and only numbers that JSON has."""
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return {to_plain_text(key): to_plain_value(v) for key, v in items}
    if isinstance(value, (list, tuple)):
        return [to_plain_value(v) for v in value]
    if isinstance(value, float):
        return round_number(value)
    if isinstance(value, (bool, int, type(None))):
        return value
    return to_plain_text(value)


def to_json_value(x: Any) -> str | int | bool | None:
    """Return a value of the store, which may be a numpy scalar or missing, for JSON."""
    if not is_known(x):
        return None
    if hasattr(x, "item"):
        x = x.item()
    if isinstance(x, float):
        # pandas stores a column of integers as floats once a value is missing.
        return int(x) if x.is_integer() else to_plain_text(x)
    return x if isinstance(x, (bool, int)) else to_plain_text(x)


def to_int(x: Any) -> int | None:
    """Return an integer of the store, or None if it is missing."""
    return int(x) if is_known(x) else None


def is_known(x: Any) -> bool:
    """Return whether a value of the store is there: neither None nor NaN."""
    return x is not None and x == x


def round_number(x: float | None) -> float | None:
    """Return a number with twelve digits, which do not depend on the order numpy sums in."""
    return float(f"{x:.12g}") if x is not None and math.isfinite(x) else None


def round_cost(x: Any) -> float | int | None:
    """Return a measured time with four digits; more would only be noise."""
    if x is None or not is_known(x) or not math.isfinite(float(x)):
        return None
    value = float(f"{float(x):.4g}")
    return int(value) if value.is_integer() and abs(value) >= 1000 else value


def estimate_to_json(e: Estimate | None) -> Json | None:
    """Return a mean and the ends of its interval."""
    if e is None:
        return None
    return {
        "value": round_number(e.value),
        "low": round_number(e.low),
        "high": round_number(e.high),
    }


def get_run_score(row: Mapping[str, Any]) -> float | None:
    """Return the score of a run's packed artefact with every digit, or None if it has none."""
    x = row.get("packed")
    if row["state"] != "ok" or x is None or not is_known(x) or not math.isfinite(x):
        return None
    return float(x)
