"""What is not published: a board without its controls, of several versions, or without a finished run. One line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.boards.board import Board, Row, Section
from qbench.errors import QbenchError
from qbench.publish.plain_values import plain

if TYPE_CHECKING:
    import pandas as pd


VERSIONS = (("board_version", ""), ("task_version", "task"), ("method_version", "method"))


def admit(name: str, board: Board, runs: pd.DataFrame) -> None:
    """Raises what keeps a board from being published."""
    if runs.empty or not (runs["state"] == "ok").any():
        raise QbenchError(
            f"board {plain(name)}: no finished run, so there is nothing to publish; `qbench sweep FILE` trains them"
        )
    if mixed := _mixed(runs[runs["retired"].isna()] if "retired" in runs else runs):
        raise QbenchError(
            f"board {plain(name)} mixes versions, which do not compare: {'; '.join(mixed)}; `qbench sweep FILE` trains what is of older ones again"
        )
    for section in board.sections:
        for row in section.rows:
            if row.main and row.role and _never_ran(row):
                raise QbenchError(_without(name, section, row))


def _mixed(runs: pd.DataFrame) -> list[str]:
    """`method lsq 1, 2` for whatever has more than one version."""
    found = []
    for version, of in VERSIONS:
        for what, part in runs.groupby(of, sort=True) if of else [("", runs)]:
            numbers = sorted({int(n) for n in part[version].dropna()})
            if len(numbers) > 1:
                found.append(
                    f"{of or 'board'}{f' {plain(what)}' if of else ''} {', '.join(map(str, numbers))}"
                )
    return found


def _never_ran(row: Row) -> bool:
    return all(cell.state in ("absent", "planned") for cell in row.cells)


def _without(name: str, section: Section, row: Row) -> str:
    kind = (
        "full precision"
        if row.role == "reference"
        else "rounding to nearest with default parameters"
    )
    where = f"board {plain(name)}, {plain(section.title)}"
    if row.version:
        return f"{where}: the control {row.method} ({kind}) has no finished run; `qbench sweep FILE` trains it"
    return f'{where}: the control {row.method} ({kind}) is missing; add "{row.method}" to `methods` in the sweep file and run `qbench sweep FILE`'
