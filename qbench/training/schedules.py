"""Learning rate schedules as pure functions of progress, the fraction of the run that is done.

They return a factor of the peak learning rate. A run with half the steps has the same shape of
schedule, because no function counts steps.
"""

from __future__ import annotations

import math


def cosine_factor(progress: float, warmup: float, floor: float) -> float:
    """Return the factor of a linear warm-up followed by half a cosine from 1 down to `floor`."""
    if progress < warmup:
        return progress / warmup
    after_warmup = (progress - warmup) / (1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(after_warmup, 1.0)))


def wsd_factor(progress: float, warmup: float, decay: float, floor: float) -> float:
    """Return the factor of a warmup-stable-decay schedule.

    It rises linearly during the warm-up, stays at 1, and falls linearly to `floor` over the last
    `decay` of the run.
    """
    if progress < warmup:
        return progress / warmup
    if progress < 1 - decay:
        return 1.0
    return floor + (1 - floor) * min(1.0, (1 - progress) / decay)


def constant_factor(progress: float, warmup: float) -> float:
    """Return the factor of a linear warm-up followed by a constant rate."""
    return progress / warmup if progress < warmup else 1.0


SCHEDULES = ("cosine", "wsd", "constant")


def learning_rate_factor(
    name: str, progress: float, warmup: float, decay: float, floor: float
) -> float:
    """Return the factor of the peak learning rate at `progress`, for a schedule by its name."""
    if name == "cosine":
        return cosine_factor(progress, warmup, floor)
    if name == "wsd":
        return wsd_factor(progress, warmup, decay, floor)
    assert name == "constant", name
    return constant_factor(progress, warmup)
