"""Runs of one method instance, prepared so that a test can take their steps one by one."""

from __future__ import annotations

import torch

from qbench.api.method import Method
from qbench.runs.config import RunConfig
from qbench.training.calibration import calibrate
from qbench.training.optimizer import make_optimizer, parameter_groups
from qbench.training.run import TrainingRun
from qbench.training.setup import make_run, open_problem
from tests import SOAK

COMPILERS = ["aot_eager", "inductor"] if SOAK else ["aot_eager"]
"""What gradients are compiled with. `aot_eager` traces the backward pass, but generates no code."""


def prepare_run_of(method: Method, config: RunConfig) -> TrainingRun:
    """Return a calibrated run of `method` with its optimizer, whatever method `config` names."""
    _, problem = open_problem(config, torch.device("cpu"))
    run = make_run(problem, method, config)
    calibrate(run)
    run.optimizer = make_optimizer(parameter_groups(run), config.recipe)
    run.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    return run
