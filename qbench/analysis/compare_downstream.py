"""Compare two entrants of a board on downstream tasks: by seed, and item by item.

Two answers form a pair if section, seed, format and the definition of the task are the same. Two
tests are made, which answer different questions. The difference by seed says something about the
methods, because the seed is the unit. McNemar's test over all items says something about these
runs only: every seed answers the same questions, so the items are no sample of the seeds.

Scores come from the board's rows, the answers to single items from the run folders.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.analysis.compare import check_entrant_labels
from qbench.analysis.section_cells import label_column
from qbench.boards.board import DownstreamTask, name_sections, to_plain_data
from qbench.boards.downstream_scores import DownstreamAnswer
from qbench.boards.section import FULL_PRECISION, SectionBuilder
from qbench.runs.attempts import Attempt
from qbench.runs.downstream_answers import read_answers, read_item_results
from qbench.stats.comparisons import (
    DiscordantItems,
    adjust_by_holm,
    mcnemar_test,
    paired_test,
)
from qbench.stats.intervals import Estimate
from qbench.util import text

__all__ = ["DownstreamDifference", "compare_downstream", "format_downstream_difference"]


DIGITS = 3


@dataclass(frozen=True)
class DownstreamDifference:
    """The difference A − B on one downstream task in one section.

    The names of the fields are keys of `--json`.
    """

    section: str
    """The section's title, with its setting if the board has several sections of this title."""
    setting: str
    task: str
    sha256: str
    metric: str
    formats: tuple[str, ...]
    seeds: int
    difference: Estimate
    """The mean difference of the scores, paired by seed."""
    p: float | None
    only_a: int
    """The number of items that only A answers correctly, over all shared formats and seeds."""
    only_b: int
    p_items: float | None
    """McNemar's p value, adjusted by Holm's correction over all tasks of the comparison.

    None if the answers of the task are neither right nor wrong, or if a run's answers are gone.
    """

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = to_plain_data(self)
        return data


@dataclass(frozen=True)
class AnswerPair:
    """The scores of both entrants on one task, for one seed and format; both are finite."""

    format: str
    seed: int
    first: DownstreamAnswer
    second: DownstreamAnswer


def compare_downstream(
    builders: Sequence[SectionBuilder], results: Path, a: str, b: str
) -> list[DownstreamDifference]:
    """Return the difference for each section and each downstream task that both have answered."""
    check_entrant_labels(builders, a, b)
    names = name_sections([(builder.title(), builder.setting()) for builder in builders])
    differences = [
        _compare_on_task(builder, name, results, task, pairs)
        for builder, name in zip(builders, names, strict=True)
        for task, pairs in _pair_answers(builder, a, b)
    ]
    adjusted = iter(adjust_by_holm([d.p_items for d in differences if d.p_items is not None]))
    return [
        d if d.p_items is None else dataclasses.replace(d, p_items=next(adjusted))
        for d in differences
    ]


# ---- pairs of answers ----


def _pair_answers(
    builder: SectionBuilder, a: str, b: str
) -> Iterator[tuple[DownstreamTask, list[AnswerPair]]]:
    """Yield each downstream task, in one definition, with the pairs of answers to it."""
    first, second = _answers_of_entrant(builder, a), _answers_of_entrant(builder, b)
    pairs: dict[str, list[AnswerPair]] = defaultdict(list)
    for column, own in first.items():
        for other_column, other in second.items():
            # Full precision is compared with every format.
            if column != other_column and FULL_PRECISION not in (column, other_column):
                continue
            # FULL_PRECISION is −1, so the maximum is the column of the other one.
            fmt = label_column(builder, max(column, other_column))
            for task in own.keys() & other.keys():
                pairs[task] += _pair_seeds(fmt, own[task], other[task])
    for task in sorted(pairs):
        if pairs[task]:
            yield pairs[task][0].first.task, pairs[task]


def _answers_of_entrant(
    builder: SectionBuilder, label: str
) -> dict[int, Mapping[str, Mapping[int, DownstreamAnswer]]]:
    """Return an entrant's answers by column, id of the task, and seed."""
    return {
        column: answers
        for (n, column), answers in sorted(builder.answers.items())
        if builder.entrants[n].label == label
    }


def _pair_seeds(
    fmt: str, first: Mapping[int, DownstreamAnswer], second: Mapping[int, DownstreamAnswer]
) -> list[AnswerPair]:
    """Return a pair for each seed for which both have a finite score."""
    return [
        AnswerPair(fmt, seed, answer, second[seed])
        for seed, answer in first.items()
        if seed in second and math.isfinite(answer.value) and math.isfinite(second[seed].value)
    ]


# ---- tests ----


def _compare_on_task(
    builder: SectionBuilder,
    name: str,
    results: Path,
    task: DownstreamTask,
    pairs: Sequence[AnswerPair],
) -> DownstreamDifference:
    test = paired_test(
        _mean_by_seed([(pair.seed, pair.first.value) for pair in pairs]),
        _mean_by_seed([(pair.seed, pair.second.value) for pair in pairs]),
    )
    items = _test_items(results, pairs)
    return DownstreamDifference(
        section=name,
        setting=builder.setting(),
        task=task.task,
        sha256=task.sha256,
        metric=task.metric,
        formats=tuple(dict.fromkeys(pair.format for pair in pairs)),
        seeds=test.seeds,
        difference=test.difference,
        p=test.p,
        only_a=items.first if items else 0,
        only_b=items.second if items else 0,
        p_items=items.p if items else None,
    )


def _mean_by_seed(scores: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Return the mean score over formats for each seed."""
    values: dict[int, list[float]] = defaultdict(list)
    for seed, score in scores:
        values[seed].append(score)
    return {seed: sum(scores) / len(scores) for seed, scores in values.items()}


def _test_items(results: Path, pairs: Sequence[AnswerPair]) -> DiscordantItems | None:
    """Return McNemar's test over all items of all pairs, or None if some answers are missing."""
    first: list[bool] = []
    second: list[bool] = []
    for pair in pairs:
        own = _read_correct_items(results, pair.first)
        other = _read_correct_items(results, pair.second)
        if own is None or other is None:
            return None
        first += own
        second += other
    return mcnemar_test(first, second)


def _read_correct_items(results: Path, answer: DownstreamAnswer) -> list[bool] | None:
    """Return for each item whether the run answered it correctly, from the run's folder.

    None means that the answers are gone, are neither right nor wrong, or were replaced by answers
    to another definition of the task.
    """
    attempt = Attempt(results / "runs" / answer.key[:2] / answer.key / str(answer.attempt))
    entry = read_answers(attempt).get(answer.task.task) or {}
    if entry.get("sha256") != answer.task.sha256:
        return None
    return read_item_results(attempt.folder, entry)


# ---- as text ----


def format_downstream_difference(d: DownstreamDifference, a: str, b: str) -> str:
    """Return a heading, the difference by seed, and the result by item if there is one."""
    low, high = d.difference.low, d.difference.high
    interval = "" if low is None or high is None else f" [{low:+.{DIGITS}f}, {high:+.{DIGITS}f}]"
    p = "" if d.p is None else f", p = {d.p:.2g}"
    seeds = text.format_count(d.seeds, "seed")
    heading = text.clean_line(f"{d.section}: {d.task} ({d.metric}); {', '.join(d.formats)}", 1000)
    lines = [heading, f"  by seed: {d.difference.value:+.{DIGITS}f}{interval}{p} over {seeds}"]
    if d.p_items is not None:
        lines.append(
            f"  by item: {d.only_a} correct only for {text.clean_line(a)}, {d.only_b} correct only "
            f"for {text.clean_line(b)}, p = {d.p_items:.2g} for these runs"
        )
    return "\n".join(lines)
