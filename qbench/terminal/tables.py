"""The two table shapes that all of these use."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from qbench.util import text

Line = tuple[str, str | Text]
"""A label, which is ours, and what it says, which may be anybody's."""


# ---- tables ----


def _grid(lines: Iterable[Line]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in lines:
        grid.add_row(
            Text(label), value if isinstance(value, Text) else Text(text.plain(value, 2000))
        )
    return grid


def _columns(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table
