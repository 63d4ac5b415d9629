"""Two entrants of a board held against each other downstream: by seed, and item by item.

They are a pair where section, seed, format and the definition of the task are the same. The seed is the unit, as everywhere. The items tell more
of two artefacts, and less of two methods: they are the same questions for every seed, so McNemar's test over all of them speaks of these runs,
and the difference by seed of the methods. Scores come out of the board's rows, items out of the run folders.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.analysis.compare import check_names
from qbench.boards.board import Exam, place_names, plain
from qbench.boards.downstream_scores import Answer
from qbench.runs.attempts import Attempt
from qbench.runs.downstream_answers import read_answers, read_item_results
from qbench.stats.comparisons import holm, mcnemar, paired_test
from qbench.stats.intervals import Estimate
from qbench.util import text

if TYPE_CHECKING:
    from qbench.boards.section import SectionMaker

__all__ = ["Difference", "compare", "in_words"]


DIGITS = 3


@dataclass(frozen=True)
class Difference:
    """A − B on one downstream task in one section."""

    section: str
    """Its title, and its setting where the board has several of the title."""
    setting: str
    task: str
    sha256: str
    metric: str
    formats: tuple[str, ...]
    seeds: int
    difference: Estimate
    """Of the scores, paired by seed."""
    p: float | None
    only_a: int
    """Items that A alone has right, over all shared formats and seeds; and B alone."""
    only_b: int
    p_items: float | None
    """McNemar's, corrected by Holm over everything that is compared here; None for a task whose answers are neither right nor wrong."""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(self)
        return found


@dataclass(frozen=True)
class Pair:
    """Two answers in one exam, of one seed under one format, both with a score."""

    format: str
    seed: int
    one: Answer
    other: Answer


def compare(makers: Sequence[SectionMaker], results: Path, a: str, b: str) -> list[Difference]:
    """Every section and downstream task in one definition that both have answered, by the same metric."""
    check_names(makers, a, b)
    names = place_names([(maker.title(), maker.setting()) for maker in makers])
    named = zip(makers, names, strict=True)
    found = [
        difference(maker, name, results, exam, pairs)
        for maker, name in named
        for exam, pairs in paired(maker, a, b)
    ]
    known = iter(holm([d.p_items for d in found if d.p_items is not None]))
    return [d if d.p_items is None else dataclasses.replace(d, p_items=next(known)) for d in found]


def paired(maker: SectionMaker, a: str, b: str) -> Iterator[tuple[Exam, list[Pair]]]:
    """By exam; full precision goes with every format."""
    one, other = answers(maker, a), answers(maker, b)
    pairs: dict[str, list[Pair]] = defaultdict(list)
    for column, mine in one.items():
        for place, theirs in other.items():
            if column == place or -1 in (column, place):
                fmt = "fp32" if column == place == -1 else maker.data.columns[max(column, place)]
                for exam in mine.keys() & theirs.keys():
                    seeds = [seed for seed in mine[exam] if seed in theirs[exam]]
                    both = [Pair(fmt, seed, mine[exam][seed], theirs[exam][seed]) for seed in seeds]
                    pairs[exam] += [
                        p
                        for p in both
                        if math.isfinite(p.one.value) and math.isfinite(p.other.value)
                    ]
    yield from ((pairs[exam][0].one.exam, pairs[exam]) for exam in sorted(pairs) if pairs[exam])


def answers(maker: SectionMaker, label: str) -> dict[int, Mapping[str, Mapping[int, Answer]]]:
    """An entrant's, by column, exam and seed."""
    return {
        column: found
        for (n, column), found in sorted(maker.answers.items())
        if maker.entrants[n].label == label
    }


def difference(
    maker: SectionMaker, name: str, results: Path, exam: Exam, pairs: Sequence[Pair]
) -> Difference:
    test = paired_test(
        by_seed([(p.seed, p.one.value) for p in pairs]),
        by_seed([(p.seed, p.other.value) for p in pairs]),
    )
    items = [(right(results, pair.one), right(results, pair.other)) for pair in pairs]
    whole = [(x, y) for x, y in items if x is not None and y is not None]
    answers = [[answer for pair in whole for answer in pair[side]] for side in (0, 1)]
    discordant = mcnemar(answers[0], answers[1]) if len(whole) == len(pairs) else None
    return Difference(
        section=name,
        setting=maker.setting(),
        task=exam.task,
        sha256=exam.sha256,
        metric=exam.metric,
        formats=tuple(dict.fromkeys(pair.format for pair in pairs)),
        seeds=test.seeds,
        difference=test.difference,
        p=test.p,
        only_a=discordant.first if discordant else 0,
        only_b=discordant.second if discordant else 0,
        p_items=discordant.p if discordant else None,
    )


def by_seed(scores: Sequence[tuple[int, float]]) -> dict[int, float]:
    """The mean over formats within each seed."""
    values: dict[int, list[float]] = defaultdict(list)
    for seed, score in scores:
        values[seed].append(score)
    return {seed: sum(each) / len(each) for seed, each in values.items()}


def right(results: Path, answer: Answer) -> list[bool] | None:
    """Item by item, from the folder of the run; None where they are gone, or are another definition's by now."""
    attempt = Attempt(results / "runs" / answer.key[:2] / answer.key / str(answer.attempt))
    entry = read_answers(attempt).get(answer.exam.task) or {}
    return read_item_results(attempt.folder, entry) if entry.get("sha256") == answer.exam.sha256 else None


def in_words(d: Difference, a: str, b: str) -> str:
    """Two lines and a heading: what the seeds say of the methods, and the items of these runs."""
    low, high = d.difference.low, d.difference.high
    interval = "" if low is None or high is None else f" [{low:+.{DIGITS}f}, {high:+.{DIGITS}f}]"
    p = "" if d.p is None else f", p = {d.p:.2g}"
    seeds = text.count(d.seeds, "seed")
    where = text.plain(f"{d.section}: {d.task} ({d.metric}); {', '.join(d.formats)}", 1000)
    lines = [where, f"  by seed {d.difference.value:+.{DIGITS}f}{interval}{p} over {seeds}"]
    if d.p_items is None:
        return "\n".join(lines)
    items = f"by item {d.only_a} that only {text.plain(a)} has right, {d.only_b} that only {text.plain(b)}, p = {d.p_items:.2g} for these runs"
    return "\n".join([*lines, f"  {items}"])
