"""A method's quantizers put in their places: from a problem and a configuration to a run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from qbench.api.problem import Problem
from qbench.api.task import Task
from qbench.errors import QbenchError
from qbench.numerics.keyed_random import key_of
from qbench.plugins import registry
from qbench.quant.layers import QuantLayer
from qbench.quant.site import Site
from qbench.quant.weight_stack import Bundle
from qbench.runs.config import RunConfig
from qbench.training.process_team import Team
from qbench.training.quantized_network import INPUT
from qbench.training.run import Run

if TYPE_CHECKING:
    from qbench.api.method import Method

__all__ = ["attach", "frozen_copy", "sites"]


def sites(problem: Problem, config: RunConfig) -> list[Site]:
    """The tensors that a run quantizes: the weights of the task's layers, and their inputs where the board asks for it."""
    found = []
    for name, layer in problem.layers().items():
        if config.weights:
            found.append(
                Site(
                    name,
                    "weight",
                    config.weights.format,
                    config.weights.granularity,
                    tuple(layer.matrix().shape),
                )
            )
        if config.activations:
            shape = (1, layer.matrix().shape[-1])
            a = config.activations
            found.append(
                Site(
                    name + INPUT, "activation", a.format, a.granularity, shape, layer.unsigned_input
                )
            )
    return found


def attach(problem: Problem, method: Method, config: RunConfig, team: Team | None = None) -> Run:
    """A run with the method's quantizers in place. Weight sites of one shape share a quantizer, unless the method wants one each."""
    run = Run(
        problem, method, config.seed, config.recipe.steps, recipes=(config.recipe,), team=team
    )
    together = method.bundles and not run.divided
    layers = problem.layers()
    stacks: dict[object, list[Site]] = {}
    for site in sites(problem, config):
        run.declared.append(site.name)
        if site.role == "weight":
            stacks.setdefault(site.shape if together else site.name, []).append(site)
        elif (quantizer := method.quantizer(site)) is None:
            run.declined.append(site.name)
        else:
            name = site.name.removesuffix(INPUT)
            quantizer.seed(config.seed, [site.name])
            run.inputs[name] = quantizer
            layers[name].see_input_through(quantizer)
    for stack in stacks.values():
        names = [site.name for site in stack]
        if (quantizer := method.quantizer(stack[0].stacked(",".join(names), len(names)))) is None:
            run.declined += names
        else:
            quantizer.seed(config.seed, names)
            run.bundles.append(Bundle(names, [layers[name] for name in names], quantizer))
    for quantizer in run.quantizers():
        quantizer.to(run.clock.device)
        quantizer.step = run.clock
    for quantizer in run.inputs.values():
        quantizer.part = run.part
    return run


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that never changes: the reference of a run that starts from a trained network."""
    reference = copy.deepcopy(model).eval()
    for module in reference.modules():
        if isinstance(module, QuantLayer):
            module.see_input_through(None)
    return reference.requires_grad_(False)


def open_problem(config: RunConfig, device: torch.device) -> tuple[Task, Problem]:
    """The task of a configuration and its problem, as the configuration pinned them."""
    task: Task = registry.build("tasks", config.task, config.task_params)
    if task.version != config.task_version:
        raise QbenchError(
            f"task {config.task} is at version {task.version} here, the run asks for {config.task_version}"
        )
    torch.manual_seed(key_of(config.task, config.seed))
    return task, task.problem(config.size, config.seed, config.recipe.batch, device)
