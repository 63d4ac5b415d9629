"""Two entrants beside each other: paired by seed, section by section, with a verdict in words.

The unit is the seed: the mean of a seed's scores over the formats that both entrants have, so formats that share their seeds are not counted
as if they were independent. Entrants that share no seed are held against each other as independent samples, and that is said. Sections are
corrected for one another by Holm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbench.boards.board import place_names
from qbench.boards.section import SectionMaker
from qbench.errors import UsageError, unknown
from qbench.stats.comparisons import Paired, holm, paired_test, unpaired_test
from qbench.stats.intervals import CONFIDENCE, Estimate
from qbench.util import text
from qbench.util.text import count

ALPHA = 1 - CONFIDENCE


@dataclass(frozen=True)
class Comparison:
    """A − B in one section."""

    section: str
    """Its title, and its setting where the board has several of the title."""
    metric: str
    better: str
    formats: tuple[str, ...]
    seeds: int
    dropped: int
    """Seeds that only one of the two has whole, where the others are paired."""
    difference: Estimate
    """Of pairs; where no seed is shared, of independent samples."""
    p: float | None
    """Two-sided, corrected for the other sections."""
    minimum_effect: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return {**found, "difference": None} if math.isnan(self.difference.value) else found


def compare(makers: list[SectionMaker], a: str, b: str) -> list[Comparison]:
    """Every section that has both entrants, by their labels."""
    check_names(makers, a, b)
    names = place_names([(maker.title(), maker.setting()) for maker in makers])
    pairs = [
        (maker, name, *found)
        for maker, name in zip(makers, names, strict=True)
        if (found := paired(maker, a, b)) is not None
    ]
    tests = [tested(one, other) for _, _, _, one, other, _ in pairs]
    known = [test.p for test in tests if test.p is not None]
    corrected = iter(holm(known))
    return [
        judged(
            maker, name, (a, b), formats, test, None if test.p is None else next(corrected), dropped
        )
        for (maker, name, formats, _, _, dropped), test in zip(pairs, tests, strict=True)
    ]


def check_names(makers: Sequence[SectionMaker], *labels: str) -> None:
    """Two entrants of the board."""
    known = {entrant.label for maker in makers for entrant in maker.entrants.values()}
    for label in labels:
        if label not in known:
            raise unknown("entrant", label, known, listed=True)
    if len({*labels}) < len(labels):
        raise UsageError(f"{labels[0]!r} is compared with itself: name two entrants")


def paired(
    maker: SectionMaker, a: str, b: str
) -> tuple[tuple[str, ...], dict[int, float], dict[int, float], int] | None:
    """The formats that both have, the mean over them by seed for each, and how many seeds are left out; None where there is nothing in common."""
    one, other = columns(maker, a), columns(maker, b)
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    means = [mean_by_seed([scores[column] for column in shared]) for scores in (one, other)]
    seeds = means[0].keys() & means[1].keys()
    asked = {seed for scores in (one, other) for column in shared for seed in scores[column]}
    formats = tuple(maker.data.columns[column] if column >= 0 else "fp32" for column in shared)
    return formats, means[0], means[1], len(asked - seeds)


def tested(one: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    """By pairs, or without them where none are shared and each has a spread of its own."""
    lonely = not one.keys() & other.keys() and min(len(one), len(other)) > 1
    return unpaired_test(one, other) if lonely else paired_test(one, other)


def columns(maker: SectionMaker, label: str) -> Mapping[int, Mapping[int, float]]:
    """An entrant's scores by column and seed; full precision has the same in every column."""
    found: dict[int, Mapping[int, float]] = {}
    for (n, column), scores in maker.scores.items():
        if maker.entrants[n].label == label:
            found |= dict.fromkeys(maker.columns, scores) if column < 0 else {column: scores}
    return found


def mean_by_seed(cells: list[Mapping[int, float]]) -> dict[int, float]:
    seeds = set.intersection(*map(set, cells))
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in seeds}


def judged(
    maker: SectionMaker,
    section: str,
    names: tuple[str, str],
    formats: tuple[str, ...],
    test: Paired,
    p: float | None,
    dropped: int,
) -> Comparison:
    verdict = " ".join(words(maker, names, test, p))
    d, left_out = test.difference, dropped if test.seeds or p is None else 0
    return Comparison(
        section, maker.metric, maker.better, formats, test.seeds, left_out, d, p, maker.effect, verdict,
    )  # fmt: skip


def words(
    maker: SectionMaker, names: tuple[str, str], test: Paired, p: float | None
) -> Iterator[str]:
    """What may be said, and no more."""
    a, b = names
    d = test.difference.value
    if test.seeds == 0 and p is not None:
        yield "no seed in common, compared as independent samples:"
    if test.seeds < 2 and p is None:
        yield f"nothing can be said: {count(test.seeds, 'shared seed')}, and it takes two"
    elif p is None:
        yield (
            "the same in every seed"
            if d == 0
            else "they differ by the same amount in every seed, so nothing is known of its spread"
        )
    elif p >= ALPHA:
        yield "they cannot be told apart" + f" over {count(test.seeds, 'seed')}" * bool(test.seeds)
    else:
        first = (d > 0) == (maker.better == "higher")
        yield f"{a if first else b} is better than {b if first else a}"
        if abs(d) < maker.effect:
            yield f"but by less than anybody should care about ({maker.effect:g})"


# ---- words ----


def comparison(c: Comparison) -> str:
    """Two lines: where, and the difference with its verdict."""
    d, digits = c.difference, _digits(c)
    interval = (
        "" if d.low is None or d.high is None else f" [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
    )
    p = "" if c.p is None else f", p = {c.p:.2g}"
    left_out = f", {c.dropped} left out" if c.dropped else ""
    where = f"{c.section}: {c.metric}, {c.better} is better; {', '.join(c.formats)}; {text.count(c.seeds, 'seed')}{left_out}"
    return text.plain(where) + f"\n  {d.value:+.{digits}f}{interval}{p}: {text.plain(c.verdict)}"


def _digits(c: Comparison) -> int:
    """Those that show a tenth of the minimum effect; where there is none, two of the interval's half or of the difference."""
    sizes = (c.minimum_effect, c.difference.half, abs(c.difference.value))
    least = next((size for size in sizes if size and math.isfinite(size)), 0.1)
    return max(0, 1 - math.floor(math.log10(least)))
