"""Tuned sweeps for real: trials, choice, final runs, whatever happens in between; and the boards that come of them."""

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
from qbench.boards.board import Board, Cell
from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.boards.words import best_of, chosen
from qbench.engines.local import local_engine
from qbench.execution.assignment import Execution
from qbench.plugins.describe import defaults
from qbench.plugins.registry import load
from qbench.publish.site import publish
from qbench.runs.attempts import all_attempts
from qbench.store.check import rebuild
from qbench.store.database import Store
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import read_text
from qbench.sweeps.coordinator import sweep
from qbench.sweeps.listener import Summary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import status
from qbench.terminal.board import show_board
from qbench.terminal.plan import show_plan
from tests import SOAK
from tests.stage import stage
from tests.sweeps.test_coordinator import DRIVER, Command, command, until

__all__ = ["command", "stage"]


pytestmark = pytest.mark.usefixtures("stage")

QUICK = Execution(device="cpu", checkpoint_s=0.2)
HEAD = (
    'board = "tuned"\nseeds = 3\ntasks = ["toy"]\nformats = ["int2", "int4"]\nrecipe.steps = 20\n'
)
FOUR = "[tuning]\ntrials = 4\nlr = { low = 1e-4, high = 1e-1, log = true }\nweight_decay = { values = [0.0, 0.1, 0.2] }\n"
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


def swept(text: str, results: Path, listener: Any = None, group: int | None = None) -> Summary:
    config, execution = read_text(text, "s.toml"), dataclasses.replace(QUICK, group=group)
    with local_engine(config, execution, 2) as engine:
        return sweep(config, results, engine, execution, listener)


@pytest.fixture(scope="module")
def board(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where BOARD was swept, undisturbed."""
    results = tmp_path_factory.mktemp("tuned")
    summary = swept(BOARD, results)
    assert (summary.failed, summary.left, summary.code) == (0, 0, 0)
    return results


def config(text: str = BOARD) -> SweepConfig:
    return read_text(text, "s.toml")


def files(results: Path) -> set[str]:
    return {f"{a.key}/{a.number}" for a in all_attempts(results)}


def outcomes(results: Path) -> dict[str, float | None]:
    """The validation of every finished run, from its files."""
    found = {a.key: a.read("result") for a in all_attempts(results)}
    return {
        key: (r.get("scores") or {}).get("validation") if r["state"] == "ok" else None
        for key, r in found.items()
        if r
    }


def cells(shown: Board) -> Iterator[tuple[str, str, Cell]]:
    for row in shown.sections[0].rows:
        for column, cell in zip(
            ["fp32"] if row.spans else [c.format for c in shown.sections[0].columns],
            row.cells,
            strict=True,
        ):
            yield row.entrant, column, cell


def printed(shown: Board, width: int = 160) -> str:
    out = io.StringIO()
    show_board(shown, Console(file=out, width=width))
    return out.getvalue()


# ---- what is trained ----


def test_trials_then_choices_then_final_runs_and_the_same_call_again_trains_nothing(
    board: Path,
) -> None:
    plan, before = make_plan(config(), outcomes(board)), files(board)
    assert not plan.waiting and {f"{key}/1" for key in plan.runs} == before
    stages = Counter((run.cell.stage, run.seed) for run in plan.runs.values() if not run.cell.extra)
    assert stages == {("trial", 1000): 4 * 7} | {("final", seed): 7 for seed in range(3)}
    summary = swept(BOARD, board)
    assert summary.cached == len(plan.runs) == summary.ok and files(board) == before


def test_the_choice_is_the_best_validation_of_the_trials(board: Path) -> None:
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
    """What no part of a sweep expects."""


class Saboteur:
    """Ends the sweep between two phases, or after so many runs."""

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


def test_killed_between_and_within_the_phases_it_comes_to_the_same(
    board: Path, tmp_path: Path
) -> None:
    for at in (3, None, 2, None, 4):
        with pytest.raises(Crash):
            swept(BOARD, tmp_path, Saboteur(at))
    summary = swept(BOARD, tmp_path)
    assert (summary.failed, summary.left) == (0, 0)
    assert set(outcomes(tmp_path)) == set(outcomes(board)) and outcomes(tmp_path) == outcomes(board)
    assert frozen(Results(tmp_path).board()) == frozen(Results(board).board())


@pytest.mark.slow
def test_killed_from_outside_at_any_moment_it_comes_to_the_same(
    command: Command, board: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(BOARD)
    (tmp_path / "driver.py").write_text(DRIVER)
    chance, results, done = random.Random(), tmp_path / "killed", 0
    for _ in range(40 if SOAK else 3):
        process = command(tmp_path / "driver.py", tmp_path / "s.toml", results)
        until(lambda p=process, n=done: len(outcomes(results)) > n or p.poll() is not None)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 1))
        process.kill()
        process.wait()
        done = len(outcomes(results))
    swept(BOARD, results)
    assert outcomes(results) == outcomes(board) and frozen(Results(results).board()) == frozen(
        Results(board).board()
    )


def frozen(shown: Board) -> dict[str, Any]:
    """A board without what a clock says."""
    data = shown.to_json()
    for section in data["sections"]:
        for row in section["rows"]:
            row.pop("cost")
    return data


def test_an_interrupted_sweep_says_what_it_waits_for(board: Path, tmp_path: Path) -> None:
    class Interrupter(Saboteur):
        def event(self, kind: str, run_label: str, **details: Any) -> None:
            self.finished += kind == "finished"
            if self.finished == 2:
                raise Crash

    with pytest.raises(Crash):
        swept(BOARD, tmp_path, Interrupter(None), group=1)
    lines = status(config(), tmp_path)
    states = Counter(line.standing.state for line in lines)
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
    assert "21    chosen when their trials are done" in said, "final runs, not cells"
    assert {state for _, _, cell in cells(Results(tmp_path).board()) for state in [cell.state]} == {
        "planned"
    }
    assert len(
        [line for line in status(config(), board) if line.standing.state == "cached"]
    ) == len(files(board))


def test_a_listener_hears_how_many_runs_there_will_be(tmp_path: Path) -> None:
    class Counting(Saboteur):
        def event(self, kind: str, run_label: str, **details: Any) -> None:
            if kind == "planned":
                self.plans.append(details["total"])
            self.finished += kind == "finished"

    heard = Counting(None)
    swept(HALVED, tmp_path, heard)
    assert heard.counts == (3 * (4 + 2 + 3), 0), (
        "what is still to be chosen is counted, what it goes on from is not known yet"
    )
    assert heard.plans[-1] == heard.finished == len(files(tmp_path)) and len(heard.plans) >= 2


def test_halving_trains_shorter_runs_first(tmp_path: Path) -> None:
    swept(HALVED, tmp_path)
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
    for label, _, cell in cells(shown):
        own = trials[trials["label"] == label]
        short, whole = own[own["rung"] == 0], own[own["rung"] == 1]
        assert set(whole["trial"]) == set(short.nsmallest(2, "validation")["trial"])
        assert cell.chosen == json.loads(whole.loc[whole["validation"].idxmin(), "chosen"])
        assert cell.trials == 4 and cell.best_of_share == 0.25 and len(cell.best_of) == 4
        assert cell.best_of[-1] == pytest.approx(
            short.loc[short["validation"].idxmin(), "packed"]
        ), "the curve is of the rung with every trial"
    assert "4 trials with 25 % of the steps" in best_of(shown.sections[0])[0]
    assert to_csv(again(found, HALVED)) == to_csv(shown)


# ---- what fails ----


def test_a_cell_without_a_trial_that_came_through_is_marked_failed_and_no_hole(
    tmp_path: Path,
) -> None:
    knobs = "[tuning.own.actor]\nseconds = { values = [0.0, 0.001] }\n"
    summary = swept(FRAGILE + knobs, tmp_path)
    assert summary.failed == 4 * 2 and summary.code == 3
    lines = [
        line
        for line in status(config(FRAGILE + knobs), tmp_path)
        if line.standing.state == "untuned"
    ]
    assert [line.title for line in lines] == ["Fragile int4 stage/xs", "Hopeless int4 stage/xs"]
    found = Results(tmp_path)
    for shown in (found.board(), again(found, FRAGILE + knobs)):
        by_label = {label: cell for label, _, cell in cells(shown) if label != "fp"}
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
    assert to_csv(again(found, FRAGILE + knobs)) == to_csv(found.board())


def test_some_failed_trials_are_counted_and_never_chosen(tmp_path: Path) -> None:
    text = (
        FRAGILE[: FRAGILE.index("[[method]]")]
        + '[[method]]\nname = "actor"\nrole = "nan"\nlabel = "Fragile"\n'
    )
    text += FRAGILE[FRAGILE.index("[tuning]") :] + "[tuning.own.actor]\nat = { values = [3, 50] }\n"
    swept(text, tmp_path)
    shown = Results(tmp_path).board()
    (fragile,) = (cell for label, _, cell in cells(shown) if label == "Fragile")
    assert fragile.state == "ok" and fragile.chosen["at"] == 50
    failed = sum(value is None for value in fragile.best_of)
    assert (
        failed == 2 and fragile.best_of[:2] == (None, None) and fragile.best_of[-1] is not None
    ), "two of four trials have at = 3"


def test_a_trial_that_is_tried_again_is_waited_for_and_may_change_the_choice(
    tmp_path: Path,
) -> None:
    actor = f'[[method]]\nname = "actor"\nrole = "raise"\nonce = "{tmp_path / "once"}"\n'
    text = (
        FRAGILE[: FRAGILE.index("[[method]]")].replace("fragile", "again")
        + actor
        + FRAGILE[FRAGILE.index("[tuning]") :]
    )
    first = swept(text, tmp_path)
    assert first.failed in (1, 2) and first.left == 0, "two workers may come to the marker at once"
    assert [
        cell.state
        for label, _, cell in cells(Results(tmp_path).board())
        if label.startswith("actor")
    ] == ["ok"]
    waiting = [
        line.title for line in status(config(text), tmp_path) if line.standing.state == "waiting"
    ]
    assert len(waiting) == 1 and waiting[0].startswith("actor"), (
        "its failed trial is made again, and chooses, too"
    )
    second = swept(text, tmp_path)
    assert (second.failed, second.left) == (0, 0)
    frame = Results(tmp_path).board_runs("again")
    own = frame[frame["label"].str.startswith("actor") & (frame["state"] == "ok")]
    trials = own[own["stage"] == "trial"]
    (cell,) = (
        cell for label, _, cell in cells(Results(tmp_path).board()) if label.startswith("actor")
    )
    assert len(trials) == 4 and cell.chosen == json.loads(
        trials.loc[trials["validation"].idxmin(), "chosen"]
    )
    assert swept(text, tmp_path).cached == second.ok


# ---- what is shown ----


def test_entrants_are_labels_and_sections_do_not_differ_by_what_was_chosen(board: Path) -> None:
    shown = Results(board).board()
    assert len(shown.sections) == 1 and Counter(label for label, _, _ in cells(shown)) == {
        "fp": 1,
        "rtn": 2,
        "ste": 2,
        "lsq": 2,
    }
    for label, _, cell in cells(shown):
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


def test_the_curve_is_of_trials_alone(board: Path) -> None:
    frame = Results(board).board_runs("tuned")
    frame = frame[frame["stage"] == "trial"]
    for label, column, cell in cells(Results(board).board()):
        own = frame[(frame["label"] == label) & (frame["weights_format"].fillna("fp32") == column)]
        validation, test = own["validation"].tolist(), own["packed"].tolist()
        for n, expected in enumerate(cell.best_of, 1):
            best = [
                test[min(drawn, key=lambda i: validation[i])]
                for drawn in itertools.combinations(range(4), n)
            ]
            assert expected == pytest.approx(math.fsum(best) / len(best))


def test_the_notes_say_how_it_was_tuned(board: Path) -> None:
    notes = Results(board).board().sections[0].notes
    (how,) = (note for note in notes if note.startswith("tuned on validation"))
    assert how == (
        "tuned on validation: 4 trials for everyone (sobol, seed 0), at seed 1000: lr from 0.0001 to 0.1 (log), weight_decay in {0, 0.1, 0.2}; "
        "and of its own for lsq rate from 0.1 to 10 (log)"
    )
    assert not any("learning rates" in note for note in notes)


def test_values_at_the_edge_are_flagged_by_entrant_and_column(board: Path) -> None:
    shown, flagged = Results(board).board(), 0
    for _, _, cell in cells(shown):
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
                f"at the edge of its range, so another value might be better: {', '.join(cell.at_edge)}"
            ]
            if ends
            else []
        ) == said
        flagged += bool(ends)
    assert flagged
    wider = again(Results(board), BOARD.replace("0.1, 0.2]", "0.1, 0.2, 0.3]"))
    assert not any("weight_decay=0.2" in cell.at_edge for _, _, cell in cells(wider)), (
        "0.2 is an end of the one list and not of the other"
    )


def again(found: Results, text: str) -> Board:
    """The board out of its runs.csv and its sweep file."""
    csv = runs_csv(found.board_runs(found.board_name(None)))
    assert csv == runs_csv(found.board_runs(found.board_name(None)))
    runs = read_runs_csv(io.StringIO(csv))
    known = {name: defaults(load("methods", name)) for name in runs["method"].unique()}
    known |= {name: defaults(load("tasks", name)) for name in runs["task"].unique()}
    return build_board(
        runs,
        defaults=json.loads(json.dumps(known)),
        title=found.board().title,
        tuning=config(text).tuning,
    )


def test_it_comes_out_of_its_runs_csv(board: Path) -> None:
    found = Results(board)
    assert again(found, BOARD).to_json() == found.board().to_json()
    csv = runs_csv(found.board_runs("tuned"))
    head = csv.splitlines()[0].split(",")
    assert (
        head[-5:] == ["stage", "chosen", "rung", "trial", "budget"]
        and len(csv.splitlines()) == 1 + 28 + 21
    )


def test_it_comes_out_of_the_files(board: Path) -> None:
    before = Results(board).board().to_json()
    rebuild(board)
    assert Results(board).board().to_json() == before
    with Store(board) as store:
        store.snapshot()
    assert Results(board).board().to_json() == before


def test_it_is_printed_with_what_was_chosen_and_the_best_of_n(board: Path) -> None:
    shown = Results(board).board()
    wide, page = printed(shown), to_markdown(shown)
    for _, _, cell in cells(shown):
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


def test_its_page_shows_what_was_chosen_beside_each_score(board: Path, tmp_path: Path) -> None:
    publish(Results(board), None, tmp_path / "site")
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<small class="chosen">([^<]*)</small>', page)
    assert sorted(shown) == sorted(
        chosen(cell) for *_, cell in cells(Results(board).board())
    ) and all("lr " in words for words in shown)


def test_a_board_that_is_not_tuned_says_nothing_of_tuning(tmp_path: Path) -> None:
    text = (
        HEAD.replace("tuned", "plain").replace("seeds = 3", "seeds = 1")
        + 'methods = ["fp", "rtn"]\n'
    )
    swept(text, tmp_path)
    found = Results(tmp_path)
    assert "stage" not in found.board_runs("plain") and "chosen" not in found.cells()
    assert "trials" not in printed(found.board()) and {
        cell.trials for _, _, cell in cells(found.board())
    } == {0}


@contextmanager
def deleted(folder: Path) -> Iterator[None]:
    """As if somebody had made room."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    yield
    if not folder.exists():
        aside.rename(folder)


def test_an_artefact_that_is_gone_is_made_again_without_another_choice(
    board: Path, tmp_path: Path
) -> None:
    """`rtn` at another seed goes on from a network that was trained, stored and cleared away: it is trained again, and nothing else is."""
    plan = make_plan(config(), outcomes(board))
    final = next(
        run
        for run in plan.runs.values()
        if run.base and run.cell.stage == "final" and run.seed == 2
    )
    base = next(a for a in all_attempts(board) if a.key == final.base)
    lost = next(a for a in all_attempts(board) if a.key == final.key)
    before = files(board)
    (lost.folder / "result.json").unlink()
    with deleted(base.export):
        summary = swept(BOARD, board)
    assert (summary.failed, summary.left) == (0, 0)
    assert files(board) - before == {f"{final.base}/2", f"{final.key}/2"}


def test_a_tuned_board_may_start_from_a_network_that_all_trials_share(tmp_path: Path) -> None:
    text = HALVED.replace("seeds = 3", 'seeds = 2\nstart = "fp:0.5"')
    summary = swept(text, tmp_path)
    assert (summary.failed, summary.left) == (0, 0)
    specs = [attempt.read("spec") or {} for attempt in all_attempts(tmp_path)]
    networks = [spec for spec in specs if spec["start"] == "scratch"]
    assert sorted(spec["seed"] for spec in networks) == [0, 1, 1000] and {
        spec["recipe"]["steps"] for spec in networks
    } == {10}
    shown = Results(tmp_path).board()
    assert len(shown.sections) == 1 and {
        label for label, _, cell in cells(shown) if cell.state == "ok"
    } == {"fp", "rtn", "ste"}
    assert all(cell.trials == 4 and cell.seeds == 2 for _, _, cell in cells(shown))
    assert swept(text, tmp_path).cached == summary.ok
    assert to_csv(again(Results(tmp_path), text)) == to_csv(shown)
