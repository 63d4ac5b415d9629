"""Compare two entrants of a board, section by section, and state the result in words.

The unit is the seed. A seed's score is its mean over the formats that both entrants have, so that
formats that share their seeds are not counted as if they were independent. Entrants that share
seeds are compared in pairs. Entrants that share none are compared as independent samples, and the
verdict says so. The p values of a board's sections are adjusted by Holm's correction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qbench.analysis.section_cells import label_column
from qbench.boards.board import name_sections
from qbench.boards.section import FULL_PRECISION, SectionBuilder
from qbench.errors import UsageError, unknown_name_error
from qbench.stats.comparisons import DifferenceTest, adjust_by_holm, paired_test, unpaired_test
from qbench.stats.intervals import CONFIDENCE, Estimate
from qbench.util import text

ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Comparison:
    """The difference A − B in one section. The names of the fields are keys of `--json`."""

    section: str
    """The section's title, with its setting if the board has several sections of this title."""
    metric: str
    better: str
    formats: tuple[str, ...]
    seeds: int
    """The number of seeds that both have; 0 if they are compared as independent samples."""
    dropped: int
    """In a paired comparison, the number of seeds for which a score of A or B is missing."""
    difference: Estimate
    p: float | None
    """Two-sided, adjusted for the number of sections; None where there is no test."""
    minimum_effect: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        # JSON has no NaN, which is the difference where no seed is shared.
        return {**data, "difference": None} if math.isnan(self.difference.value) else data


def compare_entrants(builders: list[SectionBuilder], a: str, b: str) -> list[Comparison]:
    """Return a comparison for each section in which both entrants, given by label, have scores."""
    check_entrant_labels(builders, a, b)
    names = name_sections([(builder.title(), builder.setting()) for builder in builders])
    tests = []
    for builder, name in zip(builders, names, strict=True):
        if (scores := _match_scores(builder, a, b)) is not None:
            tests.append((builder, name, scores, _test_difference(scores)))
    tested = [test.p for *_, test in tests if test.p is not None]
    adjusted = iter(adjust_by_holm(tested))
    comparisons = []
    for builder, name, scores, test in tests:
        p = None if test.p is None else next(adjusted)
        comparisons.append(_make_comparison(builder, name, (a, b), scores, test, p))
    return comparisons


def check_entrant_labels(builders: Sequence[SectionBuilder], *labels: str) -> None:
    """Raise a `UsageError` unless the labels are those of different entrants of the board."""
    known = {entrant.label for builder in builders for entrant in builder.entrants.values()}
    for label in labels:
        if label not in known:
            raise unknown_name_error("entrant", label, known, listed=True)
    if len({*labels}) < len(labels):
        raise UsageError(f"{labels[0]!r} is compared with itself: name two different entrants")


# ---- scores and tests ----


class _MatchedScores(NamedTuple):
    """The scores of two entrants by seed, averaged over the formats that both have."""

    formats: tuple[str, ...]
    first: Mapping[int, float]
    second: Mapping[int, float]
    dropped: int
    """The number of seeds that lack a score of one of the two."""


def _match_scores(builder: SectionBuilder, a: str, b: str) -> _MatchedScores | None:
    """Return the scores of both entrants in the formats they share, or None if there are none."""
    first, second = _scores_by_column(builder, a), _scores_by_column(builder, b)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    means = [_mean_by_seed([scores[column] for column in shared]) for scores in (first, second)]
    complete = means[0].keys() & means[1].keys()
    seeds = {seed for scores in (first, second) for column in shared for seed in scores[column]}
    formats = tuple(label_column(builder, column) for column in shared)
    return _MatchedScores(formats, means[0], means[1], len(seeds - complete))


def _scores_by_column(builder: SectionBuilder, label: str) -> Mapping[int, Mapping[int, float]]:
    """Return an entrant's scores by column and seed.

    Full precision has one score for all formats, which is returned for every column.
    """
    scores_of_columns: dict[int, Mapping[int, float]] = {}
    for (n, column), scores in builder.scores.items():
        if builder.entrants[n].label == label:
            columns = builder.columns if column == FULL_PRECISION else [column]
            scores_of_columns |= dict.fromkeys(columns, scores)
    return scores_of_columns


def _mean_by_seed(cells: list[Mapping[int, float]]) -> dict[int, float]:
    """Return the mean over cells for each seed that every cell has."""
    seeds = set.intersection(*map(set, cells))
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in seeds}


def _test_difference(scores: _MatchedScores) -> DifferenceTest:
    """Test in pairs if there is a shared seed, else as independent samples if that is possible."""
    first, second = scores.first, scores.second
    # A sample of one has no spread, so an unpaired test needs two of each.
    unpaired = not first.keys() & second.keys() and min(len(first), len(second)) > 1
    return unpaired_test(first, second) if unpaired else paired_test(first, second)


# ---- the verdict ----


def _make_comparison(
    builder: SectionBuilder,
    section: str,
    labels: tuple[str, str],
    scores: _MatchedScores,
    test: DifferenceTest,
    p: float | None,
) -> Comparison:
    unpaired = test.seeds == 0 and p is not None
    return Comparison(
        section=section,
        metric=builder.metric,
        better=builder.better,
        formats=scores.formats,
        seeds=test.seeds,
        # Independent samples use every seed.
        dropped=0 if unpaired else scores.dropped,
        difference=test.difference,
        p=p,
        minimum_effect=builder.minimum_effect,
        verdict=" ".join(_phrase_verdict(builder, labels, test, p)),
    )


def _phrase_verdict(
    builder: SectionBuilder, labels: tuple[str, str], test: DifferenceTest, p: float | None
) -> Iterator[str]:
    """Yield the parts of a sentence that states what the test allows, and no more."""
    a, b = labels
    difference = test.difference.value
    if test.seeds == 0 and p is not None:
        yield "no seed in common, compared as independent samples:"
    if test.seeds < 2 and p is None:
        shared = text.format_count(test.seeds, "shared seed")
        yield f"no conclusion is possible: {shared}, but two are needed"
    elif p is None:
        yield (
            "equal in every seed"
            if difference == 0
            else "they differ by the same amount in every seed, so the spread is unknown"
        )
    elif p >= ALPHA:
        seeds = f" over {text.format_count(test.seeds, 'seed')}" if test.seeds else ""
        yield f"no significant difference{seeds}"
    else:
        a_wins = (difference > 0) == (builder.better == "higher")
        yield f"{a if a_wins else b} is better than {b if a_wins else a}"
        if abs(difference) < builder.minimum_effect:
            yield f"but by less than the minimum effect ({builder.minimum_effect:g})"


# ---- as text ----


def format_comparison(c: Comparison) -> str:
    """Return two lines: what was compared, and the difference with its verdict."""
    difference, digits = c.difference, _digits_to_show(c)
    interval = ""
    if difference.low is not None and difference.high is not None:
        interval = f" [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    p = "" if c.p is None else f", p = {c.p:.2g}"
    dropped = f", {c.dropped} left out" if c.dropped else ""
    heading = (
        f"{c.section}: {c.metric}, {c.better} is better; {', '.join(c.formats)}; "
        f"{text.format_count(c.seeds, 'seed')}{dropped}"
    )
    result = f"{difference.value:+.{digits}f}{interval}{p}: {text.clean_line(c.verdict)}"
    return f"{text.clean_line(heading)}\n  {result}"


def _digits_to_show(c: Comparison) -> int:
    """Return how many digits after the point show a tenth of the minimum effect.

    If there is no minimum effect, the half-width of the interval or the difference takes its
    place.
    """
    sizes = (c.minimum_effect, c.difference.half_width, abs(c.difference.value))
    scale = next((size for size in sizes if size and math.isfinite(size)), 0.1)
    return max(0, 1 - math.floor(math.log10(scale)))
