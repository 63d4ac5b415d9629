"""Tuned sweeps that really train: trials, choices, final runs, interruptions, and the boards."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qbench.analysis.results import Results
from qbench.boards.board import Board, BoardCell
from qbench.boards.board_text import describe_best_of_trials, format_chosen_values
from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.engines.local import local_engine
from qbench.execution.assignment import Execution
from qbench.plugins.describe import list_defaults
from qbench.plugins.registry import load
from qbench.publish.site import publish_site
from qbench.runs.attempts import iterate_attempts
from qbench.store.consistency import rebuild_store
from qbench.store.database import Store
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import SweepSummary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import read_sweep_status
from qbench.terminal.board import show_board
from qbench.terminal.plan import show_plan
from tests import SOAK
from tests.stage import stage
from tests.sweeps.test_coordinator import DRIVER, StartProcess, start_process, wait_until

__all__ = ["stage", "start_process"]


pytestmark = pytest.mark.usefixtures("stage")

QUICK = Execution(device="cpu", checkpoint_s=0.2)
HEAD = (
    'board = "tuned"\nseeds = 3\ntasks = ["toy"]\nformats = ["int2", "int4"]\nrecipe.steps = 20\n'
)
FOUR = (
    "[tuning]\ntrials = 4\nlr = { low = 1e-4, high = 1e-1, log = true }\n"
    "weight_decay = { values = [0.0, 0.1, 0.2] }\n"
)
BOARD = (
    HEAD
    + 'methods = ["fp", "rtn", "ste", "lsq"]\n'
    + FOUR
    + "[tuning.own.lsq]\nrate = { low = 0.1, high = 10, log = true }\n"
)
HALVED = (
    HEAD.replace('"int2", ', "")
    + 'methods = ["fp", "rtn", "ste"]\n'
    + FOUR
    + "halving = { rungs = [0.25], keep = 0.5 }\n"
)
FRAGILE = """
board = "fragile"
seeds = 2
tasks = ["stage"]
formats = ["int4"]
methods = ["plain"]
[[method]]
name = "actor"
role = "nan"
label = "Fragile"
[[method]]
name = "actor"
role = "nan"
at = 3
label = "Hopeless"
[tuning]
trials = 4
lr = { low = 1e-3, high = 1e-1, log = true }
"""


def run_sweep_text(
    text: str, results: Path, listener: Any = None, group: int | None = None
) -> SweepSummary:
    config, execution = parse_sweep(text, "s.toml"), dataclasses.replace(QUICK, group=group)
    with local_engine(config, execution, 2) as engine:
        return run_sweep(config, results, engine, execution, listener)


@pytest.fixture(scope="module")
def board(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which BOARD was swept without interruption."""
    results = tmp_path_factory.mktemp("tuned")
    summary = run_sweep_text(BOARD, results)
    assert (summary.failed, summary.left, summary.code) == (0, 0, 0)
    return results


def make_config(text: str = BOARD) -> SweepConfig:
    return parse_sweep(text, "s.toml")


def list_attempt_names(results: Path) -> set[str]:
    return {f"{a.key}/{a.number}" for a in iterate_attempts(results)}


def read_outcomes(results: Path) -> dict[str, float | None]:
    """Return the validation of every finished run by key, from the files; None for a failed one."""
    found = {a.key: a.read("result") for a in iterate_attempts(results)}
    return {
        key: (r.get("scores") or {}).get("validation") if r["state"] == "ok" else None
        for key, r in found.items()
        if r
    }


def iterate_cells(shown: Board) -> Iterator[tuple[str, str, BoardCell]]:
    for row in shown.sections[0].rows:
        for column, cell in zip(
            ["fp32"] if row.spans_columns else [c.format for c in shown.sections[0].columns],
            row.cells,
            strict=True,
        ):
            yield row.entrant, column, cell


def print_board(shown: Board, width: int = 160) -> str:
    out = io.StringIO()
    show_board(shown, Console(file=out, width=width))
    return out.getvalue()


# ---- what is trained ----


def test_trials_are_followed_by_final_runs_and_a_second_sweep_trains_nothing(
    board: Path,
) -> None:
    plan, before = make_plan(make_config(), read_outcomes(board)), list_attempt_names(board)
    assert not plan.waiting and {f"{key}/1" for key in plan.runs} == before
    stages = Counter((run.cell.stage, run.seed) for run in plan.runs.values() if not run.cell.extra)
    assert stages == {("trial", 1000): 4 * 7} | {("final", seed): 7 for seed in range(3)}
    summary = run_sweep_text(BOARD, board)
    assert summary.cached == len(plan.runs) == summary.ok and list_attempt_names(board) == before


def test_the_trial_with_the_best_validation_is_chosen(board: Path) -> None:
    frame = Results(board).board_runs("tuned")
    for _, cell in frame.groupby(["label", frame["weights_format"].fillna("")]):
        trials, finals = cell[cell["stage"] == "trial"], cell[cell["stage"] == "final"]
        best = trials.loc[trials["validation"].idxmin()]
        assert (
            set(finals["chosen"]) == {best["chosen"]}
            and set(finals["trial"]) == {best["trial"]}
            and len(finals) == 3
        )
        assert json.loads(best["chosen"])["lr"] == best["lr"] == finals["lr"].iloc[0]
        assert set(trials["seed"]) == {1000} and set(finals["seed"]) == {0, 1, 2}


class Crash(BaseException):
    """An error that no part of a sweep handles."""


class CrashingListener:
    """Crashes the sweep after `at` runs, or between two phases if `at` is None."""

    def __init__(self, at: int | None) -> None:
        self.at, self.finished, self.plans, self.counts = at, 0, list[int](), (0, 0)

    def start(self, total: int, cached: int) -> None:
        self.counts = (total, cached)

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        self.finished += kind == "finished"
        if kind == "planned":
            self.plans.append(details["total"])
        if self.at == self.finished or (self.at is None and kind == "planned"):
            raise Crash

    def stop(self, summary: Any) -> None: ...


def test_a_sweep_that_crashes_in_any_phase_gives_the_same_board(
    board: Path, tmp_path: Path
) -> None:
    for at in (3, None, 2, None, 4):
        with pytest.raises(Crash):
            run_sweep_text(BOARD, tmp_path, CrashingListener(at))
    summary = run_sweep_text(BOARD, tmp_path)
    assert (summary.failed, summary.left) == (0, 0)
    assert set(read_outcomes(tmp_path)) == set(read_outcomes(board)) and read_outcomes(
        tmp_path
    ) == read_outcomes(board)
    assert board_without_costs(Results(tmp_path).board()) == board_without_costs(
        Results(board).board()
    )


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_gives_the_same_board(
    start_process: StartProcess, board: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(BOARD)
    (tmp_path / "driver.py").write_text(DRIVER)
    chance, results, done = random.Random(), tmp_path / "killed", 0
    for _ in range(40 if SOAK else 3):
        process = start_process(tmp_path / "driver.py", tmp_path / "s.toml", results)
        wait_until(
            lambda p=process, n=done: len(read_outcomes(results)) > n or p.poll() is not None
        )  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1))
        process.kill()
        process.wait()
        done = len(read_outcomes(results))
    run_sweep_text(BOARD, results)
    assert read_outcomes(results) == read_outcomes(board) and board_without_costs(
        Results(results).board()
    ) == board_without_costs(Results(board).board())


def board_without_costs(shown: Board) -> dict[str, Any]:
    """Return a board as plain data, without measured times."""
    data = shown.to_json()
    for section in data["sections"]:
        for row in section["rows"]:
            row.pop("cost")
    return data


def test_status_of_an_interrupted_sweep_lists_pending_choices(board: Path, tmp_path: Path) -> None:
    class Interrupter(CrashingListener):
        def event(self, kind: str, run_label: str, **details: Any) -> None:
            self.finished += kind == "finished"
            if self.finished == 2:
                raise Crash

    with pytest.raises(Crash):
        run_sweep_text(BOARD, tmp_path, Interrupter(None), group=1)
    lines = read_sweep_status(make_config(), tmp_path)
    states = Counter(line.run_state.state for line in lines)
    assert (
        states["cached"] in (2, 3)
        and states["waiting"] == 7
        and states["cached"] + states["new"] + states["lost"] == 28
    )
    out = io.StringIO()
    show_plan(lines, Console(file=out, width=160))
    said = out.getvalue()
    assert (
        "ste int2 toy/xs  " in said and "3 runs, chosen when its trials are done: 4 to go" in said
    )
    assert "21    chosen when their trials are done" in said, "final runs are counted, not cells"
    assert {
        state for _, _, cell in iterate_cells(Results(tmp_path).board()) for state in [cell.state]
    } == {"planned"}
    assert len(
        [
            line
            for line in read_sweep_status(make_config(), board)
            if line.run_state.state == "cached"
        ]
    ) == len(list_attempt_names(board))


def test_a_listener_receives_the_number_of_runs(tmp_path: Path) -> None:
    class Counting(CrashingListener):
        def event(self, kind: str, run_label: str, **details: Any) -> None:
            if kind == "planned":
                self.plans.append(details["total"])
            self.finished += kind == "finished"

    heard = Counting(None)
    run_sweep_text(HALVED, tmp_path, heard)
    assert heard.counts == (3 * (4 + 2 + 3), 0), (
        "final runs are counted before they are chosen; their bases are not known yet"
    )
    assert (
        heard.plans[-1] == heard.finished == len(list_attempt_names(tmp_path))
        and len(heard.plans) >= 2
    )


def test_halving_trains_shorter_runs_first(tmp_path: Path) -> None:
    run_sweep_text(HALVED, tmp_path)
    found = Results(tmp_path)
    frame = found.board_runs("tuned")
    trials = frame[frame["stage"] == "trial"]
    assert Counter(zip(trials["label"], trials["rung"], trials["steps"], strict=True)) == {
        (label, rung, steps): n
        for label in ("fp", "rtn", "ste")
        for rung, steps, n in ((0, 5, 4), (1, 20, 2))
    }
    shown = found.board()
    assert len(shown.sections) == 1 and "20 steps" in shown.sections[0].setting
    for label, _, cell in iterate_cells(shown):
        own = trials[trials["label"] == label]
        short, whole = own[own["rung"] == 0], own[own["rung"] == 1]
        assert set(whole["trial"]) == set(short.nsmallest(2, "validation")["trial"])
        assert cell.chosen == json.loads(whole.loc[whole["validation"].idxmin(), "chosen"])
        assert cell.trials == 4 and cell.best_of_share == 0.25 and len(cell.best_of) == 4
        assert cell.best_of[-1] == pytest.approx(
            short.loc[short["validation"].idxmin(), "packed"]
        ), "the curve is computed at the rung that has all trials"
    assert "4 trials with 25 % of the steps" in describe_best_of_trials(shown.sections[0])[0]
    assert to_csv(rebuild_from_csv(found, HALVED)) == to_csv(shown)


# ---- what fails ----


def test_a_cell_whose_trials_all_failed_is_shown_as_failed(
    tmp_path: Path,
) -> None:
    own_axes = "[tuning.own.actor]\nseconds = { values = [0.0, 0.001] }\n"
    summary = run_sweep_text(FRAGILE + own_axes, tmp_path)
    assert summary.failed == 4 * 2 and summary.code == 3
    lines = [
        line
        for line in read_sweep_status(make_config(FRAGILE + own_axes), tmp_path)
        if line.run_state.state == "untuned"
    ]
    assert [line.title for line in lines] == ["Fragile int4 stage/xs", "Hopeless int4 stage/xs"]
    found = Results(tmp_path)
    for shown in (found.board(), rebuild_from_csv(found, FRAGILE + own_axes)):
        by_label = {label: cell for label, _, cell in iterate_cells(shown) if label != "fp"}
        assert set(by_label) >= {"plain", "Fragile", "Hopeless"}
        for label in ("Fragile", "Hopeless"):
            cell = by_label[label]
            assert (cell.state, cell.asked, dict(cell.failures), cell.score, cell.chosen) == (
                "failed",
                2,
                {"untuned": 2},
                None,
                {},
            )
            assert (
                cell.message == "none of its 4 trials succeeded, so there is nothing to choose"
                and cell.best_of == (None,) * 4
            )
        assert by_label["plain"].state == "ok"
        assert "untuned" in to_markdown(shown)
    assert to_csv(rebuild_from_csv(found, FRAGILE + own_axes)) == to_csv(found.board())


def test_failed_trials_are_counted_and_never_chosen(tmp_path: Path) -> None:
    text = (
        FRAGILE[: FRAGILE.index("[[method]]")]
        + '[[method]]\nname = "actor"\nrole = "nan"\nlabel = "Fragile"\n'
    )
    text += FRAGILE[FRAGILE.index("[tuning]") :] + "[tuning.own.actor]\nat = { values = [3, 50] }\n"
    run_sweep_text(text, tmp_path)
    shown = Results(tmp_path).board()
    (fragile,) = (cell for label, _, cell in iterate_cells(shown) if label == "Fragile")
    assert fragile.state == "ok" and fragile.chosen["at"] == 50
    failed = sum(value is None for value in fragile.best_of)
    assert (
        failed == 2 and fragile.best_of[:2] == (None, None) and fragile.best_of[-1] is not None
    ), "two of four trials have at = 3"


def test_the_choice_waits_for_a_retried_trial_and_may_change(
    tmp_path: Path,
) -> None:
    actor = f'[[method]]\nname = "actor"\nrole = "raise"\nonce = "{tmp_path / "once"}"\n'
    text = (
        FRAGILE[: FRAGILE.index("[[method]]")].replace("fragile", "again")
        + actor
        + FRAGILE[FRAGILE.index("[tuning]") :]
    )
    first = run_sweep_text(text, tmp_path)
    assert first.failed in (1, 2) and first.left == 0, (
        "two workers may reach the marker at the same time"
    )
    assert [
        cell.state
        for label, _, cell in iterate_cells(Results(tmp_path).board())
        if label.startswith("actor")
    ] == ["ok"]
    waiting = [
        line.title
        for line in read_sweep_status(make_config(text), tmp_path)
        if line.run_state.state == "waiting"
    ]
    assert len(waiting) == 1 and waiting[0].startswith("actor"), (
        "its failed trial is trained again and takes part in the choice"
    )
    second = run_sweep_text(text, tmp_path)
    assert (second.failed, second.left) == (0, 0)
    frame = Results(tmp_path).board_runs("again")
    own = frame[frame["label"].str.startswith("actor") & (frame["state"] == "ok")]
    trials = own[own["stage"] == "trial"]
    (cell,) = (
        cell
        for label, _, cell in iterate_cells(Results(tmp_path).board())
        if label.startswith("actor")
    )
    assert len(trials) == 4 and cell.chosen == json.loads(
        trials.loc[trials["validation"].idxmin(), "chosen"]
    )
    assert run_sweep_text(text, tmp_path).cached == second.ok


# ---- what is shown ----


def test_sections_do_not_depend_on_the_chosen_values(board: Path) -> None:
    shown = Results(board).board()
    assert len(shown.sections) == 1 and Counter(label for label, _, _ in iterate_cells(shown)) == {
        "fp": 1,
        "rtn": 2,
        "ste": 2,
        "lsq": 2,
    }
    for label, _, cell in iterate_cells(shown):
        assert (
            cell.state == "ok"
            and cell.asked == cell.seeds == 3
            and cell.trials == 4
            and cell.rates == 1
        )
        assert set(cell.chosen) == {"lr", "weight_decay"} | ({"rate"} if label == "lsq" else set())
        assert (
            cell.lr == cell.chosen["lr"]
            and all(value is not None for value in cell.best_of)
            and len(cell.best_of) == 4
        )
    assert any(row.main and row.role == "control" for row in shown.sections[0].rows)


def test_the_best_of_n_curve_is_computed_from_trials_only(board: Path) -> None:
    frame = Results(board).board_runs("tuned")
    frame = frame[frame["stage"] == "trial"]
    for label, column, cell in iterate_cells(Results(board).board()):
        own = frame[(frame["label"] == label) & (frame["weights_format"].fillna("fp32") == column)]
        validation, test = own["validation"].tolist(), own["packed"].tolist()
        for n, expected in enumerate(cell.best_of, 1):
            best = [
                test[min(drawn, key=lambda i: validation[i])]
                for drawn in itertools.combinations(range(4), n)
            ]
            assert expected == pytest.approx(math.fsum(best) / len(best))


def test_the_notes_describe_the_tuning(board: Path) -> None:
    notes = Results(board).board().sections[0].notes
    (how,) = (note for note in notes if note.startswith("tuned on validation"))
    assert how == (
        "tuned on validation: 4 trials for everyone (sobol, seed 0), at seed 1000:"
        " lr from 0.0001 to 0.1 (log), weight_decay in {0, 0.1, 0.2}; "
        "and of its own for lsq rate from 0.1 to 10 (log)"
    )
    assert not any("learning rates" in note for note in notes)


def test_chosen_values_at_the_edge_of_their_range_are_flagged(board: Path) -> None:
    shown, flagged = Results(board).board(), 0
    for _, _, cell in iterate_cells(shown):
        ends = [f"weight_decay={cell.chosen['weight_decay']:g}"] * (
            cell.chosen["weight_decay"] != 0.1
        )
        ends += [f"lr={cell.chosen['lr']:g}"] * (
            not 1e-4 * 1e3**0.05 <= cell.chosen["lr"] <= 1e-4 * 1e3**0.95
        )
        if "rate" in cell.chosen:
            ends += [f"rate={cell.chosen['rate']:g}"] * (
                not 0.1 * 100**0.05 <= cell.chosen["rate"] <= 0.1 * 100**0.95
            )
        assert sorted(cell.at_edge) == sorted(ends)
        said = [shown.sections[0].notes[n - 1] for n in cell.notes]
        assert (
            [
                "at the edge of its range, so another value might be better:"
                f" {', '.join(cell.at_edge)}"
            ]
            if ends
            else []
        ) == said
        flagged += bool(ends)
    assert flagged
    wider = rebuild_from_csv(Results(board), BOARD.replace("0.1, 0.2]", "0.1, 0.2, 0.3]"))
    assert not any("weight_decay=0.2" in cell.at_edge for _, _, cell in iterate_cells(wider)), (
        "0.2 is an end of the first list, but not of the second"
    )


def rebuild_from_csv(found: Results, text: str) -> Board:
    """Rebuild a board from its runs.csv and its sweep file."""
    csv = runs_csv(found.board_runs(found.board_name(None)))
    assert csv == runs_csv(found.board_runs(found.board_name(None)))
    runs = read_runs_csv(io.StringIO(csv))
    known = {name: list_defaults(load("methods", name)) for name in runs["method"].unique()}
    known |= {name: list_defaults(load("tasks", name)) for name in runs["task"].unique()}
    return build_board(
        runs,
        defaults=json.loads(json.dumps(known)),
        title=found.board().title,
        tuning=make_config(text).tuning,
    )


def test_the_board_can_be_rebuilt_from_its_runs_csv(board: Path) -> None:
    found = Results(board)
    assert rebuild_from_csv(found, BOARD).to_json() == found.board().to_json()
    csv = runs_csv(found.board_runs("tuned"))
    head = csv.splitlines()[0].split(",")
    assert (
        head[-5:] == ["stage", "chosen", "rung", "trial", "budget"]
        and len(csv.splitlines()) == 1 + 28 + 21
    )


def test_the_board_can_be_rebuilt_from_the_run_folders(board: Path) -> None:
    before = Results(board).board().to_json()
    rebuild_store(board)
    assert Results(board).board().to_json() == before
    with Store(board) as store:
        store.write_snapshot()
    assert Results(board).board().to_json() == before


def test_the_printed_board_shows_chosen_values_and_the_best_of_n(board: Path) -> None:
    shown = Results(board).board()
    wide, page = print_board(shown), to_markdown(shown)
    for _, _, cell in iterate_cells(shown):
        assert f"lr {cell.chosen['lr']:g}" in wide and f"lr {cell.chosen['lr']:g}, " in page
    assert "Expected test score of the best of n trials on validation, at the tuning seeds:" in wide
    assert "fp32, 1, 2, 4 trials: fp " in wide and "- int2, 1, 2, 4 trials: " in page
    table = Results(board).cells()
    assert (
        json.loads(table["chosen"][0]).keys() == {"lr", "weight_decay"}
        and len(json.loads(table["best_of"][0])) == 4
    )
    data = shown.to_json()["sections"][0]["rows"][0]["cells"][0]
    assert data["chosen"].keys() == {"lr", "weight_decay"} and len(data["best_of"]) == 4


def test_the_page_shows_the_chosen_values_next_to_each_score(board: Path, tmp_path: Path) -> None:
    publish_site(Results(board), None, tmp_path / "site")
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<small class="chosen">([^<]*)</small>', page)
    assert sorted(shown) == sorted(
        format_chosen_values(cell) for *_, cell in iterate_cells(Results(board).board())
    ) and all("lr " in words for words in shown)


def test_an_untuned_board_does_not_mention_tuning(tmp_path: Path) -> None:
    text = (
        HEAD.replace("tuned", "plain").replace("seeds = 3", "seeds = 1")
        + 'methods = ["fp", "rtn"]\n'
    )
    run_sweep_text(text, tmp_path)
    found = Results(tmp_path)
    assert "stage" not in found.board_runs("plain") and "chosen" not in found.cells()
    assert "trials" not in print_board(found.board()) and {
        cell.trials for _, _, cell in iterate_cells(found.board())
    } == {0}


@contextmanager
def moved_away(folder: Path) -> Iterator[None]:
    """Move a folder away, as if somebody had deleted it, and back unless it was made again."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    yield
    if not folder.exists():
        aside.rename(folder)


def test_a_deleted_artefact_is_made_again_without_a_new_choice(board: Path, tmp_path: Path) -> None:
    """The base of an `rtn` run was deleted. Only the base and that run are trained again."""
    plan = make_plan(make_config(), read_outcomes(board))
    final = next(
        run
        for run in plan.runs.values()
        if run.base and run.cell.stage == "final" and run.seed == 2
    )
    base = next(a for a in iterate_attempts(board) if a.key == final.base)
    lost = next(a for a in iterate_attempts(board) if a.key == final.key)
    before = list_attempt_names(board)
    (lost.folder / "result.json").unlink()
    with moved_away(base.export):
        summary = run_sweep_text(BOARD, board)
    assert (summary.failed, summary.left) == (0, 0)
    assert list_attempt_names(board) - before == {f"{final.base}/2", f"{final.key}/2"}


def test_all_trials_of_a_tuned_board_may_start_from_one_network(tmp_path: Path) -> None:
    text = HALVED.replace("seeds = 3", 'seeds = 2\nstart = "fp:0.5"')
    summary = run_sweep_text(text, tmp_path)
    assert (summary.failed, summary.left) == (0, 0)
    specs = [attempt.read("spec") or {} for attempt in iterate_attempts(tmp_path)]
    networks = [spec for spec in specs if spec["start"] == "scratch"]
    assert sorted(spec["seed"] for spec in networks) == [0, 1, 1000] and {
        spec["recipe"]["steps"] for spec in networks
    } == {10}
    shown = Results(tmp_path).board()
    assert len(shown.sections) == 1 and {
        label for label, _, cell in iterate_cells(shown) if cell.state == "ok"
    } == {"fp", "rtn", "ste"}
    assert all(cell.trials == 4 and cell.seeds == 2 for _, _, cell in iterate_cells(shown))
    assert run_sweep_text(text, tmp_path).cached == summary.ok
    assert to_csv(rebuild_from_csv(Results(tmp_path), text)) == to_csv(shown)
