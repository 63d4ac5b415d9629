"""Sweeps in groups: the same files as run by run, whatever happens to a worker."""

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
from qbench.sweepfile.read import read_text
from qbench.sweeps.coordinator import sweep
from qbench.sweeps.listener import Silence, Summary

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


def swept(
    engine: LocalEngine, folder: Path, listener: Any = None, **execution: Any
) -> tuple[Summary, dict[str, list[Attempt]]]:
    summary = sweep(
        read_text(BOARD, "b.toml"), folder, engine, Execution(device="cpu", **execution), listener
    )
    found: dict[str, list[Attempt]] = {}
    for path in sorted(folder.glob("runs/*/*/*/result.json")):
        found.setdefault(path.parent.parent.name, []).append(Attempt(path.parent))
    return summary, found


def artefacts(found: dict[str, list[Attempt]]) -> dict[str, str]:
    return {
        key: (attempts[-1].read("result") or {})["artefact_sha256"]
        for key, attempts in found.items()
    }


def companies(found: dict[str, list[Attempt]]) -> list[int]:
    return sorted(
        (attempts[-1].read("result") or {})["cost"].get("company", 1) for attempts in found.values()
    )


@pytest.fixture(scope="module")
def one_by_one(
    engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Attempt]]:
    summary, found = swept(engine, tmp_path_factory.mktemp("one"), group=1)
    assert summary.ok == len(found) == 48 and companies(found) == [1] * 48
    return found


def test_a_board_in_groups_is_the_board_run_by_run(
    engine: LocalEngine, one_by_one: dict[str, list[Attempt]], tmp_path: Path
) -> None:
    summary, found = swept(engine, tmp_path)
    assert (summary.ok, summary.failed, summary.left) == (48, 0, 0) and artefacts(
        found
    ) == artefacts(one_by_one)
    assert companies(found)[:12] == [1] * 12 and min(companies(found)[12:]) >= 3, (
        "all but what is not trained"
    )
    assert swept(engine, tmp_path)[0].cached == 48


def test_formats_train_side_by_side_where_a_number_is_asked_for(
    engine: LocalEngine, tmp_path: Path
) -> None:
    """By itself a sweep keeps them apart, so that every step is timed in as large a company as full precision's."""
    board = (
        BOARD.replace('formats = ["int4"]', 'formats = ["int4", "int2"]')
        .replace('"lotion"]', '"lotion"]\n')
        .replace("[0.01, 0.03]", "0.01")
    )
    digests = []
    for group, size in ((None, 3), (16, 6)):
        sweep(
            read_text(board, "b.toml"),
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


def test_a_group_is_no_larger_than_asked(
    engine: LocalEngine, one_by_one: dict[str, list[Attempt]], tmp_path: Path
) -> None:
    _, found = swept(engine, tmp_path, group=2)
    assert max(companies(found)) == 2 and artefacts(found) == artefacts(one_by_one)


class Assassin(Silence):
    """Kills the worker of the first group that is on its way."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine, self.killed, self.retried = engine, 0, 0

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        self.retried += kind == "retry"
        if kind == "step" and details["step"] > 50 and not self.killed:
            self.killed = next(iter(self.engine.workers.values())).process.pid or 0
            os.kill(self.killed, signal.SIGKILL)


def test_runs_of_a_killed_worker_go_on_by_themselves(
    engine: LocalEngine, one_by_one: dict[str, list[Attempt]], tmp_path: Path
) -> None:
    assassin = Assassin(engine)
    summary, found = swept(engine, tmp_path, assassin, checkpoint_s=0)
    assert assassin.killed and assassin.retried >= 3 and (summary.ok, summary.failed) == (48, 0)
    assert artefacts(found) == artefacts(one_by_one)
    again = [attempts[-1] for attempts in found.values() if attempts[-1].number == 2]
    assert len(again) == assassin.retried and all(
        "company" not in (a.read("result") or {})["cost"] for a in again
    )
