"""Rows of what was retired (`retired`): each version beside the controls alone, so that it has its gap recovered and moves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qbench.boards.board import Cell, Row, Section
from qbench.boards.downstream_scores import united
from qbench.boards.row_groups import join
from qbench.boards.run_table import Table

if TYPE_CHECKING:
    from qbench.boards.section import SectionMaker


Makers = Callable[[Table], Iterable["SectionMaker"]]


def parted(table: Table) -> tuple[Table, Table | None]:
    """What is on the board, and what was retired from it."""
    gone = table.columns["retired"] > 0
    return (table.take(~gone), table.take(gone)) if gone.any() else (table, None)


def below(
    sections: Sequence[Section],
    makers: Sequence[SectionMaker],
    gone: Table,
    controls: Table,
    make: Makers,
) -> list[Section]:
    """The sections with the rows of what was retired, which `make` puts beside the controls."""
    found = list(sections)
    for method, reason, table in _versions(gone):
        for maker in make(join(controls, table)):
            for i, main in enumerate(makers):
                if main.identity == maker.identity:
                    found[i] = _with_rows(found[i], main, maker, method, reason)
    return found


def _versions(gone: Table) -> Iterator[tuple[str, str, Table]]:
    """The runs of each method at each version, with the reason, and no longer marked as retired."""
    methods, versions = gone.columns["method"], np.nan_to_num(gone.columns["method_version"])
    for method, version in sorted({*zip(methods.tolist(), versions.tolist(), strict=True)}):
        table = gone.take((methods == method) & (versions == version))
        reason = gone.words["retired"][table.columns["retired"][0]]
        yield (
            gone.words["method"][method],
            reason,
            Table({**table.columns, "retired": np.zeros(len(table), dtype=np.int64)}, table.words),
        )


def _with_rows(
    section: Section, main: SectionMaker, maker: SectionMaker, method: str, reason: str
) -> Section:
    rows, notes, own = list(section.rows), list(section.notes), maker.build()
    for row in own.rows:
        if row.method == method:
            name = f"{row.entrant}, version {row.version}, retired"
            rows.append(
                dataclasses.replace(
                    row,
                    entrant=name,
                    retired=reason,
                    rank=None,
                    cells=tuple(_cells(main, maker, row)),
                )
            )
            notes.append(f"{name}: {reason}")
    return dataclasses.replace(
        section,
        rows=tuple(rows),
        notes=tuple(notes),
        downstream=united((section.downstream, own.downstream)),
    )


def _cells(main: SectionMaker, maker: SectionMaker, row: Row) -> Iterator[Cell]:
    """In the order of the main table's columns; the notes of the other table are not this one's."""
    own = dict(zip((maker.data.columns[c] for c in maker.columns), row.cells, strict=True))
    for column in main.columns:
        yield dataclasses.replace(
            own.get(main.data.columns[column], Cell("absent")), best=False, notes=()
        )
