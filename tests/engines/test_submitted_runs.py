"""What submitted runs may not do before they were reproduced here.

They may not choose the values of a tuned board, and no run may start from them. Two more tests show
what a board keeps while a run is trained again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qbench.analysis.results import Results
from qbench.checks.reproduce import reproduce_run
from qbench.engines.local import local_engine
from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt, iterate_attempts, list_attempts
from qbench.store.board_members import read_all_board_members
from qbench.submissions.merge import mark_reproduced, merge_bundle
from qbench.submissions.submit import submit_runs
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import SweepSummary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import RunStatus, read_sweep_status
from qbench.terminal.plan import show_plan
from tests.bundles import assemble_bundle, read_bundle_files
from tests.stage import stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")

ON_CPU = Execution(device="cpu")
TOY_BOARD = 'board = "b"\ntasks = ["toy"]\nformats = ["int2"]\nrecipe.steps = 5\n'
TUNED_BOARD = (
    TOY_BOARD
    + 'methods = ["fp", "rtn"]\n[tuning]\ntrials = 3\n'
    + "lr = { low = 1e-3, high = 1e-1, log = true }\n"
)


def run_board(text: str, results: Path) -> SweepSummary:
    config = parse_sweep(text, "s.toml")
    with local_engine(config, ON_CPU, 1) as engine:
        return run_sweep(config, results, engine, ON_CPU)


def read_states(text: str, results: Path) -> list[RunStatus]:
    return read_sweep_status(parse_sweep(text, "s.toml"), results)


def read_chosen_values(results: Path) -> dict[str, Any]:
    """Return the values that the board members' file has for each final cell."""
    (members,) = read_all_board_members(results)
    return {
        cell["label"]: cell["chosen"] for cell in members["cells"] if cell.get("stage") == "final"
    }


def list_own_runs(results: Path) -> set[str]:
    """Return the keys of the runs that were trained here."""
    return {attempt.key for attempt in iterate_attempts(results) if not attempt.merged}


@pytest.fixture(scope="module")
def theirs(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("theirs")
    assert run_board(TUNED_BOARD, results).code == 0
    return results


def make_bundle(
    theirs: Path,
    out: Path,
    change: Callable[[dict[str, Any], dict[str, Any]], None] = lambda spec, result: None,
) -> Path:
    """Write a bundle of all their runs, with results changed as a forger would do it."""
    submit_runs(theirs, ["b"], out)
    manifest, runs = read_bundle_files(out.read_bytes())
    for files in runs.values():
        result = json.loads(files["result.json"])
        change(json.loads(files["spec.json"]), result)
        files["result.json"] = json.dumps(result).encode()
    out.write_bytes(assemble_bundle(manifest, runs))
    return out


@pytest.mark.parametrize("score", [False, True])
def test_submitted_trials_choose_nothing_until_they_were_trained_here(
    theirs: Path, tmp_path: Path, score: bool
) -> None:
    """An artefact has no validation score, so evaluating it cannot confirm the claimed one."""

    def lie(spec: dict[str, Any], result: dict[str, Any]) -> None:
        if spec["seed"] >= 1000:
            result["scores"]["validation"] = -result["scores"]["validation"]

    results = tmp_path / "ours"
    merged = merge_bundle(results, make_bundle(theirs, tmp_path / "b.zip", lie), score=score)
    assert dict(merged.levels) == {"verified" if score else "claimed": 9}
    lines = read_states(TUNED_BOARD, results)
    assert [(line.run_state.state, line.run_state.message) for line in lines[:6]] == [
        ("new", "there is only a submitted run, which was not reproduced here")
    ] * 6
    assert [line.run_state.state for line in lines[6:]] == ["waiting"] * 2
    out = io.StringIO()
    show_plan(lines, Console(file=out, width=200))
    assert "a submitted run, which was not reproduced here" in out.getvalue()
    summary = run_board(TUNED_BOARD, results)
    assert (summary.ok, summary.failed, summary.left) == (9, 0, 0)
    assert read_chosen_values(results) == read_chosen_values(theirs), (
        "the forged scores would have chosen the worst trial"
    )
    trials = {
        key
        for key, run in make_plan(parse_sweep(TUNED_BOARD, "s.toml")).runs.items()
        if run.seed >= 1000
    }
    assert list_own_runs(results) == trials, (
        "final runs are shown as submitted, and not trained again"
    )
    assert run_board(TUNED_BOARD, results).cached == 9


def test_reproduced_trials_choose_values(theirs: Path, tmp_path: Path) -> None:
    results = tmp_path / "ours"
    merge_bundle(results, make_bundle(theirs, tmp_path / "b.zip"), score=False)
    for attempt in list(iterate_attempts(results)):
        if (attempt.read("spec") or {})["seed"] >= 1000:
            mark_reproduced(results, attempt.key, reproduce_run(results, attempt.key).verdict)
    assert {line.run_state.state for line in read_states(TUNED_BOARD, results)} == {"cached"}
    assert run_board(TUNED_BOARD, results).cached == 9 and not list_own_runs(results)
    assert read_chosen_values(results) == read_chosen_values(theirs)


PAIR_BOARD = TOY_BOARD + 'methods = ["fp", "rtn"]\n'
STARTED_BOARD = TOY_BOARD + 'methods = ["ste"]\nstart = "fp:0.5"\n'


@pytest.mark.parametrize("text", [PAIR_BOARD, STARTED_BOARD])
def test_no_run_starts_from_a_submitted_run(text: str, tmp_path: Path) -> None:
    """Their full-precision run was submitted. Before ours is rounded, it is trained here."""
    theirs, results = tmp_path / "theirs", tmp_path / "ours"
    assert run_board(text, theirs).code == 0
    follower = next(
        key for key, run in make_plan(parse_sweep(text, "s.toml")).runs.items() if run.base
    )
    base = next(
        run.base for run in make_plan(parse_sweep(text, "s.toml")).runs.values() if run.base
    )
    submit_runs(theirs, [base], tmp_path / "b.zip")
    assert merge_bundle(results, tmp_path / "b.zip").added == 1
    states = {line.key: line.run_state.state for line in read_states(text, results)}
    assert states == {base: "new", follower: "new"}
    assert run_board(text, results).code == 0
    assert list_own_runs(results) == {base, follower} and [
        a.merged for a in list_attempts(results, base)
    ] == [
        True,
        False,
    ]
    assert {line.run_state.state for line in read_states(text, results)} == {"cached"}
    found = [
        (list_attempts(folder, follower)[-1].read("result") or {})["artefact_sha256"]
        for folder in (theirs, results)
    ]
    assert found[0] == found[1]


def test_a_submitted_run_is_not_trained_again_if_no_run_starts_from_it(
    theirs: Path, tmp_path: Path
) -> None:
    assert run_board(PAIR_BOARD, tmp_path / "theirs").code == 0
    submit_runs(tmp_path / "theirs", ["b"], tmp_path / "b.zip")
    merge_bundle(tmp_path / "ours", tmp_path / "b.zip")
    assert run_board(PAIR_BOARD, tmp_path / "ours").cached == 2 and not list_own_runs(
        tmp_path / "ours"
    )


def test_a_run_is_reproduced_from_a_base_that_was_trained_here(tmp_path: Path) -> None:
    """Otherwise a run that starts from a forged base would count as reproduced."""
    theirs, results = tmp_path / "theirs", tmp_path / "ours"
    run_board(PAIR_BOARD, theirs)
    submit_runs(theirs, ["b"], tmp_path / "b.zip")
    merge_bundle(results, tmp_path / "b.zip", score=False)
    runs = make_plan(parse_sweep(PAIR_BOARD, "s.toml")).runs
    base, follower = (
        next(key for key, run in runs.items() if bool(run.base) is bases) for bases in (False, True)
    )
    list_attempts(results, base)[0].artefact.write_bytes(b"forged")
    assert reproduce_run(results, follower).verdict == "same"


# ---- runs that are trained again ----

RETRY_BOARD = (
    TOY_BOARD.replace("toy", "stage")
    + """
[[method]]
name = "actor"
role = "raise"
at = 2
once = "{once}"
[tuning]
trials = 3
lr = {{ low = 1e-3, high = 1e-1, log = true }}
"""
)


def test_the_board_keeps_the_chosen_values_while_a_failed_trial_is_tried_again(
    tmp_path: Path,
) -> None:
    text = RETRY_BOARD.format(once=tmp_path / "once")
    assert run_board(text, tmp_path).failed == 1
    before = Results(tmp_path).board("b").to_json()
    assert [line.run_state.state for line in read_states(text, tmp_path)].count("waiting") == 1
    config = parse_sweep(text, "s.toml")

    class Stop(BaseException):
        pass

    class AtOnce:
        def start(self, total: int, cached: int) -> None:
            raise Stop

        def event(self, kind: str, run_label: str, **details: Any) -> None: ...
        def stop(self, summary: Any) -> None: ...

    with local_engine(config, ON_CPU, 1) as engine, pytest.raises(Stop):
        run_sweep(config, tmp_path, engine, ON_CPU, AtOnce())
    assert Results(tmp_path).board("b").to_json() == before
    assert run_board(text, tmp_path).failed == 0
    frame = Results(tmp_path).board_runs("b")
    trials = frame[(frame["stage"] == "trial") & (frame["state"] == "ok")]
    assert len(trials) == 3 and read_chosen_values(tmp_path) == {
        label: json.loads(trials.loc[trials["validation"].idxmin(), "chosen"])
        for label in read_chosen_values(tmp_path)
    }


def test_a_run_without_its_artefact_is_trained_again_if_others_start_from_it(
    tmp_path: Path,
) -> None:
    run_board(PAIR_BOARD, tmp_path)
    runs = make_plan(parse_sweep(PAIR_BOARD, "s.toml")).runs
    base = next(run.base for run in runs.values() if run.base)
    follower = next(key for key, run in runs.items() if run.base)
    Attempt(list_attempts(tmp_path, base)[0].folder).artefact.unlink()
    assert {line.run_state.state for line in read_states(PAIR_BOARD, tmp_path)} == {"cached"}
    shutil.rmtree(list_attempts(tmp_path, follower)[0].folder)
    lost = next(line for line in read_states(PAIR_BOARD, tmp_path) if line.key == base)
    assert (lost.run_state.state, lost.run_state.message) == (
        "lost",
        "its artefact is gone, and others go on from it",
    )
    assert (
        run_board(PAIR_BOARD, tmp_path).code == 0
        and list_attempts(tmp_path, base)[-1].artefact.is_file()
    )
