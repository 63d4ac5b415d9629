"""Values of a board as plain data: text that cannot act, numbers that are spelled alike everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qbench.stats.intervals import Estimate
from qbench.util import text

Json = dict[str, Any]
LONGEST = 2000


@lru_cache(maxsize=10_000, typed=True)
def plain(value: str | int | float, keep: bool = False) -> str:
    """Text without anything that acts; `keep` leaves the blanks at a line's beginning."""
    words = text.plain(value, LONGEST)
    return (re.match(r" *", str(value)) or [""])[0] + words if keep else words


def spelled(x: float | None) -> float | None:
    """Twelve digits, which are the same whatever order numpy sums in."""
    return float(f"{x:.12g}") if x is not None and math.isfinite(x) else None


def tidied(value: Any) -> Any:
    """Anything from a configuration: no text that acts, no number that JSON lacks."""
    if isinstance(value, Mapping):
        return {
            plain(k): tidied(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, (list, tuple)):
        return [tidied(v) for v in value]
    if isinstance(value, float):
        return spelled(value)
    return (
        plain(value)
        if isinstance(value, str)
        else value
        if isinstance(value, (bool, int, type(None)))
        else plain(value)
    )


def known(x: Any) -> bool:
    return x is not None and x == x


def estimate(e: Estimate | None) -> Json | None:
    return (
        None
        if e is None
        else {"value": spelled(e.value), "low": spelled(e.low), "high": spelled(e.high)}
    )


def score(row: Mapping[str, Any]) -> float | None:
    x = row.get("packed")
    return (
        float(x)
        if row["state"] == "ok" and x is not None and known(x) and math.isfinite(x)
        else None
    )


def short(x: Any) -> float | int | None:
    """A cost: four digits say it."""
    if x is None or not known(x) or not math.isfinite(float(x)):
        return None
    value = float(f"{float(x):.4g}")
    return int(value) if value.is_integer() and abs(value) >= 1000 else value


def whole(x: Any) -> int | None:
    return int(x) if known(x) else None


def word(x: Any) -> str | int | bool | None:
    """A value of the store as JSON has it."""
    if not known(x):
        return None
    if hasattr(x, "item"):
        x = x.item()
    if isinstance(x, float):
        return int(x) if x.is_integer() else plain(x)
    return x if isinstance(x, (bool, int)) else plain(x)
