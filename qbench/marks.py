"""How the runs of a board did downstream: a table, and two entrants held against each other. Read from the roster and the run folders.

A column is a downstream task in one definition; where two definitions go by one name, the column says which. A cell is the mean over seeds
with its t interval. In a comparison the seed is the unit, as everywhere. The items tell more of two artefacts, and less of two methods: they
are the same questions for every seed, so McNemar's test over all of them speaks of these runs, and the difference by seed of the methods.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench import roster, stats, text
from qbench.answers import NONE, aligned, answered, items_right
from qbench.board import plain
from qbench.config import RunConfig
from qbench.errors import UsageError, unknown
from qbench.standing import standing
from qbench.stats import Estimate

__all__ = ["Grade", "Paper", "Table", "compare", "papers", "tables"]

SHORT_HASH = 6
DIGITS = 3


@dataclass(frozen=True)
class Paper:
    """What one run answered to one downstream task."""

    section: str
    entrant: str
    format: str
    seed: int
    folder: Path
    task: str
    entry: Mapping[str, Any]

    @property
    def column(self) -> tuple[str, str]:
        return self.task, str(self.entry["sha256"])

    @property
    def value(self) -> float | None:
        number = self.entry["metrics"][self.entry["metric"]]["value"]
        return None if number is None else float(number)


@dataclass(frozen=True)
class Column:
    """A downstream task: `name` is its own, with the beginning of its hash where another definition has the same."""

    name: str
    metric: str
    better: str
    items: int
    chance: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Grade:
    """The mean over the seeds that answered, out of those that could have."""

    score: Estimate | None
    seeds: int


@dataclass(frozen=True)
class Table:
    """A section of a board downstream: rows are entrants under a format."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str, tuple[Grade, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(self)
        return {**found, "rows": [{"entrant": e, "format": f, "cells": cells} for e, f, cells in found["rows"]]}


@dataclass(frozen=True)
class Difference:
    """A − B on one downstream task in one section."""

    section: str
    task: str
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


def papers(results: Path, board: str) -> list[Paper]:
    """All answers of a board's finished runs; trials that only tune are not the board's."""
    members = {r["board"]: r for r in roster.read_all(results)}
    if board not in members:
        raise unknown("board", board, members, str(results))
    return [paper for cell in members[board]["cells"] if cell.get("stage") != "trial" for paper in of_cell(results, cell)]


def of_cell(results: Path, cell: Mapping[str, Any]) -> Iterator[Paper]:
    config = RunConfig.from_json(cell["spec"])
    section = f"{config.task}/{config.size}"
    format_ = config.format_label if config.weights or config.activations else "fp32"
    label = " ".join(filter(None, (cell["label"], cell["variant"])))
    for key in cell["keys"]:
        if (attempt := standing(results, key).attempt) is None:
            continue
        seed = int((attempt.read("spec") or {}).get("seed", 0))
        for task, entry in answered(attempt).items():
            yield Paper(section, label, format_, seed, attempt.folder, task, entry)


# ---- the table ----


def tables(found: Sequence[Paper]) -> list[Table]:
    """One for each section that has answers, in the order of the roster."""
    return [table(title, [p for p in found if p.section == title]) for title in dict.fromkeys(p.section for p in found)]


def table(title: str, found: Sequence[Paper]) -> Table:
    columns = sorted({paper.column for paper in found})
    rows = dict.fromkeys((paper.entrant, paper.format) for paper in found)
    cells: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for paper in found:
        if paper.value is not None:
            cells[paper.entrant, paper.format, paper.column][paper.seed] = paper.value
    heads = tuple(head(column, columns, next(p.entry for p in found if p.column == column)) for column in columns)
    return Table(title, heads, tuple((e, f, tuple(grade(cells.get((e, f, column), {})) for column in columns)) for e, f in rows))


def head(column: tuple[str, str], columns: Sequence[tuple[str, str]], entry: Mapping[str, Any]) -> Column:
    name, sha = column
    twins = sum(other == name for other, _ in columns) > 1
    metric, better = str(entry["metric"]), str(entry["metrics"][entry["metric"]]["better"])
    return Column(f"{name} {sha[:SHORT_HASH]}" if twins else name, metric, better, int(entry["items"]), entry["chance"], entry["ceiling"])


def grade(scores: Mapping[int, float]) -> Grade:
    return Grade(stats.mean_interval(list(scores.values())) if scores else None, len(scores))


# ---- two entrants ----


def compare(found: Sequence[Paper], a: str, b: str) -> list[Difference]:
    """Every section and downstream task in one definition that both have answered, by the same metric."""
    labels = {paper.entrant for paper in found}
    for label in (a, b):
        if label not in labels:
            raise unknown("entrant", label, labels)
    if a == b:
        raise UsageError(f"{a!r} is compared with itself: name two entrants")
    pairs: dict[tuple[str, tuple[str, str]], list[tuple[Paper, Paper]]] = defaultdict(list)
    for one in (paper for paper in found if paper.entrant == a):
        for other in (paper for paper in found if paper.entrant == b and alike(one, paper)):
            pairs[one.section, one.column].append((one, other))
    differences = [difference(section, task, both) for (section, (task, _)), both in sorted(pairs.items())]
    known = iter(stats.holm([d.p_items for d in differences if d.p_items is not None]))
    return [d if d.p_items is None else dataclasses.replace(d, p_items=next(known)) for d in differences]


def alike(one: Paper, other: Paper) -> bool:
    """Whether they are a pair: full precision goes with every format."""
    formats = {one.format, other.format}
    return (one.section, one.column, one.seed) == (other.section, other.column, other.seed) and (len(formats) == 1 or "fp32" in formats)


def difference(section: str, task: str, pairs: Sequence[tuple[Paper, Paper]]) -> Difference:
    means = [by_seed([pair[side] for pair in pairs]) for side in (0, 1)]
    test = stats.paired_test(means[0], means[1])
    answers = [tuple(items_right(p.folder, p.entry) for p in pair) for pair in pairs]
    whole = [(x, y) for x, y in answers if x is not None and y is not None]
    right = [[answer for pair in whole for answer in pair[side]] for side in (0, 1)]
    items = stats.mcnemar(right[0], right[1]) if len(whole) == len(pairs) else None
    formats = tuple(dict.fromkeys(x.format if y.format == "fp32" else y.format for x, y in pairs))
    return Difference(
        section, task, formats, test.seeds, test.difference, test.p,
        items.first if items else 0, items.second if items else 0, items.p if items else None,
    )  # fmt: skip


def by_seed(found: Sequence[Paper]) -> dict[int, float]:
    """The mean over formats within each seed."""
    values: dict[int, list[float]] = defaultdict(list)
    for paper in found:
        if paper.value is not None:
            values[paper.seed].append(paper.value)
    return {seed: sum(scores) / len(scores) for seed, scores in values.items()}


# ---- words ----


def in_words(found: Table) -> str:
    """A table as plain text; under each task's name what guessing and a perfect model have."""
    heads = [f"{column.name} ({column.metric})" for column in found.columns]
    bounds = [f"{column.items} items{bound('chance', column.chance)}{bound('ceiling', column.ceiling)}" for column in found.columns]
    rows = [(entrant, format_, *map(grade_in_words, cells)) for entrant, format_, cells in found.rows]
    lines = [("method", "format", *heads), ("", "", *bounds), *(tuple(map(text.plain, row)) for row in rows)]
    return "\n".join([text.plain(found.title), *aligned(lines)])


def bound(word: str, value: float | None) -> str:
    return "" if value is None else f", {word} {value:.3g}"


def grade_in_words(found: Grade) -> str:
    """`0.398 ± 0.024`, over seeds."""
    if found.score is None:
        return NONE
    half = found.score.half
    return text.number(found.score.value, DIGITS) + ("" if half is None else f" ± {text.half_width(half, found.score.value, DIGITS)}")


def difference_in_words(d: Difference, a: str, b: str) -> str:
    """Two lines: what the seeds say of the methods, and the items of these runs."""
    low, high = d.difference.low, d.difference.high
    interval = "" if low is None or high is None else f" [{low:+.{DIGITS}f}, {high:+.{DIGITS}f}]"
    p = "" if d.p is None else f", p = {d.p:.2g}"
    seeds = f"{d.seeds} seed{'s' * (d.seeds != 1)}"
    where = text.plain(f"{d.section}: {d.task}; {', '.join(d.formats)}")
    lines = [where, f"  by seed {d.difference.value:+.{DIGITS}f}{interval}{p} over {seeds}"]
    if d.p_items is None:
        return "\n".join(lines)
    items = (
        f"by item {d.only_a} that only {text.plain(a)} has right, {d.only_b} that only {text.plain(b)}, p = {d.p_items:.2g} for these runs"
    )
    return "\n".join([*lines, f"  {items}"])
