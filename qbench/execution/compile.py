"""When and how a step is compiled."""

from __future__ import annotations

from functools import partial

import torch

from qbench.api.method import Method
from qbench.execution.assignment import Execution
from qbench.execution.group_policy import compiling_pays
from qbench.execution.step_recording import OPTIMIZERS
from qbench.numerics import batched_math
from qbench.plugins import registry
from qbench.runs.config import RunConfig
from qbench.training.run import Run

GRAPHS = 256


def compiles(execution: Execution, config: RunConfig, device: torch.device) -> bool:
    """On CUDA, and on a CPU where it pays, if nothing else is asked for. A divided network is not compiled: its weights come and go between the
    layers of one graph."""
    if execution.fsdp:
        return False
    if execution.compile is not None:
        return execution.compile
    return device.type == "cuda" or (execution.accumulate == 1 and compiling_pays(config))


def records(execution: Execution, config: RunConfig, device: torch.device) -> bool:
    """Where that is asked for, and method, task and optimizer allow it. On a CPU a tape does not hear what is compiled."""
    if (
        not execution.graphs
        or execution.gpus_per_run > 1
        or (device.type == "cpu" and compiles(execution, config, device))
    ):
        return False
    method, task = (
        registry.build("methods", config.method, config.method_params),
        registry.load("tasks", config.task),
    )
    return (
        config.recipe.optimizer in OPTIMIZERS
        and task.unrecorded is None
        and method.unrecorded() is None
    )


def compile_run(run: Run) -> None:
    """What a step computes, from weights to losses, as one graph. Where weights are quantized once for several parts of a batch, and where the
    losses are the method's own, which may look at quantized weights and hold numbers that change, network and quantizers are graphs apart.

    On a CPU convolutions stay as they are laid out: what a compiler would choose depends on how many there are, and a run's bits on that.
    Never with dynamic sizes: the compiler would take levels for sizes too, and was seen to round wrongly then.
    A graph is made for each kind of run, all from one function: the compiler's usual limit of eight would leave the rest uncompiled.
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    torch.compiler.assume_constant_result(batched_math.kept)
    options = {"layout_optimization": run.clock.device.type == "cuda"}
    compiled = partial(torch.compile, dynamic=False, options=options)
    if run.accumulate == 1 and not run.team and type(run.method).losses is Method.losses:
        run.graph, run.compiled = compiled(run.terms), compiled(run.output)
        return
    run.network, run.compiled = compiled(run.model), run.output_in_parts  # type: ignore[assignment]
    for bundle in run.bundles:
        bundle.call = compiled(bundle.quantizer)
