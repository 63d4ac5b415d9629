"""What trials come to, as pure functions: which goes on, which is chosen, and what the best of n of them would have scored.

A trial is judged on validation alone, at the tuning seeds: fewest failed runs first, then the mean over those that are left, then the lower
number. One whose every run failed is never chosen. Test scores come in only here, in `best_of`, after the choice is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Known = Mapping[str, float | None]
"""The validation of the runs that are over, by key; None where one failed."""


def ranked(trials: Mapping[int, Sequence[float | None]], better: str) -> list[int]:
    """The numbers of the trials that can be chosen, the best first, from the validations of each one's runs."""

    def merit(number: int) -> tuple[int, float, int]:
        good = [v for v in trials[number] if v is not None]
        mean = math.fsum(v / len(good) for v in good)
        return len(trials[number]) - len(good), -mean if better == "higher" else mean, number

    return sorted((n for n, runs in trials.items() if any(v is not None for v in runs)), key=merit)


def best_of(
    validation: Sequence[float | None], test: Sequence[float | None], better: str
) -> tuple[float | None, ...]:
    """For n = 1 … N the expected test score of the trial that is best on validation among n drawn without replacement out of N.

    With the trials in the order of their validation, the i-th is the best of n with probability C(N − i, n − 1) / C(N, n): n − 1 others are drawn
    from those behind it. A trial that failed (None) stands behind all others, and has no score: none is made up. Where the best of n can
    be one of those, which is as long as all n can be, the expectation does not exist, and is None.
    """
    scored: list[float | None] = [None] * len(test)
    order = sorted(
        (i for i, v in enumerate(validation) if v is not None),
        key=lambda i: _merit(validation[i], better),
    )
    for place, i in enumerate(order):
        scored[place] = test[i]
    return tuple(_expected(scored, n) for n in range(1, len(scored) + 1))


def _merit(value: float | None, better: str) -> float:
    assert value is not None
    return -value if better == "higher" else value


def _expected(scored: Sequence[float | None], n: int) -> float | None:
    count = len(scored)
    possible = scored[: count - n + 1]
    found = [score for score in possible if score is not None]
    if len(found) < len(possible):
        return None
    return math.fsum(
        score * (math.comb(count - i, n - 1) / math.comb(count, n))
        for i, score in enumerate(found, 1)
    )


def leaders(
    curves: Mapping[str, Sequence[float | None]], better: str, minimum_effect: float
) -> list[tuple[str, int]]:
    """Who leads with the best of n trials, and from which n on. A lead is lost to whoever is ahead by the minimum effect, not to noise. Nothing is
    said of an n at which somebody's best may be a failed trial."""
    curves = {
        name: curve for name, curve in curves.items() if any(score is not None for score in curve)
    }
    found: list[tuple[str, int]] = []
    for n in range(max(map(len, curves.values()), default=0)):
        there = {
            name: _merit(curve[n], better)
            for name, curve in curves.items()
            if n < len(curve) and curve[n] is not None
        }
        if len(there) < len(curves):
            continue
        best = min(there, key=lambda name: there[name])
        if not found or (
            best != found[-1][0]
            and there.get(found[-1][0], math.inf) - there[best] >= minimum_effect
        ):
            found.append((best, n + 1))
    return found
