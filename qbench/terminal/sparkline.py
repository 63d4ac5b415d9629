"""A curve as one line of bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

BARS = "▁▂▃▄▅▆▇█"
NOT_FINITE = "×"
LOGARITHMIC_FROM = 30
"""The ratio of the largest to the smallest value from which the scale is logarithmic."""


def draw_sparkline(values: Iterable[float | None], width: int) -> str:
    """Return at most `width` bars, each for the mean of as many consecutive values.

    A bar that would include a value that is missing or not finite becomes ×. The scale is
    logarithmic if `is_logarithmic` says so of the finite values.
    """
    finite = [x if x is not None and math.isfinite(x) else None for x in values]
    count = min(width, len(finite))
    chunks = [
        finite[i * len(finite) // count : (i + 1) * len(finite) // count] for i in range(count)
    ]
    scale = math.log if is_logarithmic([x for x in finite if x is not None]) else float
    heights = [
        None if None in chunk else scale(_mean([x for x in chunk if x is not None]))
        for chunk in chunks
    ]
    known = [height for height in heights if height is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    return "".join(
        NOT_FINITE if height is None else _choose_bar(height, low, high) for height in heights
    )


def is_logarithmic(values: Sequence[float]) -> bool:
    """Return whether all values are positive and their range needs a logarithmic scale."""
    # Divided instead of multiplied: the product could overflow.
    return bool(values) and min(values) > 0 and max(values) / LOGARITHMIC_FROM > min(values)


def _mean(values: Sequence[float]) -> float:
    # Each value is divided first, because the sum of two large values may overflow.
    return math.fsum(x / len(values) for x in values)


def _choose_bar(x: float, low: float, high: float) -> str:
    # Halved, because the difference of two large values may overflow.
    share = (x / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.0
    return BARS[min(len(BARS) - 1, int(len(BARS) * share))]
