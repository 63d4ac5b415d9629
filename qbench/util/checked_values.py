"""Check values that were read from a sweep file.

Each function returns the value in the expected type. If the value is wrong, it raises a one-line
`UsageError` that starts with `where`, the place of the value in the file.
"""

from __future__ import annotations

import math
from typing import Any

from qbench.errors import UsageError

MAX_LINE_LENGTH = 200
MAX_LIST_FOR_DUPLICATE_CHECK = 1000
"""The search for duplicates takes quadratic time, so it is skipped in longer lists."""


def check_type(value: Any, expected: type, where: str) -> Any:
    """Return `value` if it has the expected type; numbers must be finite.

    An integer is accepted where a float is expected and is converted. Nothing else is converted.
    """
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # In Python a bool is an int, but `true` is not a number in a sweep file.
    if (expected is int and isinstance(value, bool)) or not isinstance(value, expected):
        raise UsageError(
            f"{where}: expected {expected.__name__}, not {type(value).__name__} {value!r}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {value} is not a finite number")
    return value


def check_list(value: Any, where: str, empty: bool = False) -> list[Any]:
    """Return `value` as a list without duplicates; a single value becomes a list of one.

    An empty list is an error unless `empty` is true.
    """
    values = value if isinstance(value, list) else [value]
    if not values and not empty:
        raise UsageError(f"{where}: the list is empty, so there is nothing to run")
    for i, item in enumerate(values):
        if item in values[:i] and len(values) < MAX_LIST_FOR_DUPLICATE_CHECK:
            raise UsageError(f"{where}: {item!r} occurs twice")
    return values


def check_strings(value: Any, where: str, empty: bool = False) -> tuple[str, ...]:
    """Return `value`, one string or a list of strings, as a tuple of lines of text."""
    return tuple(check_line(item, where) for item in check_list(value, where, empty))


def check_line(value: Any, where: str) -> str:
    """Return `value` if it is one line of printable text of limited length."""
    text = str(check_type(value, str, where))
    if len(text) > MAX_LINE_LENGTH or not text.isprintable():
        beginning = f"{text[:40]!r}{'…' if len(text) > 40 else ''}"
        raise UsageError(
            f"{where}: expected one line of at most {MAX_LINE_LENGTH} printable characters, "
            f"not {beginning}"
        )
    return text


def check_integer(value: Any, low: int, high: int, where: str) -> int:
    """Return `value` if it is an integer from `low` to `high`, both included."""
    number = int(check_type(value, int, where))
    if not low <= number <= high:
        raise UsageError(f"{where}: expected an integer from {low} to {high}, not {number}")
    return number
