"""The training loop. There is one, every method trains in it, and a method's hooks are called at the places where they stand here.

What is trained is a run, alone or with others side by side in one (`company`). Each has a seat in the loop: its curve, its checkpoint and
its end are its own.
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
from qbench.execution.assignment import Execution
from qbench.execution.side_by_side import hand_back
from qbench.training import checkpoint
from qbench.training.devices import Stopwatch
from qbench.training.failures import blame
from qbench.training.optimizer import clip, set_learning_rates
from qbench.training.run import Run
from qbench.util.json_files import finite

CURVE_POINTS = 100
EVALUATIONS = 8
SIGN_OF_LIFE_S = 30.0

Report = Callable[[dict[str, Any]], None]


def one_step(run: Run, step: int) -> tuple[dict[str, Tensor], Tensor | None, list[float]]:
    """One step of training, whole. Returns the loss's terms, the gradient's norm and each run's learning rate."""
    assert run.optimizer is not None
    run.begin(step)
    with blame("data"):
        batch = run.batch(step)
    rates = set_learning_rates(run, step)
    run.method.before_step(run, batch)
    terms, norm = run.recorded(batch) if run.recorded else update(run, batch)
    return terms, norm, rates


def update(run: Run, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
    """What of a step can be recorded: all that is left when the batch is there, the rates are set and the method's schedules have been read."""
    assert run.optimizer is not None
    run.optimizer.zero_grad(set_to_none=True)
    terms = run.method.step(run, batch)
    run.method.after_backward(run)
    norm = clip(run)
    run.optimizer.step()
    run.method.after_step(run)
    return terms, norm


@dataclass
class Seat:
    """A run's place in the loop: where its curve goes, and what it came to."""

    run: Run
    checkpoint: Path
    curve: TextIO
    report: Report
    before_s: float = 0.0
    """What the steps before the first one took: it goes on from a checkpoint."""
    terms: dict[str, float] = field(default_factory=dict)
    """Of the last loss that was looked at."""
    diverged: str | None = None


def train(run: Run, seats: Sequence[Seat], execution: Execution, first: int = 0) -> Stopwatch:
    """Train from step `first` to the end of the budget, a run alone or several side by side. Returns the times of whole steps."""
    watch, began, share = Stopwatch(run.clock.device), time.monotonic(), 1 / len(seats)
    every, validate_every = max(1, run.steps // CURVE_POINTS), max(1, run.steps // EVALUATIONS)
    saved = reported = time.monotonic()
    run.model.train()
    watch.mark()
    for step in range(first, run.steps):
        terms, norm, rates = one_step(run, step)
        watch.mark()
        done = step + 1
        evaluate = done % validate_every == 0 or done == run.steps
        seconds = (time.monotonic() - began) * share
        if done % every == 0 or evaluate:
            metrics, norms = (
                spread(run.method.metrics(run), len(seats)),
                spread({"": norm}, len(seats)),
            )
            val = validate(run, seats) if evaluate else [None] * len(seats)
            for place, (seat, loss) in enumerate(
                zip(seats, spread(terms, len(seats)), strict=True)
            ):
                if seat.diverged is None:
                    line = {
                        "lr": rates[place],
                        "grad_norm": norms[place].get(""),
                        "metrics": metrics[place],
                        "val": val[place],
                    }
                    look(seat, loss, line, (done, run.steps), seconds)
            if all(seat.diverged for seat in seats):
                break
            reported = time.monotonic()
            watch.skip()
            watch.mark()
        if time.monotonic() - reported > SIGN_OF_LIFE_S:
            for seat in seats:
                seat.report(
                    {
                        "step": done,
                        "steps": run.steps,
                        "loss": sum(seat.terms.values()) if seat.terms else None,
                    }
                )
            reported = time.monotonic()
        due = time.monotonic() - saved > execution.checkpoint_s and done < run.steps
        if run.team.agree(due) if run.team else due:
            keep(run, seats, done, seconds)
            saved = time.monotonic()
            watch.skip()
            watch.mark()
    return watch


def look(
    seat: Seat,
    terms: dict[str, float],
    line: Mapping[str, Any],
    at: tuple[int, int],
    seconds: float,
) -> None:
    """A line of a run's curve, and whether it has diverged."""
    done, steps = at
    seat.terms, loss = terms, sum(terms.values())
    line = {
        "progress": done / steps,
        "seconds": seat.before_s + seconds,
        "terms": terms,
        "loss": loss,
        **line,
    }
    write_line(seat.curve, step=done, **line)
    seat.report({"step": done, "steps": steps, "loss": loss})
    if not math.isfinite(loss):
        seat.diverged = f"the loss is {loss} at step {done} of {steps}"


def spread(values: Mapping[str, float | Tensor | None], count: int) -> list[dict[str, float]]:
    """What each run has of numbers that may be one for all or one each."""
    each = {
        name: v.detach().expand(count).tolist() if isinstance(v, Tensor) else [v] * count
        for name, v in values.items()
        if v is not None
    }
    return [{name: float(v[place]) for name, v in each.items()} for place in range(count)]


def keep(run: Run, seats: Sequence[Seat], done: int, seconds: float) -> None:
    """A checkpoint of every run that goes on."""
    if run.members:
        hand_back(run)
    for seat in seats:
        if seat.diverged is None:
            checkpoint.save(seat.run, done, seat.before_s + seconds, seat.checkpoint)


@torch.no_grad()
def validate(run: Run, seats: Sequence[Seat]) -> list[float | None]:
    """The task's metric on the validation split, of each run that goes on, as its network would ship now."""
    if run.team:
        run.team.check(run)
    if run.members:
        with run.shipped():
            together = run.problem.scores(run.model, "val")
        if together is not None:
            return together.tolist()
    return [None if seat.diverged else validate_one(seat.run, run.step) for seat in seats]


def validate_one(run: Run, step: int) -> float:
    run.begin(step)
    with run.shipped():
        return next(iter(run.problem.score(run.model, "val").values()))


def write_line(file: TextIO, **values: Any) -> None:
    """One line of the curve; numbers that are not finite become null."""
    plain = {
        k: finite({k: v})[0][k]
        if isinstance(v, float)
        else finite(v)[0]
        if isinstance(v, dict)
        else v
        for k, v in values.items()
    }
    file.write(json.dumps(plain, allow_nan=False) + "\n")
    file.flush()
