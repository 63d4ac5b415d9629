"""Rows to a board."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qbench.boards.board import Board
from qbench.boards.retired_rows import below, parted
from qbench.boards.row_groups import Defaults, Tidy, tidy
from qbench.boards.run_table import Table, read_frame
from qbench.boards.section import CONTROL, REFERENCE, SectionMaker
from qbench.sweepfile.tuning_space import Tuning

if TYPE_CHECKING:
    import pandas as pd


OWN_RECIPE = ("recipe", "start")
"""What entrants of the as-published track need not share."""


def build_board(
    runs: pd.DataFrame | Table,
    *,
    planned: pd.DataFrame | Table | None = None,
    defaults: Defaults | None = None,
    reference: str = REFERENCE,
    control: str = CONTROL,
    minimum_effect: Mapping[str, float] | None = None,
    title: str = "",
    track: str = "fair",
    tuning: Tuning | None = None,
) -> Board:
    """The board of a frame of runs (`qbench.results`), and of `planned` runs and skipped cells that it lacks.

    `defaults` are the default parameters of methods and tasks by name: labels spell what differs from them, and the control is the
    entrant of its method that has them all. `minimum_effect` is by task; without one it is the metric's own, or a unit of the last digit
    that the metric prints. In the track `as-published` entrants of different recipes and starts share a section. `tuning` is what a tuned
    board's notes tell of its space; what its trials came to is in the rows.
    """
    kept, gone = parted(runs if isinstance(runs, Table) else read_frame(runs))

    def make(table: Table) -> tuple[Tidy, list[SectionMaker]]:
        return section_makers(
            table,
            planned if table is kept else None,
            defaults,
            (reference, control),
            minimum_effect,
            track,
            tuning,
        )

    data, makers = make(kept)
    sections = [maker.build() for maker in makers]
    if gone is not None:
        controls = kept.take(
            np.isin(
                kept.columns["method"], [kept.code("method", name) for name in (reference, control)]
            )
        )
        sections = below(sections, makers, gone, controls, lambda table: make(table)[1])
    return Board(title, tuple(sections), tuple(data.notes), len(data.rows["key"]))


def section_makers(
    runs: pd.DataFrame | Table,
    planned: pd.DataFrame | Table | None,
    defaults: Defaults | None,
    controls: tuple[str, str] = (REFERENCE, CONTROL),
    minimum_effect: Mapping[str, float] | None = None,
    track: str = "fair",
    tuning: Tuning | None = None,
) -> tuple[Tidy, list[SectionMaker]]:
    """The sections of a board, each with the scores of its cells at their best learning rates."""
    runs, _ = parted(runs if isinstance(runs, Table) else read_frame(runs))
    data = tidy(runs, planned, defaults, OWN_RECIPE if track == "as-published" else ())
    bounds = np.searchsorted(data.rows["section"], np.arange(len(data.sections) + 1))
    parts = [
        {name: column[i:j] for name, column in data.rows.items()}
        for i, j in itertools.pairwise(bounds)
    ]
    return data, [
        SectionMaker(data, identity, part, controls, minimum_effect or {}, defaults or {}, tuning)
        for identity, part in zip(data.sections, parts, strict=True)
    ]
