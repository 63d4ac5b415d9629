"""When and how a run's step is compiled, and when it is recorded."""

from __future__ import annotations

from functools import partial

import torch

from qbench.api.method import Method
from qbench.execution.assignment import Execution
from qbench.execution.step_recording import OPTIMIZERS
from qbench.numerics import batched_math
from qbench.plugins import registry
from qbench.runs.config import RunConfig
from qbench.training.run import TrainingRun

RECOMPILE_LIMIT = 256
"""Graphs of one function. The compiler's usual limit of eight would leave the rest uncompiled."""


def is_compiled(execution: Execution, device: torch.device) -> bool:
    """Return whether steps are compiled: on CUDA, unless the command says otherwise."""
    return device.type == "cuda" if execution.compile is None else execution.compile


def is_recorded(execution: Execution, config: RunConfig, device: torch.device) -> bool:
    """Return whether steps are recorded: where that is asked for, and method and optimizer allow
    it.

    On a CPU the tape cannot hear what is compiled.
    """
    if not execution.graphs or execution.gpus_per_run > 1:
        return False
    if device.type == "cpu" and is_compiled(execution, device):
        return False
    method: Method = registry.build("methods", config.method, config.method_params)
    return config.recipe.optimizer in OPTIMIZERS and method.batched


def compile_run(run: TrainingRun) -> None:
    """Compile what a step computes.

    It is one graph, from weights to losses, where a step is one pass by the usual losses. Where
    weights are quantized once for several micro-batches, and where the losses are the method's own,
    which may look at quantized weights, the network and the quantizers are graphs of their own.
    """
    # Sizes are never dynamic: the compiler would take levels for sizes, and was seen to round
    # wrongly then. Numbers that stacked runs differ in are constants of the graph.
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch.compiler.assume_constant_result(batched_math.cached_constant)
    # On a CPU convolutions keep their memory layout: what a compiler would choose depends on how
    # many runs are stacked, and the bits of a run would depend on that.
    options = {"layout_optimization": run.network.device.type == "cuda"}
    compiled = partial(torch.compile, dynamic=False, options=options)
    passes = run.passes
    one_pass = passes.micro_batches == 1 and not run.team
    if one_pass and type(run.method).losses is Method.losses:
        passes.compiled_terms = compiled(passes.terms)
        passes.compiled_output = compiled(passes.output)
        return
    passes.model = compiled(run.model)
    passes.compiled_output = passes.output_from_leaves
    for stack in run.weights:
        stack.training_call = compiled(stack.quantizer)
