"""A board as words, Markdown and CSV: the same to the byte for the same rows. The terminal's tables (`render`) use the same words."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qbench import text
from qbench.board import Board, Cell, Column, Cost, Exam, Row, Section
from qbench.leaderboard import RANKED_FROM
from qbench.stats import CONFIDENCE
from qbench.table import TEXT

if TYPE_CHECKING:
    import pandas as pd

    from qbench.compare import Comparison

DITTO = '"'
NONE = "–"
DOWNSTREAM = "Downstream, asked of the packed artefacts"
DOWNSTREAM_DIGITS, SHORT_HASH, CSV_HASH = 3, 8, 16


# ---- words ----


def comparison(c: Comparison) -> str:
    """Two lines: where, and the difference with its verdict."""
    d, digits = c.difference, _digits(c)
    interval = "" if d.low is None or d.high is None else f" [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
    p = "" if c.p is None else f", p = {c.p:.2g}"
    left_out = f", {c.dropped} left out" if c.dropped else ""
    where = f"{c.section}: {c.metric}, {c.better} is better; {', '.join(c.formats)}; {text.count(c.seeds, 'seed')}{left_out}"
    return text.plain(where) + f"\n  {d.value:+.{digits}f}{interval}{p}: {text.plain(c.verdict)}"


def _digits(c: Comparison) -> int:
    """Those that show a tenth of the minimum effect; where there is none, two of the interval's half or of the difference."""
    sizes = (c.minimum_effect, c.difference.half, abs(c.difference.value))
    least = next((size for size in sizes if size and math.isfinite(size)), 0.1)
    return max(0, 1 - math.floor(math.log10(least)))


def score(cell: Cell, digits: int) -> str:
    """`0.101 ± 0.006`, or what became of the cell."""
    if cell.score is None:
        reasons = ", ".join(text.plain(name, 40) for name in cell.failures if name != "skipped") or cell.state
        return {"absent": "not asked", "skipped": "skipped"}.get(cell.state, reasons)
    half = cell.score.half
    return text.number(cell.score.value, digits) + ("" if half is None else f" ± {text.half_width(half, cell.score.value, digits)}")


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
    return ", ".join(f"{name} {text.plain(text.value(value), 40)}" for name, value in cell.chosen.items())


def best_of(section: Section) -> list[str]:
    """For each column and entrant what the best of 1, 2, 4 … trials would have scored; nothing where no cell was tuned."""
    lines = []
    for i, column in enumerate(["fp32", *(c.format for c in section.columns)]):
        cells = [(row, row.cells[i - 1 if i else 0]) for row in section.rows if row.spans == (i == 0)]
        curves = [(name(row), cell.best_of) for row, cell in cells if cell.best_of]
        if not curves:
            continue
        most = max(len(curve) for _, curve in curves)
        shown = sorted({most, *(1 << k for k in range(most.bit_length()))})
        each = [f"{who} {', '.join(_expected(curve, n, section.digits) for n in shown)}" for who, curve in curves]
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
    counts, weights = text.span(tuple(float(n) for n in column.levels)), text.span(column.bits_per_weight, ".3g")
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
    return "; ".join(filter(None, (section.setting, ranking(section), f"minimum effect {section.minimum_effect:g}")))


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
        *[_DOWNSTREAM.format(percent=percent)] * any(section.downstream for section in board.sections),
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
    return [Line(row, fmt, tuple(grade(cell, exam) for exam in section.downstream)) for row, fmt, cell in _cells(section)]


def _cells(section: Section) -> Iterator[tuple[Row, str, Cell]]:
    for row in section.rows:
        formats = ["fp32"] if row.spans else [column.format for column in section.columns]
        yield from ((row, fmt, cell) for fmt, cell in zip(formats, row.cells, strict=True) if cell.state != "absent")


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
        + (f" ({found.seeds} of {text.count(cell.asked, 'seed')})" if found.seeds < cell.asked else "")
    )


def exam_lines(exam: Exam) -> list[str]:
    """`acc, higher is better`, `200 items, chance 0.25, ceiling 0.98`, `definition 1f2e3d4c`."""
    bounds = [f"{name} {value:.3g}" for name, value in (("chance", exam.chance), ("ceiling", exam.ceiling)) if value is not None]
    asked = ", ".join([text.count(exam.items or 0, "item")] * (exam.items is not None) + bounds)
    direction = ", ".join(filter(None, (exam.metric, exam.better and f"{exam.better} is better")))
    return [*map(text.plain, filter(None, (direction, asked, f"definition {exam.sha256[:SHORT_HASH]}")))]


# ---- Markdown ----


def to_markdown(board: Board) -> str:
    """The board as a page of Markdown."""
    lines = [f"# {text.markdown(board.title or 'Board')}", ""]
    if not board.sections:
        lines += ["No runs yet.", ""]
    for section in board.sections:
        lines += _markdown_section(section)
    lines += [f"- {text.markdown(line, 1000)}" for line in legend(board)]
    return "\n".join(lines) + "\n"


def _markdown_section(section: Section) -> Iterator[str]:
    ranked = any(row.rank for row in section.rows)
    heads = [text.markdown(c.format) + (f" ({', '.join(inner)})" if (inner := head_lines(c)) else "") for c in section.columns] or ["fp32"]
    yield from (f"## {text.markdown(heading(section))}", "", f"{text.markdown(details(section), 1000)}.", "")
    yield _line(["method", *(["rank"] if ranked else []), *heads, *COSTS])
    yield _line(["---"] * (1 + ranked + len(heads) + len(COSTS)))
    for row in section.rows:
        cells = [_markdown_cell(cell, section.digits, not row.spans) for cell in row.cells]
        cells += [DITTO] * (len(heads) - len(cells))
        yield _line([text.markdown(name(row)), *([rank(row)] if ranked else []), *cells, *costs(row.cost)])
    yield ""
    if section.notes:
        yield from (f"{text.superscript(n)} {text.markdown(note, 1000)}  " for n, note in enumerate(section.notes, 1))
        yield ""
    yield from _markdown_downstream(section)
    if lines := best_of(section):
        yield from (f"{BEST_OF}:", "", *(f"- {text.markdown(line, 1000)}" for line in lines), "")


def _markdown_downstream(section: Section) -> Iterator[str]:
    if not (lines := downstream(section)):
        return
    yield from (f"{DOWNSTREAM}:", "")
    heads = ["<br>".join(text.markdown(line) for line in (exam.task, *exam_lines(exam))) for exam in section.downstream]
    yield _line(["method", "format", *heads])
    yield _line(["---"] * (2 + len(heads)))
    yield from (_line([text.markdown(name(row)), text.markdown(fmt), *map(text.markdown, words)]) for row, fmt, words in lines)
    yield ""


def _markdown_cell(cell: Cell, digits: int, with_gap: bool) -> str:
    value = text.markdown(score(cell, digits))
    value = f"**{value}**" if cell.best else value
    below = [gap(cell)] if with_gap and cell.score else []
    below += [text.markdown(chosen(cell))] if cell.chosen else []
    return value + marks(cell) + "".join(f"<br>{line}" for line in below)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---- CSV ----

CELLS = (
    *("task", "size", "setting", "metric", "unit", "better", "entrant", "method", "version", "params", "provenance", "role"),
    *("format", "levels", "bits_per_weight", "state", "seeds", "asked", "mean", "low", "high", "gap", "gap_low", "gap_high", "rr_mean"),
    *("lr", "rates", "best", "rank_first", "rank_last", "step_ratio", "train_s", "peak_memory_bytes", "audits_failed"),
    *("failures", "notes", "runs"),
)
TUNED = ("chosen", "at_edge", "trials", "best_of", "best_of_share")
"""Of tuned boards, after the others."""
GRADE = ("mean", "low", "high", "seeds")
"""Of boards that were asked something, after these: for each downstream task by its hash."""


def to_csv(board: Board) -> str:
    """A line for each cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    tuned = any(cell.trials for section in board.sections for row in section.rows for cell in row.cells)
    exams = {exam.id: exam for section in board.sections for exam in section.downstream}
    asked = [exams[name] for name in sorted(exams)]
    names = [text.cell(f"downstream {e.task} {e.metric} {e.sha256[:CSV_HASH]} {word}") for e in asked for word in GRADE]
    writer.writerow([*CELLS, *(TUNED if tuned else ()), *names])
    for section in board.sections:
        for row in section.rows:
            formats = ["fp32"] if row.spans else [c.format for c in section.columns]
            for fmt, cell in zip(formats, row.cells, strict=True):
                line = _csv_line(section, row, fmt, cell) + (_csv_tuned(cell) if tuned else []) + _csv_downstream(cell, asked)
                writer.writerow([_csv_value(x) for x in line])
    return out.getvalue()


def _csv_line(section: Section, row: Row, fmt: str, c: Cell) -> list[Any]:
    s, g, cost, rank = c.score, c.gap, row.cost, row.rank
    setting = ", ".join(filter(None, (section.title, section.setting)))
    failures = "; ".join(f"{n} {reason}" for reason, n in c.failures.items())
    notes = "; ".join(section.notes[n - 1] for n in c.notes)
    return [
        *(section.task, section.size, setting, section.metric, section.unit, section.better),
        *(row.entrant, row.method, row.version, row.params, "reconstructed" if row.reconstructed else "paper", row.role),
        *(fmt, c.levels, c.bits_per_weight, c.state, c.seeds, c.asked),
        *((s.value, s.low, s.high) if s else (None,) * 3),
        *((g.value, g.low, g.high) if g else (None,) * 3),
        *(c.rr, c.lr, c.rates, int(c.best), *(rank or (None, None))),
        *(cost.step_ratio, cost.train_s, cost.peak_memory_bytes, c.audits_failed, failures, notes, " ".join(c.keys)),
    ]


def _csv_tuned(c: Cell) -> list[Any]:
    curve = json.dumps([None if value is None else float(f"{value:.12g}") for value in c.best_of]) if c.best_of else None
    values = json.dumps(dict(c.chosen), sort_keys=True) if c.chosen else None
    return [values, ", ".join(c.at_edge), c.trials, curve, c.best_of_share if c.best_of else None]


def _csv_downstream(cell: Cell, exams: Sequence[Exam]) -> list[Any]:
    found = [cell.downstream.get(exam.id) for exam in exams]
    each = [(g.score, g.seeds) if g else (None, None) for g in found]
    return [value for s, seeds in each for value in (*((s.value, s.low, s.high) if s else (None,) * 3), seeds)]


def _csv_value(x: object) -> str:
    return "" if x is None else f"{x:.12g}" if isinstance(x, float) else str(x) if isinstance(x, int) else text.cell(x)


def runs_csv(frame: pd.DataFrame) -> str:
    """A line for each run, in the order of keys and attempts. `read_runs_csv` gives the frame back, and so the board."""
    by = [column for column in ("key", "attempt") if column in frame]
    ordered = frame.sort_values(by, kind="stable") if by else frame
    return str(_mapped(ordered, text.cell).to_csv(index=False, lineterminator="\n"))


def read_runs_csv(source: Any) -> pd.DataFrame:
    """What `runs_csv` wrote, from a path or an open file."""
    import pandas as pd

    # Before version 3.1 pandas reads a number to the last bit only if told to; from then on it warns when told.
    old = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if old else {}
    # Text stays text: a label may look like a number.
    words = dict.fromkeys(("key", *TEXT), str)
    frame = pd.read_csv(source, keep_default_na=False, na_values=[""], low_memory=False, dtype=words, **exact)
    return _mapped(frame, text.uncell)


def _mapped(frame: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The frame with its text changed, each different text once."""
    import pandas as pd

    new: dict[str, Any] = {}
    for name in map(str, frame):
        column = frame[name]
        if column.dtype == object or isinstance(column.dtype, (pd.StringDtype, pd.CategoricalDtype)):
            codes, words = pd.factorize(column)
            changed = np.array([*(change(w) if isinstance(w, str) else w for w in words), None], dtype=object)
            new[name] = changed[codes]
    return frame.assign(**new)
