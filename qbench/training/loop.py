"""The training loop. There is one, and every method trains in it.

`take_step` shows where each hook of a method is called. `train` repeats it to the end of the
budget, and does what is due now and then: log a point of the curve, validate, report, save a
checkpoint. What is trained is one run or several stacked runs. Each has a tracker of its own, so
that its curve, its checkpoint and its end are its own.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from qbench.api.batch import Batch
from qbench.api.method import Method
from qbench.training import checkpoint
from qbench.training.calibration import recalibrate_if_due
from qbench.training.devices import Stopwatch
from qbench.training.failures import failing_with
from qbench.training.optimizer import clip_gradients, set_learning_rates
from qbench.training.run import TrainingRun
from qbench.util.json_files import replace_non_finite

CURVE_POINTS = 100
EVALUATIONS = 8
SIGN_OF_LIFE_S = 30.0
"""Seconds between reports during long steps: well below the silence after which a worker counts as
hung (`Execution.silence_s`)."""

Report = Callable[[dict[str, Any]], None]


def take_step(run: TrainingRun, step: int) -> tuple[dict[str, Tensor], Tensor | None, list[float]]:
    """Take one step of training.

    Returns:
        The terms of the loss, the norm of the gradient, and each run's learning rate.
    """
    run.begin_step(step)
    with failing_with("data"):
        batch = run.batch(step)
    # The numbers of `schedules` are set after the probes, which therefore must not read them.
    if step:  # before the first step `prepare_run` has just calibrated
        recalibrate_if_due(run)
    probe_if_due(run, batch)
    run.apply_schedules()
    rates = set_learning_rates(run)
    terms, norm = run.recording(batch) if run.recording else update(run, batch)
    return terms, norm, rates


def update(run: TrainingRun, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
    """Take the part of a step that can be recorded: everything after the schedule."""
    assert run.optimizer is not None
    run.optimizer.zero_grad(set_to_none=True)
    terms = run.method.step(run, batch)
    run.method.after_backward(run)
    norm = clip_gradients(run)
    run.optimizer.step()
    run.method.after_step(run)
    return terms, norm


def probe_if_due(run: TrainingRun, batch: Batch) -> None:
    """Let the method measure, run by run, those that ask for it at this step."""
    if type(run.method).probes is Method.probes:
        return
    if any(one.method.probes(one) for one in run.runs):
        for one, part in run.pair_with_batches(batch):
            if one.method.probes(one):
                one.method.probe(one, part)


@dataclass
class RunTracker:
    """Where a run's curve and checkpoint go, and what has become of it."""

    run: TrainingRun
    checkpoint: Path
    curve: TextIO
    report: Report
    seconds_before: float = 0.0
    """Seconds that the steps before the first one took, where the run was resumed."""
    terms: dict[str, float] = field(default_factory=dict)
    """The terms of the last loss that was logged."""
    diverged: str | None = None
    """Why the run has diverged, if it has."""


def train(
    run: TrainingRun, trackers: Sequence[RunTracker], checkpoint_s: float, first: int = 0
) -> Stopwatch:
    """Train from step `first` to the end of the budget.

    Args:
        run: One run, or several stacked runs.
        trackers: One for each run.
        checkpoint_s: Seconds between checkpoints.
        first: The first step to take.

    Returns:
        The times of whole steps, without what is done now and then.
    """
    watch, began, share = Stopwatch(run.network.device), time.monotonic(), 1 / len(trackers)
    log_every = max(1, run.steps // CURVE_POINTS)
    validate_every = max(1, run.steps // EVALUATIONS)
    last_saved = last_report = time.monotonic()
    run.model.train()
    watch.mark()
    for step in range(first, run.steps):
        terms, norm, rates = take_step(run, step)
        watch.mark()
        done = step + 1
        seconds = (time.monotonic() - began) * share

        # Once in a while: log a point of the curve, and validate.
        validates = done % validate_every == 0 or done == run.steps
        if done % log_every == 0 or validates:
            scores: list[float | None] = [None] * len(trackers)
            if validates:
                scores = validate(run, trackers)
            log_points(run, trackers, done, seconds, (terms, norm, rates, scores))
            if all(tracker.diverged for tracker in trackers):
                break
            last_report = time.monotonic()
            watch.skip()
            watch.mark()

        # Long steps: say that the run is alive.
        if time.monotonic() - last_report > SIGN_OF_LIFE_S:
            for tracker in trackers:
                loss = sum(tracker.terms.values()) if tracker.terms else None
                tracker.report({"step": done, "steps": run.steps, "loss": loss})
            last_report = time.monotonic()

        # Save checkpoints, by wall time: what a kill costs does not depend on the task.
        if time.monotonic() - last_saved > checkpoint_s and done < run.steps:
            save_checkpoints(run, trackers, done, seconds)
            last_saved = time.monotonic()
            watch.skip()
            watch.mark()
    return watch


def log_points(
    run: TrainingRun,
    trackers: Sequence[RunTracker],
    done: int,
    seconds: float,
    results: tuple[dict[str, Tensor], Tensor | None, list[float], list[float | None]],
) -> None:
    """Log a point of the curve of every run that goes on."""
    terms, norm, rates, scores = results
    count = len(trackers)
    metrics = per_run_values(run.method.metrics(run), count)
    norms, losses = per_run_values({"norm": norm}, count), per_run_values(terms, count)
    for place, tracker in enumerate(trackers):
        if tracker.diverged is None:
            line = {
                "lr": rates[place],
                "grad_norm": norms[place].get("norm"),
                "metrics": metrics[place],
                "val": scores[place],
            }
            log_point(tracker, losses[place], line, (done, run.steps), seconds)


def log_point(
    tracker: RunTracker,
    terms: dict[str, float],
    line: Mapping[str, Any],
    position: tuple[int, int],
    seconds: float,
) -> None:
    """Write a line of a run's curve, and find out whether the run has diverged."""
    done, steps = position
    if tracker.run.distills and "task" in terms:
        # What is minimised then is the distance from the reference, and curves call it so.
        terms = {"distance" if name == "task" else name: terms[name] for name in terms}
    tracker.terms, loss = terms, sum(terms.values())
    write_line(
        tracker.curve,
        step=done,
        progress=done / steps,
        seconds=tracker.seconds_before + seconds,
        terms=terms,
        loss=loss,
        **line,
    )
    tracker.report({"step": done, "steps": steps, "loss": loss})
    if not math.isfinite(loss):
        tracker.diverged = f"the loss is {loss} at step {done} of {steps}"


def per_run_values(
    values: Mapping[str, float | Tensor | None], count: int
) -> list[dict[str, float]]:
    """Return each run's values of numbers that may be one for all runs, or one each."""
    lists = {
        name: value.detach().expand(count).tolist()
        if isinstance(value, Tensor)
        else [value] * count
        for name, value in values.items()
        if value is not None
    }
    return [
        {name: float(numbers[place]) for name, numbers in lists.items()} for place in range(count)
    ]


def save_checkpoints(
    run: TrainingRun, trackers: Sequence[RunTracker], done: int, seconds: float
) -> None:
    """Save a checkpoint of every run that has not diverged."""
    run.return_state()
    for tracker in trackers:
        if tracker.diverged is None:
            checkpoint.save_checkpoint(
                tracker.run, done, tracker.seconds_before + seconds, tracker.checkpoint
            )


@torch.no_grad()
def validate(run: TrainingRun, trackers: Sequence[RunTracker]) -> list[float | None]:
    """Return the task's metric on the validation split, of each run as it would ship now."""
    if run.team:
        run.team.check_agreement(run)
    if run.stacked:
        with run.network.as_shipped():
            scores = run.problem.score_stacked(run.model, "val")
        if scores is not None:
            return scores.tolist()
    return [None if tracker.diverged else validate_one(tracker.run) for tracker in trackers]


def validate_one(run: TrainingRun) -> float:
    """Return the task's metric on the validation split, of one run as it would ship now."""
    with run.network.as_shipped():
        return next(iter(run.problem.score(run.model, "val").values()))


def write_line(file: TextIO, **values: Any) -> None:
    """Write one line of a curve; numbers that are not finite become null."""
    plain = {name: _without_infinities(name, value) for name, value in values.items()}
    file.write(json.dumps(plain, allow_nan=False) + "\n")
    file.flush()


def _without_infinities(name: str, value: Any) -> Any:
    if isinstance(value, float):
        return replace_non_finite({name: value})[0][name]
    return replace_non_finite(value)[0] if isinstance(value, dict) else value
