"""Numbers → places on a figure: linear and logarithmic axes with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDE = 20.0
"""Positive numbers that differ by such a factor go on a logarithmic axis."""
MARGIN = 0.05


@dataclass(frozen=True)
class Axis:
    """From `low` at `start` to `high` at `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, x: float) -> float:
        """Where a number lies; one beyond the axis lies at its end."""
        low, high, x = (
            (math.log10(max(v, 1e-300)) for v in (self.low, self.high, x))
            if self.log
            else (self.low, self.high, x)
        )
        share = (x - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        return (
            _decades(self.low, self.high, count) if self.log else _steps(self.low, self.high, count)
        )


def fit(
    values: Iterable[float],
    start: float,
    stop: float,
    *,
    log: bool | None = None,
    zero: bool = False,
) -> Axis:
    """An axis that holds all the values with a little room; logarithmic if they ask for it. `zero` makes a linear one begin at 0."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if (low > 0 and high / low >= WIDE) if log is None else (log and low > 0):
        room = max((high / low) ** MARGIN, 1.05)
        return Axis(low / room, high * room, start, stop, log=True)
    low = min(low, 0.0) if zero else low
    room = MARGIN * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low if zero and low == 0 else low - room, high + room, start, stop)


def spell(x: float) -> str:
    """A tick's number."""
    if x and not 1e-3 <= abs(x) < 1e5:
        mantissa, _, exponent = f"{x:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{x + 0.0:.6g}"


def _steps(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _decades(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [
            m * 10.0**e
            for e in range(first, last + 1)
            for m in digits
            if low <= m * 10.0**e <= high
        ]
        if 2 <= len(found) <= count + 2:
            return [float(f"{t:.3g}") for t in found]
    whole = [e for e in range(first, last + 1) if low <= 10.0**e <= high]
    if len(whole) > 1:
        stride = math.ceil(len(whole) / (count + 1))
        return [float(f"1e{e}") for e in whole[::stride]]
    return _steps(low, high, count)
