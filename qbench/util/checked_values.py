"""Values of a sweep file: of the type that is wanted and within bounds, or one line that says what is wrong and where."""

from __future__ import annotations

import math
from typing import Any

from qbench.errors import UsageError


def coerce(value: Any, like: type, where: str) -> Any:
    """`value` as the type that a field declares; a whole number is a float where one is asked for, nothing else is bent."""
    if like is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (like is int and isinstance(value, bool)) or not isinstance(value, like):
        raise UsageError(f"{where}: expected {like.__name__}, not {type(value).__name__} {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {value} is not a finite number")
    return value


def list_of(value: Any, where: str, empty: bool = False) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values and not empty:
        raise UsageError(f"{where}: an empty list, so there is nothing to run")
    for i, item in enumerate(values):
        if item in values[:i] and len(values) < 1000:
            raise UsageError(f"{where}: {item!r} is there twice")
    return values


def strings(value: Any, where: str, empty: bool = False) -> tuple[str, ...]:
    return tuple(line(v, where) for v in list_of(value, where, empty))


def line(value: Any, where: str) -> str:
    text = str(coerce(value, str, where))
    if len(text) > 200 or not text.isprintable():
        raise UsageError(
            f"{where}: one line of at most 200 printable characters, not {text[:40]!r}{'…' if len(text) > 40 else ''}"
        )
    return text


def whole(value: Any, low: int, high: int, where: str) -> int:
    number = int(coerce(value, int, where))
    if not low <= number <= high:
        raise UsageError(f"{where}: a whole number from {low} to {high}, not {number}")
    return number
