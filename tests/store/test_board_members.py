"""The members of a board are kept in a file, which restores the board in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

import qbench
from qbench.errors import QbenchError, UsageError
from qbench.store.board_members import save_board_members
from qbench.store.connection import DATABASE, SNAPSHOT
from qbench.store.consistency import rebuild_store
from qbench.store.database import Store
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.board_members import make_board_members
from qbench.sweeps.plan import make_plan
from tests.run_folders import fake_board_members, make_run_config
from tests.store.conftest import read_rows


def test_a_board_shows_missing_and_skipped_runs(filled: Path) -> None:
    cells = [
        (make_run_config(), None),
        (make_run_config(method="fp", fmt=None), None),
        (make_run_config(method="x"), "x has no rule for int4"),
    ]
    with Store(filled) as store:
        store.save_board(fake_board_members("b", cells, 7, title="A board"))
        store.write_snapshot()
    board = qbench.results(filled).board("b")
    states = {
        row.method: (row.cells[0].state, row.cells[0].seeds, row.cells[0].asked)
        for row in board.sections[0].rows
    }
    assert board.title == "A board" and board.runs == 5 + 2 + 7 + 7
    assert states["ste"] == ("partial", 5, 7)
    assert states["fp"][0] == "planned"
    assert states["x"][0] == "skipped"
    frame = qbench.results(filled).cells("b").set_index("method")
    assert frame.loc["ste", "seeds"] == 5
    assert "no rule for int4" in str(frame.loc["x", "notes"])


def test_a_board_that_is_swept_again_is_replaced(filled: Path) -> None:
    with Store(filled) as store:
        store.save_board(fake_board_members("b", [(make_run_config(), None)], 2))
        store.write_snapshot()
    assert qbench.results(filled).board("b").runs == 2


def test_the_file_of_the_members_restores_the_board(filled: Path) -> None:
    for name in (DATABASE, SNAPSHOT):
        (filled / name).unlink()
    assert qbench.results(filled).board("b").runs == 5


def test_a_damaged_file_of_members_is_one_line(filled: Path) -> None:
    (filled / "boards" / "b.json").write_text("{")
    with pytest.raises(QbenchError, match=r"b\.json: damaged; sweep the board's file again"):
        rebuild_store(filled)
    assert len(read_rows(filled)) == 5


def test_the_members_of_a_real_plan_are_its_runs() -> None:
    text = (
        'board = "r"\nseeds = 2\nmethods = ["fp", "rtn", "ste"]\n'
        'tasks = ["toy"]\nformats = ["int2"]\n'
    )
    plan = make_plan(parse_sweep(text, "r.toml"))
    members = make_board_members(plan)
    keys = [key for cell in members["cells"] for key in cell["keys"]]
    assert sorted(keys) == sorted(plan.runs)
    assert {cell["label"] for cell in members["cells"]} == {"fp", "rtn", "ste"}
    assert "scale" in members["defaults"]["rtn"]


def test_a_base_that_the_file_does_not_name_is_not_on_the_board() -> None:
    text = 'board = "r"\nmethods = ["rtn"]\ntasks = ["toy"]\nformats = ["int2"]\n'
    plan = make_plan(parse_sweep(text, "r.toml"))
    assert len(plan.runs) == 2
    assert [cell["label"] for cell in make_board_members(plan)["cells"]] == ["rtn"]


def test_errors_about_unknown_boards_and_runs_are_one_line(filled: Path) -> None:
    save_board_members(filled, fake_board_members("quack", [(make_run_config(), None)], 1))
    rebuild_store(filled)
    with pytest.raises(UsageError, match="unknown board 'quick'; did you mean quack"):
        qbench.results(filled).board("quick")
    with pytest.raises(UsageError, match="0 runs with a curve"):
        qbench.results(filled).curve("zzz")
