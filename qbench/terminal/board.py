"""A board → the terminal. Markdown and CSV are `plaintext`'s, runs and plans `listing`'s; beside these two only `progress` imports rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from qbench.boards.board import Board, Cell, Section
from qbench.boards.words import (
    BEST_OF,
    COSTS,
    DITTO,
    DOWNSTREAM,
    NONE,
    best_of,
    chosen,
    costs,
    details,
    downstream,
    exam_lines,
    gap,
    head_lines,
    heading,
    legend,
    marks,
    name,
    rank,
    rr,
    score,
)
from qbench.util import text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show_board"]


NAME_WIDTH, GAP = 30, 2


# ---- a board ----


def show_board(board: Board, console: Console, *, randomised: bool = False) -> None:
    """Print a table for each section, in several pieces where the terminal is narrow; `randomised` adds the score after randomised rounding."""
    if board.title:
        console.print(Text(text.plain(board.title), style="bold underline"), end="\n\n")
    if not board.sections:
        console.print(Text("No runs yet."))
        return
    for section in board.sections:
        console.print(Text(text.plain(heading(section)), style="bold"))
        console.print(Text(text.plain(details(section), 1000), style="dim"))
        _print_all(_tables(section, console, randomised), console)
        for n, note in enumerate(section.notes, 1):
            console.print(_hanging(text.superscript(n), text.plain(note, 1000)))
        console.print()
        if lines := best_of(section):
            console.print(Text(f"{BEST_OF}:"))
            for line in lines:
                console.print(_hanging(" ", text.plain(line, 1000)))
            console.print()
        if section.downstream:
            console.print(Text(f"{DOWNSTREAM}:"))
            _print_all(_downstream(section, console), console)
            console.print()
    for line in legend(board, "bold" if console.is_terminal else "*"):
        console.print(Text(text.plain(line, 1000), style="dim"))


def _print_all(tables: Iterator[Table], console: Console) -> None:
    for n, table in enumerate(tables):
        if n:
            console.print()
        console.print(table)


@dataclass(frozen=True)
class _Column:
    """A table's column, ready to print."""

    head: str
    cells: Sequence[Text]

    @property
    def width(self) -> int:
        return max(
            cell_len(line)
            for block in (self.head, *(cell.plain for cell in self.cells))
            for line in block.split("\n")
        )


def _tables(section: Section, console: Console, randomised: bool) -> Iterator[Table]:
    """As many columns at a time as there is room for, the names (and ranks) before each lot."""
    fixed = [_Column("method", [Text(name(row)) for row in section.rows])]
    if any(row.rank for row in section.rows):
        fixed.append(_Column("rank", [Text(rank(row)) for row in section.rows]))
    spans = [row.spans for row in section.rows]
    columns = _columns(section, console, randomised)
    return _in_pieces(
        fixed, columns, console, lambda r, start, c: spans[r] and start < c < len(section.columns)
    )


def _downstream(section: Section, console: Console) -> Iterator[Table]:
    """Entrants under their formats, and the tasks that they were asked."""
    lines = downstream(section)
    who, under = (
        [Text(name(line.row)) for line in lines],
        [Text(text.plain(line.format)) for line in lines],
    )
    fixed = [_Column("method", who), _Column("format", under)]
    heads = ["\n".join((text.plain(exam.task), *exam_lines(exam))) for exam in section.downstream]
    columns = [
        _Column(head, [Text(line.words[i]) for line in lines]) for i, head in enumerate(heads)
    ]
    return _in_pieces(fixed, columns, console)


def _in_pieces(
    fixed: Sequence[_Column],
    columns: Sequence[_Column],
    console: Console,
    again: Callable[[int, int, int], bool] = lambda *_: False,
) -> Iterator[Table]:
    """`again` says of a row, a piece's first column and another of its columns whether that one only repeats the first."""
    longest = max(NAME_WIDTH, console.width // 4)
    widths = [min(column.width, longest) for column in fixed]
    room, start = console.width - sum(widths) - GAP * len(fixed), 0
    while start < len(columns):
        stop, used = start + 1, columns[start].width
        while stop < len(columns) and used + GAP + columns[stop].width <= room:
            used, stop = used + GAP + columns[stop].width, stop + 1
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False
        )
        for column, width in zip(fixed, widths, strict=True):
            table.add_column(Text(column.head), width=width, overflow="fold")
        for column in columns[start:stop]:
            table.add_column(
                Text(column.head), width=min(column.width, max(8, room)), overflow="fold"
            )
        for r in range(len(fixed[0].cells)):
            cells = [
                Text(DITTO, style="dim") if again(r, start, c) else columns[c].cells[r]
                for c in range(start, stop)
            ]
            table.add_row(*(column.cells[r] for column in fixed), *cells)
        yield table
        start = stop


def _columns(section: Section, console: Console, randomised: bool) -> list[_Column]:
    """The formats and the cost."""
    # Where nothing can be bold, as in a pipe, a star says it.
    star = "" if console.is_terminal else " *"
    heads = ["\n".join((text.plain(c.format), *head_lines(c))) for c in section.columns] or ["fp32"]
    found = [
        _Column(
            head,
            [
                _cell(row.cells[0 if row.spans else i], section, not row.spans, star, randomised)
                for row in section.rows
            ],
        )
        for i, head in enumerate(heads)
    ]
    return [
        *found,
        _Column(
            f"{COSTS[0]}\n{', '.join(COSTS[1:])}", [_cost(costs(row.cost)) for row in section.rows]
        ),
    ]


def _cell(cell: Cell, section: Section, with_gap: bool, star: str, randomised: bool) -> Text:
    style = (
        "bold" if cell.best else "" if cell.score else "yellow" if cell.state == "failed" else "dim"
    )
    found = Text(score(cell, section.digits), style=style)
    found.append((star if cell.best else "") + marks(cell), style="not dim")
    if cell.score and with_gap:
        found.append(f"\n{gap(cell)}", style="not bold dim")
    if cell.chosen:
        found.append(f"\n{chosen(cell).replace(', ', chr(10))}", style="not bold dim")
    if randomised and cell.rr is not None:
        found.append(f"\nrr {rr(cell, section.digits)}", style="not bold dim")
    return found


def _cost(parts: Sequence[str]) -> Text:
    rest = ", ".join(part for part in parts[1:] if part != NONE)
    return Text.assemble(parts[0], (f"\n{rest}" if rest else "", "dim"))


def _hanging(mark: str, words: str) -> Table:
    """A note whose further lines start under its first."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark), Text(words))
    return grid
