"""Print a board as tables in a terminal.

The words in the cells come from `boards.board_text`, which the Markdown form uses as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from qbench.boards.board import Board, BoardCell, Section
from qbench.boards.board_text import (
    BEST_OF_TITLE,
    COST_HEADS,
    DITTO,
    DOWNSTREAM_TITLE,
    NO_VALUE,
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
    format_randomised_score,
    format_rank,
    format_score,
    list_downstream_lines,
    write_legend,
)
from qbench.util import text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_board"]


NAME_WIDTH = 30
"""The width that a name may always take; longer names are folded."""
COLUMN_GAP = 2
MAX_NOTE_LENGTH = 1000


def show_board(board: Board, console: Console, *, randomised: bool = False) -> None:
    """Print a board, section by section.

    A table that is wider than the terminal is split into several. `randomised` adds the scores
    after randomised rounding.
    """
    if board.title:
        console.print(Text(text.clean_line(board.title), style="bold underline"), end="\n\n")
    if not board.sections:
        console.print(Text("No runs yet."))
        return
    for section in board.sections:
        _show_section(section, console, randomised)
    # A pipe has no bold type, so the best cells are marked by a star there.
    for line in write_legend(board, "bold" if console.is_terminal else "*"):
        console.print(Text(text.clean_line(line, MAX_NOTE_LENGTH), style="dim"))


def _show_section(section: Section, console: Console, randomised: bool) -> None:
    setting = text.clean_line(describe_setting(section), MAX_NOTE_LENGTH)
    console.print(Text(text.clean_line(describe_metric(section)), style="bold"))
    console.print(Text(setting, style="dim"))
    _print_tables(_make_score_tables(section, console, randomised), console)
    for n, note in enumerate(section.notes, 1):
        console.print(_make_note(text.format_superscript(n), note))
    console.print()
    if lines := describe_best_of_trials(section):
        console.print(Text(f"{BEST_OF_TITLE}:"))
        for line in lines:
            console.print(_make_note(" ", line))
        console.print()
    if section.downstream:
        console.print(Text(f"{DOWNSTREAM_TITLE}:"))
        _print_tables(_make_downstream_tables(section, console), console)
        console.print()


def _print_tables(tables: Iterator[Table], console: Console) -> None:
    for n, table in enumerate(tables):
        if n:
            console.print()
        console.print(table)


def _make_note(mark: str, note: str) -> Table:
    """Return a note whose lines are all indented by its mark."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark), Text(text.clean_line(note, MAX_NOTE_LENGTH)))
    return grid


# ---- tables that fit the terminal ----


@dataclass(frozen=True)
class _TableColumn:
    """A column of a table, ready to print."""

    head: str
    cells: Sequence[Text]

    @property
    def width(self) -> int:
        blocks = (self.head, *(cell.plain for cell in self.cells))
        # `cell_len` counts columns of the terminal: East Asian characters take two.
        return max(cell_len(line) for block in blocks for line in block.split("\n"))


def _make_score_tables(section: Section, console: Console, randomised: bool) -> Iterator[Table]:
    fixed = [_TableColumn("method", [Text(format_entrant(row)) for row in section.rows])]
    if any(row.rank for row in section.rows):
        fixed.append(_TableColumn("rank", [Text(format_rank(row)) for row in section.rows]))
    spans = [row.spans_columns for row in section.rows]

    def repeats(row: int, first: int, column: int) -> bool:
        # A row of full precision has one score for all formats; the cost is a column of its own.
        return spans[row] and first < column < len(section.columns)

    columns = _make_score_columns(section, console, randomised)
    return _split_to_width(fixed, columns, console, repeats)


def _make_downstream_tables(section: Section, console: Console) -> Iterator[Table]:
    """Yield tables with a row for each entrant and format, and a column for each task."""
    lines = list_downstream_lines(section)
    fixed = [
        _TableColumn("method", [Text(format_entrant(line.row)) for line in lines]),
        _TableColumn("format", [Text(text.clean_line(line.format)) for line in lines]),
    ]
    columns = []
    for i, task in enumerate(section.downstream):
        head = "\n".join((text.clean_line(task.task), *describe_downstream_task(task)))
        columns.append(_TableColumn(head, [Text(line.scores[i]) for line in lines]))
    return _split_to_width(fixed, columns, console)


def _split_to_width(
    fixed: Sequence[_TableColumn],
    columns: Sequence[_TableColumn],
    console: Console,
    repeats: Callable[[int, int, int], bool] = lambda row, first, column: False,
) -> Iterator[Table]:
    """Yield tables that each hold the fixed columns and as many of the others as fit.

    `repeats(row, first, column)` says whether a cell only repeats the one in the first column of
    its table. Such a cell is printed as a ditto mark.
    """
    longest = max(NAME_WIDTH, console.width // 4)
    fixed_widths = [min(column.width, longest) for column in fixed]
    room = console.width - sum(fixed_widths) - COLUMN_GAP * len(fixed)
    start = 0
    while start < len(columns):
        # At least one column, even if it does not fit: its cells are folded.
        stop, used = start + 1, columns[start].width
        while stop < len(columns) and used + COLUMN_GAP + columns[stop].width <= room:
            used += COLUMN_GAP + columns[stop].width
            stop += 1
        widths = fixed_widths + [min(c.width, max(8, room)) for c in columns[start:stop]]
        table = _make_table([*fixed, *columns[start:stop]], widths)
        for r in range(len(fixed[0].cells)):
            cells = [
                Text(DITTO, style="dim") if repeats(r, start, c) else columns[c].cells[r]
                for c in range(start, stop)
            ]
            table.add_row(*(column.cells[r] for column in fixed), *cells)
        yield table
        start = stop


def _make_table(columns: Sequence[_TableColumn], widths: Sequence[int]) -> Table:
    """Return a table with these columns and no rows yet."""
    padding = (0, COLUMN_GAP - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, show_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(Text(column.head), width=width, overflow="fold")
    return table


# ---- the columns of a score table ----


def _make_score_columns(section: Section, console: Console, randomised: bool) -> list[_TableColumn]:
    """Return a column for each format, and one for the cost."""
    star = "" if console.is_terminal else " *"
    heads = [
        "\n".join((text.clean_line(column.format), *describe_column(column)))
        for column in section.columns
    ]
    columns = []
    # A section of full precision alone has no formats.
    for i, head in enumerate(heads or ["fp32"]):
        cells = []
        for row in section.rows:
            cell = row.cells[0 if row.spans_columns else i]
            cells.append(_format_cell(cell, section, not row.spans_columns, star, randomised))
        columns.append(_TableColumn(head, cells))
    cost_head = f"{COST_HEADS[0]}\n{', '.join(COST_HEADS[1:])}"
    costs = [_format_cost_cell(format_costs(row.cost)) for row in section.rows]
    return [*columns, _TableColumn(cost_head, costs)]


def _format_cell(
    cell: BoardCell, section: Section, with_gap: bool, star: str, randomised: bool
) -> Text:
    """Return the score with its markers, and below it everything else that is shown."""
    lines = Text(format_score(cell, section.digits), style=_cell_style(cell))
    lines.append((star if cell.best else "") + format_markers(cell), style="not dim")
    details = []
    if cell.score and with_gap:
        details.append(format_gap(cell))
    if cell.chosen:
        details.append(format_chosen_values(cell).replace(", ", "\n"))
    if randomised and cell.rr is not None:
        details.append(f"rr {format_randomised_score(cell, section.digits)}")
    for detail in details:
        lines.append(f"\n{detail}", style="not bold dim")
    return lines


def _cell_style(cell: BoardCell) -> str:
    if cell.best:
        return "bold"
    if cell.score:
        return ""
    return "yellow" if cell.state == "failed" else "dim"


def _format_cost_cell(costs: Sequence[str]) -> Text:
    """Return the step time, and below it training time and memory as far as they are known."""
    known = ", ".join(cost for cost in costs[1:] if cost != NO_VALUE)
    return Text.assemble(costs[0], (f"\n{known}" if known else "", "dim"))
