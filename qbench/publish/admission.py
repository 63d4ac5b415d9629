"""Refuse to publish a board that lacks a control, mixes versions, or has no finished run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.boards.board import Board, Row, Section
from qbench.errors import QbenchError
from qbench.publish.plain_values import to_plain_text

if TYPE_CHECKING:
    import pandas as pd


VERSIONS = (("board_version", ""), ("task_version", "task"), ("method_version", "method"))
"""Columns with a version, and the column with the name of what it is a version of."""


def refuse_unpublishable(name: str, board: Board, runs: pd.DataFrame) -> None:
    """Raise a `QbenchError` if the board must not be published."""
    if runs.empty or not (runs["state"] == "ok").any():
        raise QbenchError(
            f"board {to_plain_text(name)}: no finished run, so there is nothing to publish; "
            "`qbench sweep FILE` trains them"
        )
    # A retired version has a row of its own and is compared with nobody.
    current = runs[runs["retired"].isna()] if "retired" in runs else runs
    if mixed := _list_mixed_versions(current):
        raise QbenchError(
            f"board {to_plain_text(name)} mixes versions, which do not compare: "
            f"{'; '.join(mixed)}; `qbench sweep FILE` trains the runs of older versions again"
        )
    for section in board.sections:
        for row in section.rows:
            if row.main and row.role and _has_no_run(row):
                raise QbenchError(_explain_missing_control(name, section, row))


def _list_mixed_versions(runs: pd.DataFrame) -> list[str]:
    """Return a phrase such as `method lsq 1, 2` for everything with more than one version."""
    mixed = []
    for version, kind in VERSIONS:
        for name, part in runs.groupby(kind, sort=True) if kind else [("", runs)]:
            numbers = sorted({int(n) for n in part[version].dropna()})
            if len(numbers) > 1:
                subject = f"{kind} {to_plain_text(name)}" if kind else "board"
                mixed.append(f"{subject} {', '.join(map(str, numbers))}")
    return mixed


def _has_no_run(row: Row) -> bool:
    return all(cell.state in ("absent", "planned") for cell in row.cells)


def _explain_missing_control(name: str, section: Section, row: Row) -> str:
    kind = "rounding to nearest with default parameters"
    if row.role == "reference":
        kind = "full precision"
    control = (
        f"board {to_plain_text(name)}, {to_plain_text(section.title)}: "
        f"the control {row.method} ({kind})"
    )
    # Version 0 stands for a control that the sweep file does not ask for.
    if row.version:
        return f"{control} has no finished run; `qbench sweep FILE` trains it"
    return (
        f'{control} is missing; add "{row.method}" to `methods` in the sweep file and run '
        "`qbench sweep FILE`"
    )
