"""A board as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qbench.boards.board import Board, BoardCell, Section
from qbench.boards.board_text import (
    BEST_OF_TITLE,
    COST_HEADS,
    DITTO,
    DOWNSTREAM_TITLE,
    describe_best_of_trials,
    describe_column,
    describe_downstream_task,
    describe_metric,
    describe_setting,
    format_chosen_values,
    format_costs,
    format_entrant,
    format_gap,
    format_markers,
    format_rank,
    format_score,
    list_downstream_lines,
    write_legend,
)
from qbench.util import text

LONGEST_TEXT = 1000


def to_markdown(board: Board) -> str:
    """Return the board as a page of Markdown."""
    lines = [f"# {text.escape_markdown(board.title or 'Board')}", ""]
    if not board.sections:
        lines += ["No runs yet.", ""]
    for section in board.sections:
        lines += _write_section(section)
    lines += [f"- {text.escape_markdown(line, LONGEST_TEXT)}" for line in write_legend(board)]
    return "\n".join(lines) + "\n"


def _write_section(section: Section) -> Iterator[str]:
    yield from (f"## {text.escape_markdown(describe_metric(section))}", "")
    yield from (f"{text.escape_markdown(describe_setting(section), LONGEST_TEXT)}.", "")
    yield from _write_table(section)
    yield ""
    if section.notes:
        for number, note in enumerate(section.notes, 1):
            # Two blanks at the end of a line are a line break in Markdown.
            yield f"{text.format_superscript(number)} {text.escape_markdown(note, LONGEST_TEXT)}  "
        yield ""
    yield from _write_downstream_table(section)
    if lines := describe_best_of_trials(section):
        yield from (f"{BEST_OF_TITLE}:", "")
        yield from (f"- {text.escape_markdown(line, LONGEST_TEXT)}" for line in lines)
        yield ""


def _write_table(section: Section) -> Iterator[str]:
    is_ranked = any(row.rank for row in section.rows)
    heads = []
    for column in section.columns:
        facts = ", ".join(describe_column(column))
        heads.append(text.escape_markdown(column.format) + (f" ({facts})" if facts else ""))
    heads = heads or ["fp32"]
    yield _join_cells(["method", *(["rank"] if is_ranked else []), *heads, *COST_HEADS])
    yield _join_cells(["---"] * (1 + is_ranked + len(heads) + len(COST_HEADS)))
    for row in section.rows:
        cells = [_write_cell(cell, section.digits, not row.spans_columns) for cell in row.cells]
        # Markdown has no cells that span columns.
        cells += [DITTO] * (len(heads) - len(cells))
        names = [
            text.escape_markdown(format_entrant(row)),
            *([format_rank(row)] if is_ranked else []),
        ]
        yield _join_cells([*names, *cells, *format_costs(row.cost)])


def _write_cell(cell: BoardCell, digits: int, with_gap: bool) -> str:
    score = text.escape_markdown(format_score(cell, digits))
    score = f"**{score}**" if cell.best else score
    lines = [format_gap(cell)] if with_gap and cell.score else []
    lines += [text.escape_markdown(format_chosen_values(cell))] if cell.chosen else []
    return score + format_markers(cell) + "".join(f"<br>{line}" for line in lines)


def _write_downstream_table(section: Section) -> Iterator[str]:
    if not (lines := list_downstream_lines(section)):
        return
    yield from (f"{DOWNSTREAM_TITLE}:", "")
    heads = [
        "<br>".join(
            text.escape_markdown(line) for line in (task.task, *describe_downstream_task(task))
        )
        for task in section.downstream
    ]
    yield _join_cells(["method", "format", *heads])
    yield _join_cells(["---"] * (2 + len(heads)))
    for row, fmt, scores in lines:
        names = [text.escape_markdown(format_entrant(row)), text.escape_markdown(fmt)]
        yield _join_cells([*names, *map(text.escape_markdown, scores)])
    yield ""


def _join_cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
