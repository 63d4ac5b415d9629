"""From a run's configuration to its files: open, train, export, audit, score, and the result written last.

Several runs that may train side by side are made together. Each has a making of its own, so that what one of them does wrong is its own.
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

from qbench.artefact.score import score
from qbench.errors import Diverged, QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.compile import compile_run, compiles, records
from qbench.execution.prepare import CALIBRATION_BATCHES, prepare, resume
from qbench.execution.sharded import reunite
from qbench.execution.side_by_side import hand_back, side_by_side
from qbench.execution.step_recording import Recorded
from qbench.plugins.source_hash import sources
from qbench.runs.attempts import Attempt
from qbench.runs.environment import environment
from qbench.training.devices import (
    Stopwatch,
    device_in_use,
    forget_memory,
    peak_flops,
    peak_memory,
    quartiles,
)
from qbench.training.failures import Failed, blame
from qbench.training.loop import Report, Seat, train, update
from qbench.training.run import Run
from qbench.training.setup import open_problem
from qbench.util.json_files import finite


def conclude(attempt: Attempt, result: dict[str, Any]) -> dict[str, Any]:
    """Write the result of an attempt that is over."""
    attempt.checkpoint.unlink(missing_ok=True)
    attempt.write("result", result)
    return result


def run_group(
    assignments: Sequence[Assignment], execution: Execution, reports: Sequence[Report]
) -> list[dict[str, Any]]:
    """The same for several runs, trained side by side. What goes wrong among several is tried again by halves, from their last checkpoints,
    until each run has a verdict of its own."""
    makings = [
        Making(assignment, execution, report)
        for assignment, report in zip(assignments, reports, strict=True)
    ]
    todo = [makings]
    while todo:
        several = todo.pop()
        for making in several:
            with making.blamed():
                making.open()
        for group in _at_one_step([making for making in several if making.going]):
            if not _trained(group):
                for making in group:
                    making.execution = replace(
                        making.execution, graphs=False
                    )  # what breaks off as a graph may go on without
                gc.collect()  # an error holds on to what broke off, and so to its memory
                middle = len(group) // 2
                todo += [group[middle:], group[:middle]]
    return [conclude(making.attempt, making.finish()) for making in makings]


def _at_one_step(makings: Sequence[Making]) -> list[list[Making]]:
    found: dict[int, list[Making]] = {}
    for making in makings:
        found.setdefault(making.first, []).append(making)
    return list(found.values())


def _trained(group: Sequence[Making]) -> bool:
    """Train what is to be trained. False where several failed together, so that nothing is known of each."""
    if len(group) > 1:
        try:
            with blame("plugin"):
                run = side_by_side([making.run for making in group])
                if run is not None:
                    Making.train(run, group)
                    hand_back(run)
                    return True
        except Failed:
            traceback.print_exc()
            return False
    for making in group:
        with making.blamed():
            making.train(making.run, [making])
    return True


@dataclass
class Making:
    """One run on its way through this process."""

    assignment: Assignment
    execution: Execution
    report: Report
    result: dict[str, Any] = field(init=False)
    first: int = 0
    before_s: float = 0.0
    build_s: float = 0.0
    train_s: float = 0.0
    watch: Stopwatch | None = None
    company: int = 1
    """How many runs took its steps side by side."""

    def __post_init__(self) -> None:
        self.attempt, self.config = Attempt(self.assignment.folder), self.assignment.config
        self.device = device_in_use(self.execution.device)
        self.attempt.folder.mkdir(parents=True, exist_ok=True)
        self.attempt.write("spec", self.config.to_json())
        self.result = {
            "result_version": 1,
            "key": self.config.key,
            "attempt": self.attempt.number,
            "state": "ok",
            "reason": None,
        }
        self.result |= {"message": None, "started": now()}

    @property
    def going(self) -> bool:
        return bool(self.result["state"] == "ok")

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What goes wrong in here is the run's own failure."""
        try:
            yield
        except (Failed, Diverged) as error:
            traceback.print_exc()
            reason = error.reason if isinstance(error, Failed) else "diverged"
            self.result |= {"state": "failed", "reason": reason, "message": str(error)}

    def open(self) -> None:
        """The data, the network and the method, at the first step to be taken."""
        began = time.perf_counter()
        forget_memory(self.device)
        self.attempt.write("env", self.environment())
        with blame("data"):
            task, self.problem = open_problem(self.config, self.device)
            if task.fingerprint() != self.config.data:
                raise QbenchError(
                    f"task {self.config.task} has other data here than the run asks for"
                )
        self.metric = task.metric
        self.result["metric"] = vars(task.metric)
        with blame("plugin"):
            self.run = prepare(self.assignment, self.execution, self.problem, self.device)
        self.first, self.before_s = resume(self.run, self.assignment.resume, self.attempt)
        self.build_s = time.perf_counter() - began

    def environment(self) -> dict[str, Any]:
        return {
            **environment(),
            **sources(self.config.method, self.config.task),
            "device": self.device.type,
            "device_name": device_name(self.device),
            "threads": torch.get_num_threads(),
            "accumulate": self.execution.accumulate,
            "compiled": compiles(self.execution, self.config, self.device),
            **({"recorded": True} if records(self.execution, self.config, self.device) else {}),
            **(
                {"processes": self.execution.gpus_per_run, "divided": self.execution.fsdp}
                if self.execution.gpus_per_run > 1
                else {}
            ),
        }

    @staticmethod
    def train(run: Run, group: Sequence[Making]) -> None:
        """Take the steps of a run, or of several side by side."""
        execution = group[0].execution
        if run.optimizer is None:
            return
        if run.members and compiles(execution, group[0].config, run.clock.device):
            compile_run(run)
        if records(execution, group[0].config, run.clock.device):
            run.recorded = Recorded(run, update)
        began = time.perf_counter()
        with ExitStack() as files, blame("plugin"):
            seats = [
                making.seat(files.enter_context(open(making.attempt.curve, "a", encoding="utf-8")))
                for making in group
            ]
            if run.recorded:
                files.callback(run.recorded.end)
            watch = train(run, seats, execution, group[0].first)
        for making, seat in zip(group, seats, strict=True):
            making.run = reunite(making.run)
            making.watch, making.company, making.train_s = (
                watch,
                len(group),
                (time.perf_counter() - began) / len(group),
            )
            with making.blamed():
                making.seen(seat)

    def seat(self, curve: TextIO) -> Seat:
        return Seat(self.run, self.attempt.checkpoint, curve, self.report, self.before_s)

    def seen(self, seat: Seat) -> None:
        if seat.diverged:
            raise Diverged(seat.diverged)
        terms = seat.terms
        self.result["train"] = {
            "steps": self.config.recipe.steps,
            "final_loss": finite({"x": sum(terms.values())})[0]["x"],
            "terms": finite(terms)[0],
        }

    def finish(self) -> dict[str, Any]:
        """Export, audit and score what was trained. Returns the result."""
        if self.going:
            with self.blamed():
                self.score()
        self.result["finished"] = now()
        return self.result

    def score(self) -> None:
        began = time.perf_counter()
        with blame("plugin"):
            self.run.begin(self.config.recipe.steps)
            self.run.method.finalize(self.run, self.run.probe_batches(CALIBRATION_BATCHES))
            self.result["method"] = finite(
                {name: float(value) for name, value in self.run.method.metrics(self.run).items()}
            )[0]
        trained = time.perf_counter()
        with blame("eval"):
            self.result |= score(self.run, self.config, self.metric, self.attempt.export)
        train_s = self.before_s + self.train_s + trained - began
        self.result["cost"] = self.cost(train_s, time.perf_counter() - trained)

    def cost(self, train_s: float, eval_s: float) -> dict[str, Any]:
        """What the run took, its share of what runs took side by side. Step times are synchronised and leave out warm-up, logging and validation."""
        found: dict[str, Any] = {
            "build_s": self.build_s,
            "train_s": train_s,
            "eval_s": eval_s,
            "wall_s": self.build_s + train_s + eval_s,
        }
        found["peak_memory_bytes"] = peak_memory(self.device)
        if self.company > 1:
            found["company"] = self.company
        if times := self.watch.steps() if self.watch else []:
            low, middle, high = (seconds / self.company for seconds in quartiles(times))
            found |= {"step_s_median": middle, "step_s_q25": low, "step_s_q75": high}
            recipe = self.config.recipe
            found |= {
                "samples_per_s": recipe.batch / middle,
                "tokens_per_s": self.problem.tokens_per_step / middle,
            }
            if flops := self.problem.flops_per_step:
                dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
                found["peak_share"] = (
                    flops / middle / (peak_flops(self.device, dtype) * self.execution.gpus_per_run)
                )
        return found


# ---- opening ----


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
