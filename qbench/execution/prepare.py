"""Prepare a run: everything before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from qbench.api.method import Method
from qbench.api.problem import Problem
from qbench.artefact.pack import ARTEFACT, load_into_model
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.compile import compile_run, is_compiled
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.training.calibration import calibrate
from qbench.training.checkpoint import load_checkpoint
from qbench.training.optimizer import make_optimizer, parameter_groups
from qbench.training.process_team import current_team
from qbench.training.run import TrainingRun
from qbench.training.setup import frozen_copy, make_run


def prepare_run(
    assignment: Assignment, execution: Execution, problem: Problem, device: torch.device
) -> TrainingRun:
    """Return the run with its quantizers, its start and its optimizer.

    A post-training method has no optimizer.
    """
    config, recipe = assignment.config, assignment.config.recipe
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.version != config.method_version:
        raise QbenchError(
            f"method {config.method} is at version {method.version} here, "
            f"the run asks for {config.method_version}"
        )
    if assignment.base is not None:
        load_into_model(assignment.base / "export" / ARTEFACT, problem.model)
    run = make_run(problem, method, config, current_team())
    run.passes.micro_batches = execution.accumulate
    run.passes.precision = torch.bfloat16 if recipe.precision == "bf16" else None
    if method.post_training is not None:
        return run
    if assignment.base is not None:
        run.reference = frozen_copy(problem.model)
        run.distills = recipe.objective == "distill"
    calibrate(run)
    run.optimizer = make_optimizer(parameter_groups(run), recipe)
    run.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    # A flag of the whole process: every run sets it before its first step.
    torch.backends.cudnn.allow_tf32 = recipe.precision != "float32"
    if is_compiled(execution, device):
        compile_run(run)
    return run


def resume_run(run: TrainingRun, folder: Path | None, attempt: Attempt) -> tuple[int, float]:
    """Go on from the checkpoint of this attempt, or of the earlier one in `folder`, if there is
    one.

    The curve is cut to the steps that the checkpoint knows.

    Returns:
        The first step to take, and the seconds that the steps before it took.
    """
    earlier = attempt if attempt.checkpoint.exists() or folder is None else Attempt(folder)
    first, seconds = 0, 0.0
    if run.optimizer and earlier.checkpoint.exists():
        first, seconds = load_checkpoint(run, earlier.checkpoint)
    lines = earlier.curve.read_text().splitlines(keepends=True) if first else []
    attempt.curve.write_text(
        "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first)
    )
    return first, seconds
