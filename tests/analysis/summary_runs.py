"""Runs of small boards whose summary can be computed by hand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from qbench.analysis.equal_time import ValidationCurves
from qbench.analysis.summary import BoardSummary, summarise_board
from qbench.boards.build import make_section_builders
from qbench.terminal.summary import show_summary
from tests.synthetic_runs import DEFAULTS, make_frame, make_runs

Rows = list[dict[str, Any]]
FP = [0.100, 0.102, 0.098, 0.101]
RTN = {"int2": [0.40, 0.45, 0.43, 0.41], "int4": [0.20, 0.22, 0.21, 0.20]}
STE = {"int2": [0.30, 0.36, 0.32, 0.33], "int4": [0.13, 0.14, 0.15, 0.12]}


def make_section(
    fp: Sequence[float], rtn: dict[str, Any], task: str = "digits", **methods: dict[str, Any]
) -> Rows:
    """Return the runs of a section; scores are given by method and format."""
    rows = make_runs("fp", None, fp, task=task)
    for method, cells in {"rtn": rtn, **methods}.items():
        for fmt, scores in cells.items():
            rows += make_runs(method, fmt, scores, task=task)
    return rows


def summarise(*parts: Rows, curves: ValidationCurves | None = None) -> BoardSummary:
    builders = make_section_builders(make_frame(*parts), None, DEFAULTS)[1]
    return summarise_board(builders, curves or {}, "title")


def print_summary(summary: BoardSummary, width: int = 120) -> str:
    """Return what is printed, with single blanks instead of the layout."""
    out = io.StringIO()
    show_summary(summary, Console(file=out, width=width))
    return " ".join(out.getvalue().split())
