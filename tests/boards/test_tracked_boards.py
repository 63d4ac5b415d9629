"""The boards in results/: their tables follow from runs.csv, and sweep.toml asks for those runs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, to_csv
from qbench.plugins.describe import list_defaults
from qbench.plugins.registry import load
from qbench.sweepfile.read import read_sweep_file
from qbench.sweeps.cells import Plan
from qbench.sweeps.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted(folder.parent.name for folder in ROOT.glob("results/*/runs.csv"))


def plan_board(board: str) -> Plan:
    """Return the plan of a board; a tuned one uses the values that its tracked trials lead to."""
    runs = read_runs_csv(ROOT / "results" / board / "runs.csv")
    outcomes = {
        key: value if state == "ok" else None
        for key, state, value in zip(runs["key"], runs["state"], runs["validation"], strict=True)
    }
    return make_plan(read_sweep_file(ROOT / "results" / board / "sweep.toml"), outcomes)


def read_trained_cells(text: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the cells of a leaderboard.csv that were trained."""
    found = {
        (r["task"], r["setting"], r["entrant"], r["format"]): r
        for r in csv.DictReader(io.StringIO(text))
    }
    return {
        place: row for place, row in found.items() if row["state"] in ("ok", "partial", "failed")
    }


@pytest.mark.parametrize("board", BOARDS)
def test_a_tracked_table_follows_from_its_runs(board: str) -> None:
    folder = ROOT / "results" / board
    runs = read_runs_csv(folder / "runs.csv")
    known = {name: list_defaults(load("methods", name)) for name in runs["method"].unique()}
    known |= {name: list_defaults(load("tasks", name)) for name in runs["task"].unique()}
    made = read_trained_cells(
        to_csv(
            build_board(runs, defaults=known, tuning=read_sweep_file(folder / "sweep.toml").tuning)
        )
    )
    tracked = read_trained_cells((folder / "leaderboard.csv").read_text(encoding="utf-8"))
    assert set(made) == set(tracked)
    for place, row in tracked.items():
        assert {k: v for k, v in made[place].items() if k != "notes"} == {
            k: v for k, v in row.items() if k != "notes"
        }, place


@pytest.mark.parametrize("board", BOARDS)
def test_a_tracked_board_holds_the_runs_that_its_sweep_file_asks_for(board: str) -> None:
    asked = {key for key, run in plan_board(board).runs.items() if not run.cell.extra}
    assert set(read_runs_csv(ROOT / "results" / board / "runs.csv")["key"].dropna()) == asked


def test_the_readme_links_every_board() -> None:
    folders = {folder.parent.name for folder in ROOT.glob("results/*/sweep.toml")}
    told = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for board in folders:
        assert f"({board}/notes.md)" in told and (ROOT / "results" / board / "notes.md").exists()
