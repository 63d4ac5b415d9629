"""Axes of a figure: map numbers to pixels, linearly or logarithmically, and choose round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LOG_RATIO = 20.0
"""Positive numbers use a logarithmic axis when the largest is this many times the smallest."""
MARGIN = 0.05
"""Free room at each end of an axis, as a share of its range."""


@dataclass(frozen=True)
class PlotAxis:
    """An axis from the number `low` at pixel `start` to the number `high` at pixel `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, x: float) -> float:
        """Return the pixel of a number; a number beyond the axis is placed at the axis' end."""
        low, high = self.low, self.high
        if self.log:
            # Zero and negative numbers have no logarithm: they go to the low end.
            low, high, x = (math.log10(max(v, 1e-300)) for v in (low, high, x))
        share = (x - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Return about `count` round numbers within the axis, in ascending order."""
        choose_ticks = _choose_log_ticks if self.log else _choose_linear_ticks
        return choose_ticks(self.low, self.high, count)


def fit_axis(
    values: Iterable[float],
    start: float,
    stop: float,
    *,
    log: bool | None = None,
    zero: bool = False,
) -> PlotAxis:
    """Return an axis that holds all finite values with a little room at both ends.

    `log` forces or forbids a logarithmic axis; by default the range of the values decides.
    `zero` makes a linear axis begin at 0.
    """
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if (low > 0 and high / low >= LOG_RATIO) if log is None else (log and low > 0):
        room = max((high / low) ** MARGIN, 1.05)
        return PlotAxis(low / room, high * room, start, stop, log=True)
    low = min(low, 0.0) if zero else low
    # The alternatives keep the axis from being empty when all values are equal, or all zero.
    room = MARGIN * (high - low) or 0.05 * abs(high) or 1.0
    return PlotAxis(low if zero and low == 0 else low - room, high + room, start, stop)


def format_tick(x: float) -> str:
    """Return a tick's number in a short form, such as `0.25`, `1500` or `3e7`."""
    if x and not 1e-3 <= abs(x) < 1e5:
        mantissa, _, exponent = f"{x:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{x + 0.0:.6g}"  # adding 0.0 turns -0.0 into 0.0


def _choose_linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Return the multiples of 1, 2, 2.5 or 5 times a power of ten between two numbers."""
    ideal = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(ideal))
    # 0.999 and 1e-9 forgive rounding errors, which would otherwise lose a tick at an end.
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= ideal * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _choose_log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return 1, 2 and 5 (or fewer) of each decade, or every few decades on a long axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        candidates = [m * 10.0**e for e in range(first, last + 1) for m in digits]
        inside = [t for t in candidates if low <= t <= high]
        if 2 <= len(inside) <= count + 2:
            return [float(f"{t:.3g}") for t in inside]
    exponents = [e for e in range(first, last + 1) if low <= 10.0**e <= high]
    if len(exponents) > 1:
        stride = math.ceil(len(exponents) / (count + 1))
        return [float(f"1e{e}") for e in exponents[::stride]]
    # Less than a decade: linear ticks are rounder.
    return _choose_linear_ticks(low, high, count)
