"""What a worker does with an assignment: train a run, over several processes or in this one, or
ask a finished run downstream questions.

`qbench.engines.worker_process` finds `run_one` and `execute_group` here by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qbench.downstream.evaluate import evaluate_attempt
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.execute import execute_group, write_result
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.training.loop import SIGN_OF_LIFE_S, Report

__all__ = ["answer_questions", "execute_group", "run_one"]


def run_one(
    assignment: Assignment, execution: Execution = Execution(), report: Report = lambda _: None
) -> dict[str, Any]:
    """Train, export, audit and score one run in this process, and return the result.

    The attempt's files are written, result.json last. An assignment with downstream tasks trains
    nothing: its finished run is asked these tasks, and the answers are returned.
    """
    if assignment.downstream:
        return answer_questions(assignment, execution, report)
    if execution.gpus_per_run > 1:
        # A post-training method takes no optimizer step, so there is nothing to distribute.
        if registry.load("methods", assignment.config.method).post_training is None:
            from qbench.engines.torchrun import run_together

            result = run_together(assignment, execution, report)
            return write_result(Attempt(assignment.folder), result)
        execution = replace(execution, gpus_per_run=1)
    return execute_group([assignment], execution, [report])[0]


def answer_questions(
    assignment: Assignment, execution: Execution, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Ask a finished run the downstream tasks that it has not answered, and return all answers."""
    last_report = time.monotonic()

    def heartbeat() -> None:
        # The engine ends a worker that is silent for too long. An evaluation has no steps to
        # report, so it reports a step 0 from time to time.
        nonlocal last_report
        if time.monotonic() - last_report > SIGN_OF_LIFE_S:
            report({"step": 0, "steps": 0, "loss": None})
            last_report = time.monotonic()

    return evaluate_attempt(
        Attempt(assignment.folder),
        assignment.config,
        assignment.downstream,
        execution.device,
        heartbeat=heartbeat,
    )
