"""The two table shapes that plans, plugins and runs are printed in."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from qbench.util import text

LabelledLine = tuple[str, str | Text]
"""A label, which is our own text, and a value, which may be anybody's and is made printable."""

MAX_VALUE_LENGTH = 2000


def make_label_grid(lines: Iterable[LabelledLine]) -> Table:
    """Return labels and values in two columns without lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in lines:
        if isinstance(value, str):
            value = Text(text.clean_line(value, MAX_VALUE_LENGTH))
        grid.add_row(Text(label), value)
    return grid


def make_plain_table(*heads: str) -> Table:
    """Return an empty table that has heads and no lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table
