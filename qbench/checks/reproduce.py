"""Reproduction of runs: training them again from their records, and comparing the results.

The verdict is `same` if the artefact is the same, byte for byte, or the failure is. It is `within
tolerance` if the scores differ by no more than the task's minimum effect, which is the least
difference that a board would call one. Otherwise it is `different`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch

from qbench.engines.dispatch import run_one
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.workload import metric_of
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig
from qbench.runs.lookup import looks_like_key, read_latest_attempt
from qbench.store.board_members import find_keys_of_cell

Verdict = Literal["same", "within tolerance", "different"]
COMPARED_FIELDS = (
    "qbench",
    "commit",
    "dirty",
    "torch",
    "numpy",
    "python",
    "platform",
    "cpu",
    "device",
    "device_name",
    "threads",
    "accumulate",
    "compiled",
    "recorded",
    "processes",
)
"""The fields of env.json that can move a score."""
SOURCE_FIELDS = ("method_source", "task_source")
"""Hashes that can differ too. They are compared only if they were recorded."""


@dataclass(frozen=True)
class Reproduction:
    """The outcome of training a run again."""

    key: str
    verdict: Verdict
    recorded: str
    found: str
    tolerance: float
    differences: list[str]
    """What differs in the environment."""

    def __str__(self) -> str:
        lines = [
            f"{self.key}: {self.verdict}",
            f"recorded  {self.recorded}",
            f"found     {self.found}",
        ]
        if self.verdict != "same":
            lines.append(f"tolerance {self.tolerance:g}, the task's minimum effect")
        differences = self.differences or ["nothing in the environment"]
        return "\n".join([*lines, *(f"differs   {line}" for line in differences)])


def reproduce_runs(
    results: Path,
    what: str,
    device: str = "auto",
    board: str | None = None,
    limit: int | None = None,
) -> Iterator[Reproduction]:
    """Reproduce one run or the runs of a cell.

    Args:
        results: The results folder. Nothing is written to it.
        what: A run's key, the beginning of one, or the name of a cell.
        device: The device to train on.
        board: The board whose cell is meant; any by default.
        limit: The largest number of runs; all by default.
    """
    if looks_like_key(results, what):
        keys = [what]
    else:
        keys = find_keys_of_cell(results, what, board)[:limit]
    for key in keys:
        yield reproduce_run(results, key, device)


def reproduce_run(results: Path, beginning: str, device: str = "auto") -> Reproduction:
    """Train a run again, and compare the results. Nothing is written to the results folder.

    The run that it starts from is trained again as well if its artefact is gone.
    """
    record = read_latest_attempt(results, beginning)
    if record["result"] is None or record["spec"] is None:
        raise QbenchError(
            f"run {record['key']} has no result to compare with; qbench sweep finishes it"
        )
    config = RunConfig.from_json(record["spec"])
    recorded_env, threads = record["env"] or {}, torch.get_num_threads()
    # The number of threads decides the order of sums on a CPU, and so the last bits.
    torch.set_num_threads(recorded_env.get("threads") or threads)
    try:
        with tempfile.TemporaryDirectory(prefix="qbench-reproduce-") as scratch:
            result = retrain_run(results, record, Path(scratch), device)
            env = Attempt(Path(scratch) / config.key / "1").read("env") or {}
    finally:
        torch.set_num_threads(threads)
    metric = metric_of(config)
    # A task without a minimum effect is compared by the digits that a board prints.
    tolerance = 10.0**-metric.digits if metric.effect is None else metric.effect
    return Reproduction(
        key=config.key,
        verdict=compare_results(record["result"], result, tolerance),
        recorded=describe_outcome(record["result"]),
        found=describe_outcome(result),
        tolerance=tolerance,
        differences=list_differences(recorded_env, env),
    )


def retrain_run(
    results: Path, record: Mapping[str, Any], scratch: Path, device: str
) -> dict[str, Any]:
    """Train a run in a scratch folder as it was trained before, and return its result.

    The run that it starts from is trained again, too, if its artefact is gone or if it was trained
    elsewhere.
    """
    config, base = RunConfig.from_json(record["spec"]), None
    if config.base is not None:
        base_record = read_latest_attempt(results, config.base)
        attempt = Attempt(Path(base_record["folder"]))
        base = attempt.folder
        if not (attempt.trained_here and attempt.artefact.is_file()):
            retrain_run(results, base_record, scratch, device)
            base = scratch / config.base / "1"
    env = record["env"] or {}
    execution = Execution(
        device=device,
        compile=env.get("compiled"),
        graphs=bool(env.get("recorded")),
        accumulate=env.get("accumulate") or 1,
        gpus_per_run=env.get("processes") or 1,
    )
    # A run that fails prints its traceback, which is of use in a sweep and not here: the result
    # holds the message.
    with redirect_stderr(StringIO()):
        return run_one(Assignment(config, scratch / config.key / "1", base=base), execution)


def compare_results(recorded: dict[str, Any], found: dict[str, Any], tolerance: float) -> Verdict:
    """Return how a new result compares with the recorded one."""
    if recorded["state"] != "ok" or found["state"] != "ok":
        return "same" if recorded["reason"] == found["reason"] else "different"
    if recorded["artefact_sha256"] == found["artefact_sha256"]:
        return "same"
    a, b = recorded["scores"]["packed"], found["scores"]["packed"]
    close = a is not None and b is not None and abs(a - b) <= tolerance
    return "within tolerance" if close else "different"


def describe_outcome(result: dict[str, Any]) -> str:
    """Return a result in one line: the score and the hash of the artefact, or the failure."""
    if result["state"] != "ok":
        return f"failed: {result['reason']}: {result['message']}"
    score, sha256 = result["scores"]["packed"], result["artefact_sha256"]
    return f"{result['metric']['name']} {score!r}, artefact {sha256[:16]}"


def list_differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return the differences between two environments that can move a score, a line each."""
    lines = [
        f"{name}: {recorded.get(name)} then, {found.get(name)} now"
        for name in COMPARED_FIELDS
        if recorded.get(name) != found.get(name)
    ]
    for name in SOURCE_FIELDS:
        old, new = recorded.get(name), found.get(name)
        if old and old != new:
            lines.append(
                f"{name.replace('_', ' ')}: {old[:12]} then, {str(new)[:12]} now, "
                "edited under the same version"
            )
    return lines
