"""Making runs again from their records, and whether they come to the same.

`same` is the same artefact, byte for byte, or the same failure. `within tolerance` is a score that differs by less than the
task's minimum effect, the least difference that a board would call one. Anything else is `different`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
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
MATTERS = (
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
"""What of an environment can move a score."""
SOURCES = ("method_source", "task_source")
"""What else can; runs that were made before it was recorded do not differ."""


@dataclass(frozen=True)
class Reproduction:
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
        return "\n".join(
            [
                *lines,
                *(
                    f"differs   {line}"
                    for line in self.differences or ["nothing in the environment"]
                ),
            ]
        )


def reproduce_runs(
    results: Path,
    what: str,
    device: str = "auto",
    board: str | None = None,
    most: int | None = None,
) -> Iterator[Reproduction]:
    """A run by its key or the beginning of it, or the runs of a cell by its name, at most so many of them."""
    keys = (
        [what] if looks_like_key(results, what) else find_keys_of_cell(results, what, board)[:most]
    )
    for key in keys:
        yield reproduce_run(results, key, device)


def reproduce_run(results: Path, beginning: str, device: str = "auto") -> Reproduction:
    """Train a run again, and whatever it goes on from if that is gone; nothing is written to the results folder."""
    record = read_latest_attempt(results, beginning)
    if record["result"] is None or record["spec"] is None:
        raise QbenchError(
            f"run {record['key']} has no result to compare with; qbench sweep finishes it"
        )
    config = RunConfig.from_json(record["spec"])
    was, before = record["env"] or {}, torch.get_num_threads()
    torch.set_num_threads(was.get("threads") or before)
    try:
        with tempfile.TemporaryDirectory(prefix="qbench-reproduce-") as scratch:
            result = retrain_run(results, record, Path(scratch), device)
            environment = Attempt(Path(scratch) / config.key / "1").read("env")
    finally:
        torch.set_num_threads(before)
    metric = metric_of(config)
    tolerance = 10.0**-metric.digits if metric.effect is None else metric.effect
    verdict = compare_results(record["result"], result, tolerance)
    differences = list_differences(was, environment or {})
    return Reproduction(
        config.key, verdict, describe_outcome(record["result"]), describe_outcome(result), tolerance, differences
    )


def retrain_run(results: Path, was: Mapping[str, Any], scratch: Path, device: str) -> dict[str, Any]:
    """A run's result, made in a scratch folder as it was made then. What it goes on from is made again, too, where it is gone or was trained by
    nobody here."""
    config, base = RunConfig.from_json(was["spec"]), None
    if config.base is not None:
        record = read_latest_attempt(results, config.base)
        attempt = Attempt(Path(record["folder"]))
        base = attempt.folder
        if not (attempt.trained_here and attempt.artefact.is_file()):
            retrain_run(results, record, scratch, device)
            base = scratch / config.base / "1"
    env = was["env"] or {}
    execution = Execution(
        device=device, compile=env.get("compiled"), accumulate=env.get("accumulate") or 1
    )
    execution = replace(
        execution,
        gpus_per_run=env.get("processes") or 1,
        graphs=bool(env.get("recorded")),
    )
    # A failure is told in the result; where in the code it happened is for whoever mends it, and their own sweep says it.
    with redirect_stderr(StringIO()):
        return run_one(Assignment(config, scratch / config.key / "1", base=base), execution)


def compare_results(recorded: dict[str, Any], found: dict[str, Any], tolerance: float) -> Verdict:
    if recorded["state"] != "ok" or found["state"] != "ok":
        return "same" if recorded["reason"] == found["reason"] else "different"
    if recorded["artefact_sha256"] == found["artefact_sha256"]:
        return "same"
    a, b = recorded["scores"]["packed"], found["scores"]["packed"]
    return (
        "within tolerance"
        if a is not None and b is not None and abs(a - b) <= tolerance
        else "different"
    )


def describe_outcome(result: dict[str, Any]) -> str:
    if result["state"] != "ok":
        return f"failed: {result['reason']}: {result['message']}"
    return f"{result['metric']['name']} {result['scores']['packed']!r}, artefact {result['artefact_sha256'][:16]}"


def list_differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    told = [
        f"{name}: {recorded.get(name)} then, {found.get(name)} now"
        for name in MATTERS
        if recorded.get(name) != found.get(name)
    ]
    other = [name for name in SOURCES if recorded.get(name) and recorded[name] != found.get(name)]
    return told + [
        f"{name.replace('_', ' ')}: {recorded[name][:12]} then, {str(found.get(name))[:12]} now, edited under the same version"
        for name in other
    ]
