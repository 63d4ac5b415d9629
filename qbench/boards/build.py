"""Build a board from rows of runs.

Retired versions of methods are built apart. Each one gets a table of its own together with the
controls, and its row is then moved to the end of the main table. So it has its gap recovered, and
no number of another entrant depends on it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qbench.boards.board import Board, BoardCell, Row, Section
from qbench.boards.downstream_scores import merge_downstream_tasks
from qbench.boards.row_groups import Defaults, GroupedRows, group_rows
from qbench.boards.run_table import RunTable, join_tables, read_frame
from qbench.boards.section import CONTROL, REFERENCE, SectionBuilder
from qbench.sweepfile.tuning_space import Tuning

if TYPE_CHECKING:
    import pandas as pd


PER_ENTRANT_SETTINGS = ("recipe", "start")
"""In the track `as-published` the entrants of a section may differ in these."""


def build_board(
    runs: pd.DataFrame | RunTable,
    *,
    planned: pd.DataFrame | RunTable | None = None,
    defaults: Defaults | None = None,
    reference: str = REFERENCE,
    control: str = CONTROL,
    minimum_effect: Mapping[str, float] | None = None,
    title: str = "",
    track: str = "fair",
    tuning: Tuning | None = None,
) -> Board:
    """Build the board of a table of runs (`qbench.results`).

    Args:
        runs: The finished runs.
        planned: Runs without a result and skipped cells; they count where `runs` lacks them.
        defaults: The default parameters of methods and tasks by name. Labels show what differs
            from them, and gaps are measured with the entrant of the control that has them all.
        reference: The method that trains in full precision.
        control: The method that rounds to nearest.
        minimum_effect: The smallest difference that matters, by task. Without it the metric's
            own counts, or else one unit of the last digit that the metric prints.
        title: The title of the board.
        track: In "as-published" entrants with different recipes and starts share a section.
        tuning: What a tuned board searched, for its notes. The trials themselves are in `runs`.
    """
    current, retired = _split_off_retired(_as_table(runs))
    controls = (reference, control)
    grouped, builders = make_section_builders(
        current, planned, defaults, controls, minimum_effect, track, tuning
    )
    sections = [builder.build() for builder in builders]
    if retired is not None:
        codes = [current.get_code("method", name) for name in controls]
        control_runs = current.take(np.isin(current.columns["method"], codes))
        for method, reason, version in _split_versions(retired):
            _, own_builders = make_section_builders(
                join_tables(control_runs, version),
                None,
                defaults,
                controls,
                minimum_effect,
                track,
                tuning,
            )
            _append_retired(sections, builders, own_builders, method, reason)
    return Board(title, tuple(sections), tuple(grouped.notes), len(grouped.rows["key"]))


def make_section_builders(
    runs: pd.DataFrame | RunTable,
    planned: pd.DataFrame | RunTable | None,
    defaults: Defaults | None,
    controls: tuple[str, str] = (REFERENCE, CONTROL),
    minimum_effect: Mapping[str, float] | None = None,
    track: str = "fair",
    tuning: Tuning | None = None,
) -> tuple[GroupedRows, list[SectionBuilder]]:
    """Return the sections of a board with the scores of their cells, before any table is built.

    The arguments are those of `build_board`. Retired versions are left out.
    """
    current, _ = _split_off_retired(_as_table(runs))
    per_entrant = PER_ENTRANT_SETTINGS if track == "as-published" else ()
    grouped = group_rows(current, planned, defaults, per_entrant)
    # Rows are sorted by section, so the rows of each one are a slice.
    bounds = np.searchsorted(grouped.rows["section"], np.arange(len(grouped.sections) + 1))
    slices = [
        {name: column[i:j] for name, column in grouped.rows.items()}
        for i, j in itertools.pairwise(bounds)
    ]
    return grouped, [
        SectionBuilder(
            grouped, identity, rows, controls, minimum_effect or {}, defaults or {}, tuning
        )
        for identity, rows in zip(grouped.sections, slices, strict=True)
    ]


def _as_table(runs: pd.DataFrame | RunTable) -> RunTable:
    return runs if isinstance(runs, RunTable) else read_frame(runs)


# ---- retired versions ----


def _split_off_retired(table: RunTable) -> tuple[RunTable, RunTable | None]:
    """Return the runs that are on the board, and those that were retired from it, if any."""
    is_retired = table.columns["retired"] > 0
    if not is_retired.any():
        return table, None
    return table.take(~is_retired), table.take(is_retired)


def _split_versions(retired: RunTable) -> Iterator[tuple[str, str, RunTable]]:
    """Yield for each version of each method its name, the reason, and its runs.

    The runs are no longer marked as retired, so that a table can be built from them.
    """
    methods = retired.columns["method"]
    versions = np.nan_to_num(retired.columns["method_version"])
    for method, version in sorted({*zip(methods.tolist(), versions.tolist(), strict=True)}):
        table = retired.take((methods == method) & (versions == version))
        reason = retired.vocabularies["retired"][table.columns["retired"][0]]
        unmarked = {"retired": np.zeros(len(table), dtype=np.int64)}
        table = RunTable({**table.columns, **unmarked}, table.vocabularies)
        yield retired.vocabularies["method"][method], reason, table


def _append_retired(
    sections: list[Section],
    builders: Sequence[SectionBuilder],
    own_builders: Sequence[SectionBuilder],
    method: str,
    reason: str,
) -> None:
    """Append the rows of one retired version to the sections that they belong to."""
    for own in own_builders:
        for i, main in enumerate(builders):
            if main.identity == own.identity:
                sections[i] = _append_rows(sections[i], main, own, method, reason)


def _append_rows(
    section: Section, main: SectionBuilder, own: SectionBuilder, method: str, reason: str
) -> Section:
    rows, notes, own_section = list(section.rows), list(section.notes), own.build()
    for row in own_section.rows:
        if row.method == method:
            name = f"{row.entrant}, version {row.version}, retired"
            cells = tuple(_match_columns(main, own, row))
            rows.append(
                dataclasses.replace(row, entrant=name, retired=reason, rank=None, cells=cells)
            )
            notes.append(f"{name}: {reason}")
    tasks = merge_downstream_tasks((section.downstream, own_section.downstream))
    return dataclasses.replace(section, rows=tuple(rows), notes=tuple(notes), downstream=tasks)


def _match_columns(main: SectionBuilder, own: SectionBuilder, row: Row) -> Iterator[BoardCell]:
    """Yield the cells of a row in the order of the columns of the main table."""
    labels = (own.grouped.column_labels[column] for column in own.columns)
    cells = dict(zip(labels, row.cells, strict=True))
    for column in main.columns:
        cell = cells.get(main.grouped.column_labels[column], BoardCell("absent"))
        # Its notes have the numbers of the other table and would point to wrong ones here.
        yield dataclasses.replace(cell, best=False, notes=())
