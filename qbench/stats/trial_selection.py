"""Pure functions over the trials of a tuning search: which is chosen, and what tuning is worth.

A trial is judged by its validation scores at the tuning seeds. The order is: fewest failed runs,
then the best mean over the runs that did not fail, then the lowest number. A trial whose every
run failed is never chosen. Test scores are used only by `expected_scores_of_best`, which looks at
the trials after the choice has been made.

The expected score of the best of n trials. If n of the N trials are drawn without replacement,
the i-th best on validation is the best of the draw exactly when the other n − 1 come from the
N − i behind it. So its probability is C(N − i, n − 1) / C(N, n), and the expectation over all
draws is a weighted sum of test scores; nothing needs to be simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ValidationByKey = Mapping[str, float | None]
"""The validation scores of the finished runs by key; None for a failed run."""


def rank_trials(trials: Mapping[int, Sequence[float | None]], better: str) -> list[int]:
    """Return the numbers of the trials that can be chosen, the best first.

    `trials` maps a trial's number to the validation scores of its runs, with None for a failed
    run.
    """

    def sort_key(number: int) -> tuple[int, float, int]:
        scores = [score for score in trials[number] if score is not None]
        # Each score is divided before the sum, so that no sum of large scores overflows. The sum
        # is exact, so that the order of the runs cannot decide between two trials.
        mean = math.fsum(score / len(scores) for score in scores)
        failures = len(trials[number]) - len(scores)
        return failures, _lower_is_better(mean, better), number

    eligible = (n for n, scores in trials.items() if any(score is not None for score in scores))
    return sorted(eligible, key=sort_key)


def expected_scores_of_best(
    validation: Sequence[float | None], test: Sequence[float | None], better: str
) -> tuple[float | None, ...]:
    """Return for n = 1 … N the expected test score of the best on validation of n trials.

    A failed trial (None) is behind all others and has no test score; none is made up. As long as
    all n drawn trials can be failed ones, the expectation does not exist and is None.
    """
    scores: list[float | None] = [None] * len(test)
    order = sorted(
        (i for i, score in enumerate(validation) if score is not None),
        key=lambda i: _lower_is_better(validation[i], better),
    )
    for position, i in enumerate(order):
        scores[position] = test[i]
    return tuple(_expected_score_of_best(scores, n) for n in range(1, len(scores) + 1))


def _expected_score_of_best(scores: Sequence[float | None], n: int) -> float | None:
    """Return the expectation for one n; `scores` are test scores, the best on validation first."""
    count = len(scores)
    # The best of n is one of the first N − n + 1: behind the others fewer than n − 1 are left.
    possible = [score for score in scores[: count - n + 1] if score is not None]
    if len(possible) < count - n + 1:
        return None
    return math.fsum(
        score * (math.comb(count - i, n - 1) / math.comb(count, n))
        for i, score in enumerate(possible, 1)
    )


def find_leaders(
    curves: Mapping[str, Sequence[float | None]], better: str, minimum_effect: float
) -> list[tuple[str, int]]:
    """Return who leads with the best of n trials, each with the n from which the lead holds.

    `curves` are those of `expected_scores_of_best`, by entrant. A lead changes only to an entrant
    that is ahead by the minimum effect, so noise does not change it. An n at which some entrant's
    best may be a failed trial is skipped; entrants without any score are ignored.
    """
    curves = {
        name: curve for name, curve in curves.items() if any(score is not None for score in curve)
    }
    leaders: list[tuple[str, int]] = []
    for n in range(max(map(len, curves.values()), default=0)):
        scores = {
            name: _lower_is_better(curve[n], better)
            for name, curve in curves.items()
            if n < len(curve) and curve[n] is not None
        }
        if len(scores) < len(curves):
            continue
        best = min(scores, key=lambda name: scores[name])
        if not leaders:
            leaders.append((best, n + 1))
            continue
        current = leaders[-1][0]
        if best != current and scores[current] - scores[best] >= minimum_effect:
            leaders.append((best, n + 1))
    return leaders


def _lower_is_better(value: float | None, better: str) -> float:
    """Return the value with the sign at which lower is better."""
    assert value is not None
    return -value if better == "higher" else value
