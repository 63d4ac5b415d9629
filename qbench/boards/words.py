"""A board as words, Markdown and CSV: the same to the byte for the same rows. The terminal's tables (`render`) use the same words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qbench.boards.board import Board, Cell, Column, Cost, Exam, Row, Section
from qbench.boards.section import RANKED_FROM
from qbench.stats.intervals import CONFIDENCE
from qbench.util import text

DITTO = '"'
NONE = "–"
DOWNSTREAM = "Downstream, asked of the packed artefacts"
DOWNSTREAM_DIGITS, SHORT_HASH, CSV_HASH = 3, 8, 16


def score(cell: Cell, digits: int) -> str:
    """`0.101 ± 0.006`, or what became of the cell."""
    if cell.score is None:
        reasons = (
            ", ".join(text.plain(name, 40) for name in cell.failures if name != "skipped")
            or cell.state
        )
        return {"absent": "not asked", "skipped": "skipped"}.get(cell.state, reasons)
    half = cell.score.half
    return text.number(cell.score.value, digits) + (
        "" if half is None else f" ± {text.half_width(half, cell.score.value, digits)}"
    )


def gap(cell: Cell) -> str:
    """`88 % [65, 101]`, or “–” where full precision is not clearly above rounding."""
    if cell.gap is None:
        return NONE
    value = f"{100 * cell.gap.value + 0.0:.0f} %"
    if cell.gap.low is None or cell.gap.high is None or cell.gap.low == cell.gap.high:
        return value
    return f"{value} [{100 * cell.gap.low + 0.0:.0f}, {100 * cell.gap.high + 0.0:.0f}]"


def marks(cell: Cell) -> str:
    return ("†" if cell.audits_failed else "") + " ".join(text.superscript(n) for n in cell.notes)


def name(row: Row, longest: int = 60) -> str:
    return text.plain(row.entrant, longest) + (" (reconstructed)" if row.reconstructed else "")


def rank(row: Row) -> str:
    """`1`, `2–4`, or nothing."""
    return text.span(tuple(map(float, row.rank))) if row.rank else ""


def chosen(cell: Cell) -> str:
    """`lr 0.003, scale mse`: what was best on validation."""
    return ", ".join(
        f"{name} {text.plain(text.value(value), 40)}" for name, value in cell.chosen.items()
    )


def best_of(section: Section) -> list[str]:
    """For each column and entrant what the best of 1, 2, 4 … trials would have scored; nothing where no cell was tuned."""
    lines = []
    for i, column in enumerate(["fp32", *(c.format for c in section.columns)]):
        cells = [
            (row, row.cells[i - 1 if i else 0]) for row in section.rows if row.spans == (i == 0)
        ]
        curves = [(name(row), cell.best_of) for row, cell in cells if cell.best_of]
        if not curves:
            continue
        most = max(len(curve) for _, curve in curves)
        shown = sorted({most, *(1 << k for k in range(most.bit_length()))})
        each = [
            f"{who} {', '.join(_expected(curve, n, section.digits) for n in shown)}"
            for who, curve in curves
        ]
        share = min(cell.best_of_share for _, cell in cells)
        shorter = f" with {100 * share:g} % of the steps" if share < 1 else ""
        lines.append(f"{column}, {', '.join(map(str, shown))} trials{shorter}: {'; '.join(each)}")
    return lines


def _expected(curve: Sequence[float | None], n: int, digits: int) -> str:
    value = curve[n - 1] if n <= len(curve) else None
    return NONE if value is None else text.number(value, digits)


BEST_OF = "Expected test score of the best of n trials on validation, at the tuning seeds"


def rr(cell: Cell, digits: int) -> str:
    return NONE if cell.rr is None else text.number(cell.rr, digits)


def head_lines(column: Column) -> list[str]:
    """`3 levels`, `2.25 bits`: scales and offsets counted."""
    counts, weights = (
        text.span(tuple(float(n) for n in column.levels)),
        text.span(column.bits_per_weight, ".3g"),
    )
    return [f"{counts} levels"] * bool(counts) + [f"{weights} bits"] * bool(weights)


def heading(section: Section) -> str:
    if not section.metric:
        return section.title
    unit = f" ({section.unit})" if section.unit else ""
    return f"{section.title}: {section.metric}{unit}, {section.better} is better"


def ranking(section: Section) -> str:
    """What the rows' order means."""
    ranked = any(row.rank for row in section.rows)
    few = f"unranked ({text.count(section.seeds, 'seed')}; ranks need {RANKED_FROM})"
    unshared = f"unranked (no two whole rows share {RANKED_FROM} seeds)"
    return "ranks are ranges" if ranked else few if section.seeds < RANKED_FROM else unshared


def details(section: Section) -> str:
    return "; ".join(
        filter(
            None, (section.setting, ranking(section), f"minimum effect {section.minimum_effect:g}")
        )
    )


def costs(cost: Cost) -> list[str]:
    """`1.25 ×`, `1.5 s`, `134 MB`: as far as known."""
    return [
        NONE if cost.step_ratio is None else f"{cost.step_ratio:.2f} ×",
        NONE if cost.train_s is None else text.seconds(cost.train_s),
        NONE if cost.peak_memory_bytes is None else text.size(cost.peak_memory_bytes),
    ]


def legend(board: Board, best: str = "bold") -> list[str]:
    """How to read the tables, once for all of them; `best` says how the best is marked."""
    percent = f"{100 * CONFIDENCE:.0f} %"
    return [
        f"Score: mean over seeds ± its {percent} t interval, of the packed artefact. Below it the gap recovered, (m − rtn)/(fp − rtn), with its"
        f" Fieller interval; {NONE} where fp is not clearly above rtn, or by less than the minimum effect.",
        f"Best ({best}): beats every other whole cell of its column, paired by seed, Holm over rivals and columns at {percent}, by the minimum effect. A cell with a failed"
        " seed or audit never is.",
        "Order: controls, then by mean; it is no rank. fp has one score for all columns.",
        "Cost: median step time over fp's on the same device and in as large a company, from the sweep's own runs (not interleaved); median training time; peak memory."
        f" {NONE}: not trained, or not known.",
        *[_DOWNSTREAM.format(percent=percent)]
        * any(section.downstream for section in board.sections),
        *board.notes,
    ]


_DOWNSTREAM = (
    "Downstream: mean over seeds ± its {percent} t interval. A column is a task in one definition, its documents included, told by its hash: columns"
    " do not compare with one another."
)
COSTS = ("step / fp", "training", "memory")
"""Heads of `costs`."""


# ---- downstream ----


class Line(NamedTuple):
    """A cell downstream: a word for each exam of its section."""

    row: Row
    format: str
    words: tuple[str, ...]


def downstream(section: Section) -> list[Line]:
    """A line for each cell, those without answers too, which say why; nothing where nobody was asked anything."""
    if not section.downstream:
        return []
    return [
        Line(row, fmt, tuple(grade(cell, exam) for exam in section.downstream))
        for row, fmt, cell in _cells(section)
    ]


def _cells(section: Section) -> Iterator[tuple[Row, str, Cell]]:
    for row in section.rows:
        formats = ["fp32"] if row.spans else [column.format for column in section.columns]
        yield from (
            (row, fmt, cell)
            for fmt, cell in zip(formats, row.cells, strict=True)
            if cell.state != "absent"
        )


def grade(cell: Cell, exam: Exam) -> str:
    """`0.398 ± 0.024`, and of how many seeds where not all have answered; or why there is none."""
    found = cell.downstream.get(exam.id)
    if found is None:
        return "not asked" if cell.score else score(cell, 0)
    if found.score is None:
        return NONE
    half, value = found.score.half, found.score.value
    spread = "" if half is None else f" ± {text.half_width(half, value, DOWNSTREAM_DIGITS)}"
    return (
        text.number(value, DOWNSTREAM_DIGITS)
        + spread
        + (
            f" ({found.seeds} of {text.count(cell.asked, 'seed')})"
            if found.seeds < cell.asked
            else ""
        )
    )


def exam_lines(exam: Exam) -> list[str]:
    """`acc, higher is better`, `200 items, chance 0.25, ceiling 0.98`, `definition 1f2e3d4c`."""
    bounds = [
        f"{name} {value:.3g}"
        for name, value in (("chance", exam.chance), ("ceiling", exam.ceiling))
        if value is not None
    ]
    asked = ", ".join([text.count(exam.items or 0, "item")] * (exam.items is not None) + bounds)
    direction = ", ".join(filter(None, (exam.metric, exam.better and f"{exam.better} is better")))
    return [
        *map(text.plain, filter(None, (direction, asked, f"definition {exam.sha256[:SHORT_HASH]}")))
    ]
