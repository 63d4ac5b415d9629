"""The time of the quick board end to end, and the harness's share of it.

The harness's share is the time from a run's dispatch to its row in the store, less the time to
build, train and score it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from qbench.analysis.results import results
from qbench.engines.local import LocalEngine
from qbench.sweepfile.read import list_plugin_modules, load_builtin_board
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import SweepSummary


class Clock:
    """A progress listener that measures the time from each run's start to its result."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.keys: dict[str, str] = {}

    def start(self, total: int, cached: int) -> None: ...

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        now = time.perf_counter()
        if kind == "started":
            self.spent[run_label], self.keys[details["key"]] = -now, run_label
        elif kind == "finished":
            self.spent[run_label] += now

    def stop(self, summary: SweepSummary) -> None: ...


def table() -> Iterator[str]:
    """Yield the lines of the report."""
    config, clock = load_builtin_board("quick"), Clock()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with closing(LocalEngine(preload=list_plugin_modules(config))) as engine:
            engine.start()
            summary = run_sweep(config, Path(folder), engine, progress=clock)
        wall = time.perf_counter() - began
        assert summary.code == 0, summary
        runs = results(folder).runs.set_index("key")
    runs["spent_s"] = [clock.spent[clock.keys[key]] for key in runs.index]
    runs["own_s"] = runs["spent_s"] - runs["build_s"] - runs["train_s"] - runs["eval_s"]
    by_task: dict[str, list[str]] = defaultdict(list)
    for task, part in runs.groupby("task"):
        for column in ("spent_s", "build_s", "train_s", "eval_s", "own_s"):
            by_task[str(task)].append(f"{statistics.median(part[column]):.3f}")
    yield "Median seconds a run: dispatch to row; of it data and model, training, export with audit and scoring, and the rest, which is the harness."
    yield ""
    yield "| task | dispatch to row | build | train | score | harness |"
    yield "|---|---:|---:|---:|---:|---:|"
    for task, cells in by_task.items():
        yield f"| {task} | {' | '.join(cells)} |"
    share = runs["own_s"].sum() / runs["spent_s"].sum()
    around = runs["own_s"] + runs["build_s"] + runs["eval_s"]
    yield ""
    yield "| what | measured | target |"
    yield "|---|---:|---:|"
    yield f"| the quick board end to end, {len(runs)} runs | {wall:.0f} s | 240 s |"
    yield f"| harness, median of a run | {runs['own_s'].median():.3f} s | 0.1 s |"
    yield f"| harness, largest of a run | {runs['own_s'].max():.3f} s | |"
    yield f"| harness, share of the runs' time | {100 * share:.1f} % | 5 % |"
    yield f"| everything but the steps (build, export, audit, scoring, harness), median of a run | {around.median():.3f} s | |"
