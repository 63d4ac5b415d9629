"""Build, calibrate, resume: everything before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from qbench.api.method import Method
from qbench.api.problem import Problem
from qbench.artefact.pack import ARTEFACT, restore
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.compile import compile_run, compiles
from qbench.execution.sharded import divide
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.training import checkpoint
from qbench.training.optimizer import make_optimizer, parameter_groups
from qbench.training.process_team import current
from qbench.training.run import Run
from qbench.training.setup import attach, frozen_copy

CALIBRATION_BATCHES = 4


def prepare(
    assignment: Assignment, execution: Execution, problem: Problem, device: torch.device
) -> Run:
    """The run with its quantizers, its start and its optimizer; a post-training method has none."""
    config, recipe = assignment.config, assignment.config.recipe
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.version != config.method_version:
        raise QbenchError(
            f"method {config.method} is at version {method.version} here, the run asks for {config.method_version}"
        )
    if assignment.base is not None:
        restore(assignment.base / "export" / ARTEFACT, problem.model)
    run = attach(problem, method, config, current(execution.fsdp))
    run.accumulate = execution.accumulate
    run.autocast = torch.bfloat16 if recipe.precision == "bf16" else None
    if assignment.base is not None and method.after is None:
        run.reference = frozen_copy(problem.model)
        run.distills = recipe.objective == "distill"
    for bundle in run.bundles:
        bundle.quantizer.reset(bundle.stack().detach())
    if method.after is not None:
        return run
    method.prepare(run, run.probe_batches(CALIBRATION_BATCHES))
    if run.divided:
        divide(run)
    groups = parameter_groups(run)
    run.optimizer = make_optimizer(groups, recipe, run.divided)
    run.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    torch.backends.cudnn.allow_tf32 = recipe.precision != "float32"
    if compiles(execution, config, device):
        compile_run(run)
    return run


def resume(run: Run, folder: Path | None, attempt: Attempt) -> tuple[int, float]:
    """Go on from the checkpoint of this attempt or of the earlier one in `folder`, if there is one. Returns the first step to take, and the
    seconds that those before it took."""
    earlier = attempt if attempt.checkpoint.exists() or folder is None else Attempt(folder)
    first, seconds = (
        checkpoint.load(run, earlier.checkpoint)
        if run.optimizer and earlier.checkpoint.exists()
        else (0, 0.0)
    )
    lines = earlier.curve.read_text().splitlines(keepends=True) if first else []
    attempt.curve.write_text(
        "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first)
    )
    return first, seconds
