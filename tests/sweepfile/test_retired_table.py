"""Versions that were withdrawn: shown with their reason and their numbers, asked of nobody, compared with nobody."""

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
from tests.synthetic_runs import DEFAULTS, frame, runs

SEEDS = 12
SWEEP = 'board = "b"\nseeds = 2\nmethods = ["fp", "rtn", "pege"]\ntasks = ["digits"]\nformats = ["int2", "int4"]\nrecipe.steps = 10\n'
REASON = "its pull was measured on clipped weights"
TABLE = f'[[retired]]\nmethod = "pege"\nversion = 1\nreason = "{REASON}"\n'


def plan(text: str = SWEEP + TABLE) -> Plan:
    return make_plan(parse_sweep(text, "s.toml"))


def scores(mean: float) -> list[float]:
    return (
        mean + 0.001 * np.random.default_rng(round(1000 * mean)).standard_normal(SEEDS)
    ).tolist()


def rows(*more: Sequence[dict[str, Any]]) -> Board:
    fp, rtn = runs("fp", None, scores(0.10)), runs("rtn", "int4", scores(0.30))
    kept = [{**row, "method_version": 2} for row in runs("ste", "int4", scores(0.15))]
    return build_board(
        frame(fp, rtn, kept, runs("lsq", "int4", scores(0.20)), *more), defaults=DEFAULTS
    )


def test_it_has_its_numbers_and_its_reason_and_moves_nothing() -> None:
    old = [
        {**row, "retired": REASON, "packed": row["packed"] + 1e-4 * row["seed"]}
        for row in runs("ste", "int4", scores(0.11))
    ]
    (before,), (after,) = rows().sections, rows(old).sections
    assert after.rows[:-1] == before.rows and after.notes[: len(before.notes)] == before.notes
    last = after.rows[-1]
    assert (
        last.entrant == "ste, version 1, retired"
        and last.retired == REASON
        and last.rank is None
        and not last.cells[0].best
    )
    assert last.cells[0].gap is not None and last.cells[0].gap.value == pytest.approx(
        0.947, abs=0.01
    )
    assert after.notes[-1] == f"ste, version 1, retired: {REASON}"
    assert [row.rank for row in after.rows if row.rank] == [(3, 3), (1, 1), (2, 2)], (
        "rounding, STE, LSQ: it would have been first"
    )
    board = rows(old)
    assert REASON in to_markdown(board) and "ste, version 1, retired" in to_csv(board)


def test_nothing_of_it_is_trained_and_its_keys_are_those_of_the_older_version() -> None:
    made = plan()
    assert made.runs.keys() == plan(SWEEP).runs.keys()
    assert [
        (cell.example.method, cell.example.method_version, cell.retired) for cell in made.retired
    ] == [("pege", 1, REASON)] * 2
    now = next(cell for cell in made.cells if cell.example.method == "pege")
    assert made.retired[0].key(0) == dataclasses.replace(now.example, seed=0, method_version=1).key


def test_the_board_of_a_results_folder_shows_it_and_comes_back_from_its_rows(
    tmp_path: Path,
) -> None:
    made = plan()
    for seed in (0, 1):
        for run in made.runs.values():
            if run.seed == seed:
                make_attempt(tmp_path, run.config, score=0.5 - 0.1 * seed)
        for cell in made.retired[:1]:
            make_attempt(tmp_path, dataclasses.replace(cell.example, seed=seed), score=0.9)
    with Store(tmp_path, rebuild=True) as store:
        store.save_board(make_board_members(made))
        store.write_snapshot()
    found = Results(tmp_path)
    (section,) = found.board("b").sections
    assert [row.entrant for row in section.rows] == [
        "fp",
        "rtn",
        "pege",
        "pege, version 1, retired",
    ]
    assert [cell.state for cell in section.rows[-1].cells] == ["ok", "absent"], (
        "what was never trained is not missed"
    )
    assert (
        section.rows[-1].cells[0].score is not None and section.rows[-1].cells[0].score.value == 0.9
    )
    text = runs_csv(found.board_runs("b"))
    again = build_board(read_runs_csv(io.StringIO(text)), defaults=make_board_members(made)["defaults"])
    assert [row.entrant for row in again.sections[0].rows] == [row.entrant for row in section.rows]
    assert {c.section for c in found.compare("pege", "rtn", "b")} == {"digits/xs"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("version = 1", "version = 2"), "not older than the one that is trained"),
        (('method = "pege"', 'method = "lsq"'), "'lsq' is no method of this sweep"),
        (('method = "pege"', 'method = "rtn"'), "rtn is a control"),
        (("version = 1\n", ""), "write method, version, reason, and nothing else"),
        (("version = 1", "version = 0"), "version: a whole number from 1"),
        (("[[retired]]", "[retired]"), "write [[retired]]"),
        (
            (
                "[[retired]]",
                "[tuning]\ntrials = 2\nlr = { low = 0.001, high = 0.1, log = true }\n[[retired]]",
            ),
            "not beside [tuning]",
        ),
    ],
)
def test_what_cannot_be_retired_is_one_line(change: tuple[str, str], says: str) -> None:
    with pytest.raises(UsageError) as error:
        plan((SWEEP + TABLE).replace(*change))
    assert says in str(error.value) and "\n" not in str(error.value)
