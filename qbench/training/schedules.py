"""Schedules: pure functions of progress, the fraction of the run that is done. Halving a budget
leaves their shape alone.
"""

from __future__ import annotations

import math


def cosine_factor(progress: float, warmup: float, floor: float) -> float:
    """Linear warm-up, then half a cosine from 1 down to `floor`."""
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


def wsd_factor(progress: float, warmup: float, decay: float, floor: float) -> float:
    """Linear warm-up, a stable stretch at 1, and a linear way down to `floor` over the last `decay`
    of the run.
    """
    if progress < warmup:
        return progress / warmup
    if progress < 1 - decay:
        return 1.0
    return floor + (1 - floor) * min(1.0, (1 - progress) / decay)


def constant_factor(progress: float, warmup: float) -> float:
    return progress / warmup if progress < warmup else 1.0


SCHEDULES = ("cosine", "wsd", "constant")


def learning_rate_factor(
    name: str, progress: float, warmup: float, decay: float, floor: float
) -> float:
    """The share of the peak learning rate at `progress`, by the schedule's name."""
    if name == "cosine":
        return cosine_factor(progress, warmup, floor)
    if name == "wsd":
        return wsd_factor(progress, warmup, decay, floor)
    assert name == "constant", name
    return constant_factor(progress, warmup)
