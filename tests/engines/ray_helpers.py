"""Helpers for tests of the Ray engine: boards that take time, and what sweeps leave behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.engines.base import Engine
from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt, iterate_attempts
from qbench.store.consistency import check_store
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import NullListener, SweepSummary
from tests.engines.processes import list_children
from tests.stage import ROOT

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None and os.environ.get("QBENCH_RAY") != "required",
    reason='Ray is not installed: pip install "qbench[ray]"',
)
EVERY_STEP = Execution(device="cpu", checkpoint_s=0)
"""A checkpoint after every step."""
MEASURED = ("started", "finished", "cost")
"""The keys of a result that a clock decides."""
SMALL_BOARD = (
    'board = "b"\nmethods = ["plain", "after", "actor"]\ntasks = ["stage"]\n'
    'formats = ["int4"]\nseeds = 2\n'
)
LITTLE_NODE = {"include_dashboard": False, "object_store_memory": 80 << 20}
MAIN = "from qbench.cli import main; sys.exit(main())"


def make_slow_board(seeds: int, steps: int = 60, seconds: float = 0.05) -> str:
    """Return a board whose runs sleep at every step."""
    return f"""
board = "slow"
formats = ["int4"]
seeds = {seeds}
[[method]]
name = "actor"
seconds = {seconds}
[[task]]
name = "stage"
[recipe]
steps = {steps}
"""


@dataclass
class Watcher(NullListener):
    """Records the events of a sweep, and acts once when a condition holds."""

    act: Callable[[], object] = lambda: None
    condition: Callable[[str, dict[str, Any]], bool] = lambda kind, details: False
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    acted: bool = False

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        details = {"label": run_label, **details}
        self.events.append((kind, details))
        if not self.acted and self.condition(kind, details):
            self.acted = True
            self.act()

    @property
    def retry_messages(self) -> list[str]:
        return [details["message"] for kind, details in self.events if kind == "retry"]

    @property
    def steps_after_retry(self) -> int:
        """The number of steps that later attempts of the runs that were tried again reported."""
        retried = {details["label"] for kind, details in self.events if kind == "retry"}
        starts = [
            n
            for n, (kind, details) in enumerate(self.events)
            if kind == "started" and details["label"] in retried and details["attempt"] > 1
        ]
        later = self.events[starts[0] :] if starts else []
        return sum(kind == "step" and details["label"] in retried for kind, details in later)


def run_board(
    engine: Engine, text: str, results: Path, watcher: Watcher | None = None
) -> SweepSummary:
    """Run a sweep with a checkpoint after every step."""
    config = parse_sweep(text, "s.toml")
    return run_sweep(config, results, engine, EVERY_STEP, watcher or Watcher())


# ---- what a sweep leaves ----


def read_outcomes(results: Path) -> dict[str, Any]:
    """Return all that the runs have written, without what a clock decides."""
    outcomes = {}
    for attempt in iterate_attempts(results):
        result = attempt.read("result") or {}
        files = {
            path.relative_to(attempt.folder).as_posix()
            for path in attempt.folder.rglob("*")
            if path.is_file()
        }
        text = attempt.curve.read_text() if attempt.curve.exists() else ""
        exported = attempt.export.iterdir() if attempt.export.is_dir() else ()
        weights = {path.name: path.read_bytes() for path in exported}
        points = [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in text.splitlines()
        ]
        lasting = {k: v for k, v in result.items() if k not in MEASURED}
        outcomes[attempt.key] = (lasting, files, points, weights)
    return outcomes


def assert_results_are_complete(results: Path, runs: int) -> None:
    """Assert that files and store agree, that each run is there once, and nothing is temporary."""
    assert check_store(results).agrees
    with open_snapshot(results) as connection:
        rows = connection.execute(
            "SELECT key, count(*) FROM runs WHERE state = 'ok' GROUP BY key"
        ).fetchall()
    assert [n for _, n in rows] == [1] * runs
    hidden = [path for path in results.rglob(".*") if path.is_file() and path.name != ".lock"]
    assert not hidden


def read_scores(results: Path) -> dict[str, Any]:
    """Return the scores of the finished runs by key."""
    found = [(attempt.key, attempt.read("result")) for attempt in iterate_attempts(results)]
    return {key: result["scores"] for key, result in found if result}


def read_checkpoint_step(attempt: Attempt) -> int:
    return int(torch.load(attempt.checkpoint, weights_only=True)["step"])


# ---- the command ----


def start_sweep(file: Path, results: Path, *options: str) -> subprocess.Popen[str]:
    """Start `qbench sweep` in a process of its own, with a checkpoint after every step."""
    # No option of the command makes checkpoints so often, so the default is changed.
    program = f"""
import sys
from qbench.execution.assignment import Execution
index = list(Execution.__dataclass_fields__).index("checkpoint_s")
defaults = list(Execution.__init__.__defaults__)
defaults[index] = 0.0
Execution.__init__.__defaults__ = tuple(defaults)
{MAIN}"""
    arguments = ["sweep", str(file), "--results", str(results), "--engine", "ray"]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--device", "cpu", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def run_failing_sweep(file: Path, *options: str, program: str = MAIN) -> tuple[int, str]:
    """Run a sweep that must fail before it writes anything.

    Returns:
        Its exit code and its only line of output.
    """
    results = file.parent / "results"
    arguments = ["sweep", str(file), "--results", str(results), *options]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert not results.exists(), "nothing was written"
    return done.returncode, lines[0]


# ---- processes of a cluster ----


def list_actors(cluster: Any) -> list[int]:
    """Return the actors of this cluster, and of no other one on this machine."""
    raylets = [
        process.process.pid
        for node in cluster.list_all_nodes()
        for process in node.all_processes["raylet"]
    ]
    actors = []
    for pid in (child for raylet in raylets for child in list_children(raylet)):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayWorker"):
                actors.append(pid)
    return actors


def map_trainers(cluster: Any) -> dict[int, int]:
    """Return the actor of each process that trains. These are children of its fork server."""
    return {
        trainer: actor
        for actor in list_actors(cluster)
        for server in list_children(actor)
        for trainer in list_children(server)
    }
