"""Sweeps with stacked runs give the same artefacts as runs trained alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qbench.engines.local import LocalEngine
from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import NullListener, SweepSummary

BOARD = """
board = "b"
seeds = 3
methods = ["fp", "rtn", "ste", "lotion"]
formats = ["int4"]
tasks = ["linreg", "digits"]

[recipe]
steps = 200
lr = [0.01, 0.03]
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with closing(LocalEngine(2, "cpu")) as engine:
        yield engine


def run_board(
    engine: LocalEngine, folder: Path, listener: Any = None, **execution: Any
) -> tuple[SweepSummary, dict[str, list[Attempt]]]:
    """Run the sweep, and return its summary and the finished attempts of each run by key."""
    summary = run_sweep(
        parse_sweep(BOARD, "b.toml"), folder, engine, Execution(device="cpu", **execution), listener
    )
    found: dict[str, list[Attempt]] = {}
    for path in sorted(folder.glob("runs/*/*/*/result.json")):
        found.setdefault(path.parent.parent.name, []).append(Attempt(path.parent))
    return summary, found


def artefact_hashes(found: dict[str, list[Attempt]]) -> dict[str, str]:
    return {
        key: (attempts[-1].read("result") or {})["artefact_sha256"]
        for key, attempts in found.items()
    }


def stack_sizes(found: dict[str, list[Attempt]]) -> list[int]:
    return sorted(
        (attempts[-1].read("result") or {})["cost"].get("company", 1) for attempts in found.values()
    )


@pytest.fixture(scope="module")
def trained_alone(
    engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Attempt]]:
    summary, found = run_board(engine, tmp_path_factory.mktemp("one"), group=1)
    assert summary.ok == len(found) == 48 and stack_sizes(found) == [1] * 48
    return found


def test_stacked_runs_have_the_artefacts_of_runs_trained_alone(
    engine: LocalEngine, trained_alone: dict[str, list[Attempt]], tmp_path: Path
) -> None:
    summary, found = run_board(engine, tmp_path)
    assert (summary.ok, summary.failed, summary.left) == (48, 0, 0)
    assert artefact_hashes(found) == artefact_hashes(trained_alone)
    assert stack_sizes(found)[:12] == [1] * 12 and min(stack_sizes(found)[12:]) >= 3, (
        "all are stacked except RTN, which is not trained"
    )
    assert run_board(engine, tmp_path)[0].cached == 48


def test_formats_are_stacked_if_a_group_size_is_requested(
    engine: LocalEngine, tmp_path: Path
) -> None:
    """By default formats are not stacked, so that step times compare with full precision's."""
    board = (
        BOARD.replace('formats = ["int4"]', 'formats = ["int4", "int2"]')
        .replace('"lotion"]', '"lotion"]\n')
        .replace("[0.01, 0.03]", "0.01")
    )
    digests = []
    for group, size in ((None, 3), (16, 6)):
        run_sweep(
            parse_sweep(board, "b.toml"),
            tmp_path / str(size),
            engine,
            Execution(device="cpu", group=group),
        )
        results = [
            json.loads(path.read_text())
            for path in (tmp_path / str(size)).glob("runs/*/*/*/result.json")
        ]
        assert len(results) == 42 and max(r["cost"].get("company", 1) for r in results) == size
        digests.append(sorted(r["artefact_sha256"] for r in results))
    assert digests[0] == digests[1]


def test_a_group_is_no_larger_than_requested(
    engine: LocalEngine, trained_alone: dict[str, list[Attempt]], tmp_path: Path
) -> None:
    _, found = run_board(engine, tmp_path, group=2)
    assert max(stack_sizes(found)) == 2 and artefact_hashes(found) == artefact_hashes(trained_alone)


class KillingListener(NullListener):
    """Kills the worker of the first group that reaches step 51."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine, self.killed, self.retried = engine, 0, 0

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        self.retried += kind == "retry"
        if kind == "step" and details["step"] > 50 and not self.killed:
            self.killed = next(iter(self.engine.workers.values())).process.pid or 0
            os.kill(self.killed, signal.SIGKILL)


def test_runs_of_a_killed_worker_continue_alone(
    engine: LocalEngine, trained_alone: dict[str, list[Attempt]], tmp_path: Path
) -> None:
    listener = KillingListener(engine)
    summary, found = run_board(engine, tmp_path, listener, checkpoint_s=0)
    assert listener.killed and listener.retried >= 3 and (summary.ok, summary.failed) == (48, 0)
    assert artefact_hashes(found) == artefact_hashes(trained_alone)
    again = [attempts[-1] for attempts in found.values() if attempts[-1].number == 2]
    assert len(again) == listener.retried and all(
        "company" not in (a.read("result") or {})["cost"] for a in again
    )
