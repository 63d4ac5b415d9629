"""Retired versions are shown with their reason and scores; nothing is trained or compared."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbench.analysis.results import Results
from qbench.boards.board import Board
from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.errors import UsageError
from qbench.store.database import Store
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.board_members import make_board_members
from qbench.sweeps.cells import Plan
from qbench.sweeps.plan import make_plan
from tests.run_folders import make_attempt
from tests.synthetic_runs import DEFAULTS, make_frame, make_runs

SEEDS = 12
SWEEP = """
board = "b"
seeds = 2
methods = ["fp", "rtn", "pege"]
tasks = ["digits"]
formats = ["int2", "int4"]
recipe.steps = 10
"""
REASON = "its pull was measured on clipped weights"
TABLE = f'[[retired]]\nmethod = "pege"\nversion = 1\nreason = "{REASON}"\n'


def plan_text(text: str = SWEEP + TABLE) -> Plan:
    return make_plan(parse_sweep(text, "s.toml"))


def draw_scores(mean: float) -> list[float]:
    rng = np.random.default_rng(round(1000 * mean))
    return [float(score) for score in mean + 0.001 * rng.standard_normal(SEEDS)]


def build_test_board(*more: Sequence[dict[str, Any]]) -> Board:
    """Return a board of two controls and two methods, of which STE is at version 2."""
    fp, rtn = make_runs("fp", None, draw_scores(0.10)), make_runs("rtn", "int4", draw_scores(0.30))
    ste = [{**row, "method_version": 2} for row in make_runs("ste", "int4", draw_scores(0.15))]
    lsq = make_runs("lsq", "int4", draw_scores(0.20))
    return build_board(make_frame(fp, rtn, ste, lsq, *more), defaults=DEFAULTS)


def test_a_retired_version_is_shown_with_its_reason_and_changes_no_other_row() -> None:
    old = [
        {**row, "retired": REASON, "packed": row["packed"] + 1e-4 * row["seed"]}
        for row in make_runs("ste", "int4", draw_scores(0.11))
    ]
    (before,), (after,) = build_test_board().sections, build_test_board(old).sections
    assert after.rows[:-1] == before.rows
    assert after.notes[: len(before.notes)] == before.notes
    last = after.rows[-1]
    assert last.entrant == "ste, version 1, retired" and last.retired == REASON
    assert last.rank is None and not last.cells[0].best
    gap = last.cells[0].gap
    assert gap is not None and gap.value == pytest.approx(0.947, abs=0.01)
    assert after.notes[-1] == f"ste, version 1, retired: {REASON}"
    assert [row.rank for row in after.rows if row.rank] == [(3, 3), (1, 1), (2, 2)], (
        "RTN, STE, LSQ: the retired version would have been first"
    )
    board = build_test_board(old)
    assert REASON in to_markdown(board) and "ste, version 1, retired" in to_csv(board)


def test_a_retired_version_is_not_trained_and_has_the_keys_of_the_older_version() -> None:
    plan = plan_text()
    assert plan.runs.keys() == plan_text(SWEEP).runs.keys()
    assert [
        (cell.example.method, cell.example.method_version, cell.retired) for cell in plan.retired
    ] == [("pege", 1, REASON)] * 2
    now = next(cell for cell in plan.cells if cell.example.method == "pege")
    older = dataclasses.replace(now.example, seed=0, method_version=1)
    assert plan.retired[0].key(0) == older.key


def test_the_board_of_a_results_folder_shows_it_and_is_rebuilt_from_its_csv(
    tmp_path: Path,
) -> None:
    plan = plan_text()
    for seed in (0, 1):
        for run in plan.runs.values():
            if run.seed == seed:
                make_attempt(tmp_path, run.config, score=0.5 - 0.1 * seed)
        for cell in plan.retired[:1]:
            make_attempt(tmp_path, dataclasses.replace(cell.example, seed=seed), score=0.9)
    members = make_board_members(plan)
    with Store(tmp_path, rebuild=True) as store:
        store.save_board(members)
        store.write_snapshot()
    results = Results(tmp_path)
    (section,) = results.board("b").sections
    entrants = [row.entrant for row in section.rows]
    assert entrants == ["fp", "rtn", "pege", "pege, version 1, retired"]
    cells = section.rows[-1].cells
    assert [cell.state for cell in cells] == ["ok", "absent"], (
        "a retired cell that was never trained does not count as missing"
    )
    assert cells[0].score is not None and cells[0].score.value == 0.9
    text = runs_csv(results.board_runs("b"))
    again = build_board(read_runs_csv(io.StringIO(text)), defaults=members["defaults"])
    assert [row.entrant for row in again.sections[0].rows] == entrants
    assert {c.section for c in results.compare("pege", "rtn", "b")} == {"digits/xs"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("version = 1", "version = 2"), "not older than the one that is trained"),
        (('method = "pege"', 'method = "lsq"'), "'lsq' is no method of this sweep"),
        (('method = "pege"', 'method = "rtn"'), "rtn is a control"),
        (("version = 1\n", ""), "write method, version, reason, and nothing else"),
        (("version = 1", "version = 0"), "version: expected an integer from 1"),
        (("[[retired]]", "[retired]"), "write [[retired]]"),
        (
            (
                "[[retired]]",
                "[tuning]\ntrials = 2\nlr = { low = 0.001, high = 0.1, log = true }\n[[retired]]",
            ),
            "cannot be combined with [tuning]",
        ),
    ],
)
def test_errors_about_retired_tables_are_one_line(change: tuple[str, str], expected: str) -> None:
    with pytest.raises(UsageError) as error:
        plan_text((SWEEP + TABLE).replace(*change))
    assert expected in str(error.value) and "\n" not in str(error.value)
