"""From a run's configuration to its files: open, train, export, audit, score, and write the result.

Runs that may be stacked are executed as a group. Each has a `RunExecution` of its own, so that one
failure does not affect the other runs. `result.json` is written last: a folder that has one is
done.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TextIO

import torch

from qbench.artefact.score import score_run
from qbench.errors import Diverged, QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.compile import compile_run, is_compiled, is_recorded
from qbench.execution.prepare import prepare_run, resume_run
from qbench.execution.stacking import stack_runs
from qbench.execution.step_recording import RecordedStep
from qbench.plugins.source_hash import hash_sources
from qbench.runs.attempts import Attempt
from qbench.runs.environment import collect_environment
from qbench.training.calibration import finalize
from qbench.training.devices import (
    Stopwatch,
    peak_flops,
    peak_memory,
    quartiles,
    reset_peak_memory,
    select_device,
)
from qbench.training.failures import Failed, failing_with
from qbench.training.loop import Report, RunTracker, train, update
from qbench.training.run import TrainingRun
from qbench.training.setup import open_problem
from qbench.util.json_files import replace_non_finite


def execute_group(
    assignments: Sequence[Assignment], execution: Execution, reports: Sequence[Report]
) -> list[dict[str, Any]]:
    """Train, export, audit and score runs in this process, stacked where that is possible.

    If a stack of runs fails, it is tried again by halves, from the runs' last checkpoints, until
    each run has succeeded or failed by itself.

    Returns:
        The results, which were also written to the attempts' folders.
    """
    executions = [
        RunExecution(assignment, execution, report)
        for assignment, report in zip(assignments, reports, strict=True)
    ]
    pending = [executions]
    while pending:
        group = pending.pop()
        for one in group:
            with one.record_failure():
                one.open()
        for stackable in _group_by_first_step([one for one in group if one.is_ok]):
            if not _train_group(stackable):
                # A step that cannot be recorded may still be taken. A group of one is tried again
                # once: without graphs its failure is recorded as the run's own.
                for one in stackable:
                    one.execution = replace(one.execution, graphs=False)
                gc.collect()  # the error holds on to the failed stack, and so to its memory
                middle = len(stackable) // 2
                pending += [half for half in (stackable[middle:], stackable[:middle]) if half]
    return [write_result(one.attempt, one.finish()) for one in executions]


def write_result(attempt: Attempt, result: dict[str, Any]) -> dict[str, Any]:
    """Write the result of an attempt that is over, and return it."""
    attempt.checkpoint.unlink(missing_ok=True)
    attempt.write("result", result)
    return result


def _group_by_first_step(executions: Sequence[RunExecution]) -> list[list[RunExecution]]:
    """Return the runs in groups that begin at the same step: only these can be stacked."""
    groups: dict[int, list[RunExecution]] = {}
    for one in executions:
        groups.setdefault(one.first_step, []).append(one)
    return list(groups.values())


def _train_group(group: Sequence[RunExecution]) -> bool:
    """Train runs, stacked if there are several.

    Returns:
        False if the attempt says nothing about the single runs, so that they must be tried again:
        several failed together, or a step could not be recorded.
    """
    if len(group) > 1 or group[0].records_steps:
        try:
            with failing_with("plugin"):
                run = stack_runs([one.run for one in group]) if len(group) > 1 else group[0].run
                if run is not None:
                    train_run(run, group)
                    run.return_state()
                    return True
        except Failed:
            traceback.print_exc()
            return False
    for one in group:
        with one.record_failure():
            train_run(one.run, [one])
    return True


def train_run(run: TrainingRun, group: Sequence[RunExecution]) -> None:
    """Train a run, or several stacked runs, and record what has become of each."""
    first, execution = group[0], group[0].execution
    if run.optimizer is None:
        return
    if run.stacked and is_compiled(execution, run.network.device):
        compile_run(run)
    if first.records_steps:
        run.recording = RecordedStep(run, update)
    began = time.perf_counter()
    with ExitStack() as files, failing_with("plugin"):
        trackers = [
            one.track(files.enter_context(open(one.attempt.curve, "a", encoding="utf-8")))
            for one in group
        ]
        if run.recording:
            files.callback(run.recording.end)
        watch = train(run, trackers, execution.checkpoint_s, first.first_step)
    train_s = (time.perf_counter() - began) / len(group)
    for one, tracker in zip(group, trackers, strict=True):
        one.watch, one.stacked_runs, one.train_s = watch, len(group), train_s
        with one.record_failure():
            one.record_training(tracker)


@dataclass
class RunExecution:
    """One run on its way through this process."""

    assignment: Assignment
    execution: Execution
    report: Report
    result: dict[str, Any] = field(init=False)
    first_step: int = 0
    """The first step to take: not 0 where the run is resumed."""
    seconds_before: float = 0.0
    """Seconds that the steps before it took."""
    build_s: float = 0.0
    train_s: float = 0.0
    watch: Stopwatch | None = None
    stacked_runs: int = 1
    """How many runs took their steps together."""

    def __post_init__(self) -> None:
        self.attempt, self.config = Attempt(self.assignment.folder), self.assignment.config
        self.device = select_device(self.execution.device)
        self.attempt.folder.mkdir(parents=True, exist_ok=True)
        self.attempt.write("spec", self.config.to_json())
        self.result = {
            "result_version": 1,
            "key": self.config.key,
            "attempt": self.attempt.number,
            "state": "ok",
            "reason": None,
            "message": None,
            "started": now(),
        }

    @property
    def is_ok(self) -> bool:
        return bool(self.result["state"] == "ok")

    @property
    def records_steps(self) -> bool:
        return is_recorded(self.execution, self.config, self.device)

    @contextmanager
    def record_failure(self) -> Iterator[None]:
        """Record what goes wrong in this context as the run's failure."""
        try:
            yield
        except (Failed, Diverged) as error:
            traceback.print_exc()
            reason = error.reason if isinstance(error, Failed) else "diverged"
            self.result |= {"state": "failed", "reason": reason, "message": str(error)}

    def open(self) -> None:
        """Open the data, the network and the method, at the first step to take."""
        began = time.perf_counter()
        reset_peak_memory(self.device)
        self.attempt.write("env", self.describe_environment())
        with failing_with("data"):
            task, self.problem = open_problem(self.config, self.device)
            if task.fingerprint() != self.config.data:
                raise QbenchError(
                    f"task {self.config.task} has other data here than the run asks for"
                )
        self.metric = task.metric
        self.result["metric"] = vars(task.metric)
        with failing_with("plugin"):
            self.run = prepare_run(self.assignment, self.execution, self.problem, self.device)
        self.first_step, self.seconds_before = resume_run(
            self.run, self.assignment.resume, self.attempt
        )
        self.build_s = time.perf_counter() - began

    def describe_environment(self) -> dict[str, Any]:
        """Return what env.json says: the machine, the code, and how the run is carried out."""
        described: dict[str, Any] = {
            **collect_environment(),
            **hash_sources(self.config.method, self.config.task),
            "device": self.device.type,
            "device_name": device_name(self.device),
            "threads": torch.get_num_threads(),
            "accumulate": self.execution.accumulate,
            "compiled": is_compiled(self.execution, self.device),
        }
        if self.records_steps:
            described["recorded"] = True
        if self.execution.gpus_per_run > 1:
            described["processes"] = self.execution.gpus_per_run
        return described

    def track(self, curve: TextIO) -> RunTracker:
        """Return the run's tracker for the training loop."""
        return RunTracker(
            self.run, self.attempt.checkpoint, curve, self.report, self.seconds_before
        )

    def record_training(self, tracker: RunTracker) -> None:
        """Put what training came to into the result."""
        if tracker.diverged:
            raise Diverged(tracker.diverged)
        self.result["train"] = {
            "steps": self.config.recipe.steps,
            "final_loss": replace_non_finite({"loss": sum(tracker.terms.values())})[0]["loss"],
            "terms": replace_non_finite(tracker.terms)[0],
        }

    def finish(self) -> dict[str, Any]:
        """Export, audit and score what was trained, and return the result."""
        if self.is_ok:
            with self.record_failure():
                self.score()
        self.result["finished"] = now()
        return self.result

    def score(self) -> None:
        """Finalize, export, audit and score the run, and count what it took."""
        began = time.perf_counter()
        with failing_with("plugin"):
            self.run.begin_step(self.config.recipe.steps)
            finalize(self.run)
            metrics = self.run.method.metrics(self.run)
            self.result["method"] = replace_non_finite({n: float(v) for n, v in metrics.items()})[0]
        trained = time.perf_counter()
        with failing_with("eval"):
            self.result |= score_run(self.run, self.config, self.metric, self.attempt.export)
        train_s = self.seconds_before + self.train_s + trained - began
        self.result["cost"] = self.count_cost(train_s, time.perf_counter() - trained)

    def count_cost(self, train_s: float, eval_s: float) -> dict[str, Any]:
        """Return what the run took: of what stacked runs took together, its share.

        Step times are synchronised, and leave out warm-up, logging and validation.
        """
        cost: dict[str, Any] = {
            "build_s": self.build_s,
            "train_s": train_s,
            "eval_s": eval_s,
            "wall_s": self.build_s + train_s + eval_s,
            "peak_memory_bytes": peak_memory(self.device),
        }
        if self.stacked_runs > 1:
            cost["company"] = self.stacked_runs  # the key of the format on disk
        if times := self.watch.steps() if self.watch else []:
            cost |= self.count_speed(times)
        return cost

    def count_speed(self, times: list[float]) -> dict[str, float]:
        """Return the quartiles of a step's seconds, and the throughput."""
        low, middle, high = (seconds / self.stacked_runs for seconds in quartiles(times))
        recipe, work = self.config.recipe, self.problem.work
        speed = {
            "step_s_median": middle,
            "step_s_q25": low,
            "step_s_q75": high,
            "samples_per_s": recipe.batch / middle,
            "tokens_per_s": work.labels / middle,
        }
        if work.flops:
            dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
            peak = peak_flops(self.device, dtype) * self.execution.gpus_per_run
            speed["peak_share"] = work.flops / middle / peak
        return speed


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
