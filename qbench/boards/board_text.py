"""The texts of a board: scores, names, headings and the legend, as plain strings.

Markdown, the terminal, LaTeX and the site all print these texts, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qbench.boards.board import Board, BoardCell, Cost, DownstreamTask, FormatColumn, Row, Section
from qbench.boards.section import MIN_RANKED_SEEDS
from qbench.stats.intervals import CONFIDENCE
from qbench.util import text

DITTO = '"'
NO_VALUE = "–"
DOWNSTREAM_TITLE = "Downstream scores of the packed artefacts"
BEST_OF_TITLE = "Expected test score of the best of n trials on validation, at the tuning seeds"
COST_HEADS = ("step / fp", "training", "memory")
"""The heads of the columns of `format_costs`."""
DOWNSTREAM_DIGITS, SHORT_HASH, CSV_HASH = 3, 8, 16


# ---- cells and rows ----


def format_score(cell: BoardCell, digits: int) -> str:
    """Return `0.101 ± 0.006`, or why the cell has no score."""
    if cell.score is not None:
        return _format_interval(cell.score.value, cell.score.half_width, digits)
    if cell.state == "absent":
        return "not asked"
    if cell.state == "skipped":
        return "skipped"
    reasons = (text.clean_line(name, 40) for name in cell.failures if name != "skipped")
    return ", ".join(reasons) or cell.state


def _format_interval(value: float, half_width: float | None, digits: int) -> str:
    spread = "" if half_width is None else f" ± {text.format_half_width(half_width, value, digits)}"
    return text.format_number(value, digits) + spread


def format_gap(cell: BoardCell) -> str:
    """Return `88 % [65, 101]`, or “–” where full precision is not clearly better than rounding."""
    if cell.gap is None:
        return NO_VALUE
    # Adding 0.0 turns −0.0 into 0.0, which would be printed as "-0".
    value = f"{100 * cell.gap.value + 0.0:.0f} %"
    low, high = cell.gap.low, cell.gap.high
    if low is None or high is None or low == high:
        return value
    return f"{value} [{100 * low + 0.0:.0f}, {100 * high + 0.0:.0f}]"


def format_randomised_score(cell: BoardCell, digits: int) -> str:
    return NO_VALUE if cell.rr is None else text.format_number(cell.rr, digits)


def format_markers(cell: BoardCell) -> str:
    """Return a dagger if an audit failed, and the numbers of the cell's notes."""
    return ("†" if cell.audits_failed else "") + " ".join(
        text.format_superscript(n) for n in cell.notes
    )


def format_entrant(row: Row, longest: int = 60) -> str:
    return text.clean_line(row.entrant, longest) + (" (reconstructed)" if row.reconstructed else "")


def format_rank(row: Row) -> str:
    """Return `1`, `2–4`, or an empty text for an unranked row."""
    return text.format_range(tuple(map(float, row.rank))) if row.rank else ""


def format_chosen_values(cell: BoardCell) -> str:
    """Return `lr 0.003, scale mse`: the hyper-parameters that were best on validation."""
    return ", ".join(
        f"{name} {text.clean_line(text.format_value(value), 40)}"
        for name, value in cell.chosen.items()
    )


def format_costs(cost: Cost) -> list[str]:
    """Return `1.25 ×`, `1.5 s` and `134 MB`, with “–” for what is unknown."""
    return [
        NO_VALUE if cost.step_ratio is None else f"{cost.step_ratio:.2f} ×",
        NO_VALUE if cost.train_s is None else text.format_duration(cost.train_s),
        NO_VALUE if cost.peak_memory_bytes is None else text.format_bytes(cost.peak_memory_bytes),
    ]


# ---- sections ----


def describe_column(column: FormatColumn) -> list[str]:
    """Return `3 levels` and `2.25 bits`; scales and offsets count in the bits."""
    levels = text.format_range(tuple(float(n) for n in column.levels))
    bits = text.format_range(column.bits_per_weight, ".3g")
    return [f"{levels} levels"] * bool(levels) + [f"{bits} bits"] * bool(bits)


def describe_metric(section: Section) -> str:
    """Return `digits/xs: loss (nats), lower is better`."""
    if not section.metric:
        return section.title
    unit = f" ({section.unit})" if section.unit else ""
    return f"{section.title}: {section.metric}{unit}, {section.better} is better"


def describe_ranking(section: Section) -> str:
    """Say whether the rows are ranked, and if not, why."""
    if any(row.rank for row in section.rows):
        return "ranks are ranges"
    if section.seeds < MIN_RANKED_SEEDS:
        seeds = text.format_count(section.seeds, "seed")
        return f"unranked ({seeds}; ranks need {MIN_RANKED_SEEDS})"
    return f"unranked (no two complete rows share {MIN_RANKED_SEEDS} seeds)"


def describe_setting(section: Section) -> str:
    """Return start, budget, ranking and minimum effect in one line."""
    effect = f"minimum effect {section.minimum_effect:g}"
    return "; ".join(filter(None, (section.setting, describe_ranking(section), effect)))


def describe_best_of_trials(section: Section) -> list[str]:
    """Return a line for each column with the expected score of the best of 1, 2, 4 … trials.

    The list is empty where no cell was tuned.
    """
    lines = []
    for i, name in enumerate(["fp32", *(c.format for c in section.columns)]):
        # Rows of full precision have one cell only, which is their column fp32.
        cells = [
            (row, row.cells[i - 1 if i else 0])
            for row in section.rows
            if row.spans_columns == (i == 0)
        ]
        curves = [(format_entrant(row), cell.best_of) for row, cell in cells if cell.best_of]
        if not curves:
            continue
        most = max(len(curve) for _, curve in curves)
        counts = sorted({most, *(1 << k for k in range(most.bit_length()))})
        each = [
            f"{entrant} {', '.join(_format_expected(curve, n, section.digits) for n in counts)}"
            for entrant, curve in curves
        ]
        share = min(cell.best_of_share for _, cell in cells)
        steps = f" with {100 * share:g} % of the steps" if share < 1 else ""
        lines.append(f"{name}, {', '.join(map(str, counts))} trials{steps}: {'; '.join(each)}")
    return lines


def _format_expected(curve: Sequence[float | None], n: int, digits: int) -> str:
    value = curve[n - 1] if n <= len(curve) else None
    return NO_VALUE if value is None else text.format_number(value, digits)


# ---- downstream ----


class DownstreamLine(NamedTuple):
    """A cell in the downstream table, with a text for each downstream task of its section."""

    row: Row
    format: str
    scores: tuple[str, ...]


def list_downstream_lines(section: Section) -> list[DownstreamLine]:
    """Return a line for each cell; a cell without answers says why.

    The list is empty where no run was evaluated downstream.
    """
    if not section.downstream:
        return []
    return [
        DownstreamLine(
            row, fmt, tuple(format_downstream_score(cell, task) for task in section.downstream)
        )
        for row, fmt, cell in _iterate_cells(section)
    ]


def _iterate_cells(section: Section) -> Iterator[tuple[Row, str, BoardCell]]:
    for row in section.rows:
        formats = ["fp32"] if row.spans_columns else [column.format for column in section.columns]
        for fmt, cell in zip(formats, row.cells, strict=True):
            if cell.state != "absent":
                yield row, fmt, cell


def format_downstream_score(cell: BoardCell, task: DownstreamTask) -> str:
    """Return `0.398 ± 0.024`, or why there is no score.

    The number of seeds is added where not all of them have answered.
    """
    found = cell.downstream.get(task.id)
    if found is None:
        return "not asked" if cell.score else format_score(cell, 0)
    if found.score is None:
        return NO_VALUE
    score = _format_interval(found.score.value, found.score.half_width, DOWNSTREAM_DIGITS)
    if found.seeds < cell.asked:
        return f"{score} ({found.seeds} of {text.format_count(cell.asked, 'seed')})"
    return score


def describe_downstream_task(task: DownstreamTask) -> list[str]:
    """Return `acc, higher is better`, `200 items, chance 0.25` and `definition 1f2e3d4c`."""
    direction = [task.metric, task.better and f"{task.better} is better"]
    facts = [] if task.items is None else [text.format_count(task.items, "item")]
    for name, value in (("chance", task.chance), ("ceiling", task.ceiling)):
        if value is not None:
            facts.append(f"{name} {value:.3g}")
    lines = (
        ", ".join(filter(None, direction)),
        ", ".join(facts),
        f"definition {task.sha256[:SHORT_HASH]}",
    )
    return [text.clean_line(line) for line in lines if line]


# ---- legend ----


def write_legend(board: Board, best: str = "bold") -> list[str]:
    """Return how to read the tables, and the board's notes; `best` says how the best is marked."""
    percent = f"{100 * CONFIDENCE:.0f} %"
    lines = [
        f"Score: the mean over seeds ± its {percent} t interval, measured on the packed artefact."
        " Below it the gap recovered, (m − rtn)/(fp − rtn), with Fieller's interval;"
        f" {NO_VALUE} where fp is not clearly better than rtn, or by less than the minimum effect.",
        f"Best ({best}): better than every other complete cell of its column by at least the"
        f" minimum effect, in tests paired by seed, with Holm's correction over rivals and columns"
        f" at {percent}. A cell with a failed run or audit is not complete.",
        "Order: controls first, then by mean; the order is not a rank. fp has one score for all"
        " columns.",
        "Cost: median step time over that of fp on the same device and with as many stacked runs,"
        " taken from the runs of the sweep (not interleaved); median training time; peak memory."
        f" {NO_VALUE}: not trained, or unknown.",
    ]
    if any(section.downstream for section in board.sections):
        lines.append(
            f"Downstream: the mean over seeds ± its {percent} t interval. A column is a task in one"
            " definition, documents included, which its hash identifies. Columns cannot be"
            " compared with one another."
        )
    return [*lines, *board.notes]
