"""Run_one: train here, over processes, or ask downstream."""

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

__all__ = ["ask_one"]


def ask_one(
    assignment: Assignment, execution: Execution, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The same in a worker: of a run that is finished, whatever it has not answered yet."""
    told = time.monotonic()

    def beat() -> None:
        nonlocal told
        if time.monotonic() - told > SIGN_OF_LIFE_S:
            report({"step": 0, "steps": 0, "loss": None})
            told = time.monotonic()

    return evaluate_attempt(
        Attempt(assignment.folder),
        assignment.config,
        assignment.downstream,
        execution.device,
        beat=beat,
    )


def run_one(
    assignment: Assignment, execution: Execution = Execution(), report: Report = lambda _: None
) -> dict[str, Any]:
    """Train, export, audit and score one run in this process. Writes the attempt's files, result.json last, and returns the result."""
    if assignment.downstream:
        from qbench.engines.dispatch import ask_one

        return ask_one(assignment, execution, report)
    if execution.gpus_per_run > 1:
        if registry.load("methods", assignment.config.method).post_training is None:
            from qbench.engines.torchrun import run_together

            return write_result(Attempt(assignment.folder), run_together(assignment, execution, report))
        execution = replace(execution, gpus_per_run=1)
    return execute_group([assignment], execution, [report])[0]
