"""From a configuration to a run: the problem, the method's quantizers, and the training run."""

from __future__ import annotations

import copy

import torch
from torch import nn

from qbench.api.method import Method
from qbench.api.problem import Problem
from qbench.api.task import Task
from qbench.errors import QbenchError
from qbench.numerics.keyed_random import key_of
from qbench.plugins import registry
from qbench.quant.layers import QuantLayer
from qbench.quant.site import INPUT, Site
from qbench.quant.weight_stack import WeightStack
from qbench.runs.config import RunConfig
from qbench.training.process_team import ProcessTeam
from qbench.training.quantized_network import QuantizedNetwork
from qbench.training.run import TrainingRun


def list_sites(problem: Problem, config: RunConfig) -> list[Site]:
    """Return the tensors that a run quantizes: weights of the task's layers, and their inputs."""
    sites = []
    for name, layer in problem.layers().items():
        matrix = layer.matrix().shape
        if weights := config.weights:
            sites.append(Site(name, "weight", weights.format, weights.granularity, tuple(matrix)))
        if inputs := config.activations:
            sites.append(
                Site(
                    name + INPUT,
                    "activation",
                    inputs.format,
                    inputs.granularity,
                    (1, matrix[-1]),
                    layer.unsigned_input,
                )
            )
    return sites


def attach_quantizers(problem: Problem, method: Method, config: RunConfig) -> QuantizedNetwork:
    """Return the problem's network with the method's quantizers in place.

    Weight sites of one shape share a quantizer, so that they are quantized in one call. Those of a
    post-training method do not, because it rounds one layer after the other.
    """
    network, layers = QuantizedNetwork(problem), problem.layers()
    groups: dict[object, list[Site]] = {}
    for site in list_sites(problem, config):
        network.declared.append(site.name)
        if site.role == "weight":
            groups.setdefault(site.name if method.post_training else site.shape, []).append(site)
        elif (quantizer := method.quantizer(site)) is None:
            network.declined.append(site.name)
        else:
            quantizer.set_seed(config.seed, [site.name])
            network.inputs[site.name.removesuffix(INPUT)] = quantizer
    for sites in groups.values():
        names = [site.name for site in sites]
        quantizer = method.quantizer(sites[0].stacked(",".join(names), len(names)))
        if quantizer is None:
            network.declined += names
        else:
            quantizer.set_seed(config.seed, names)
            network.weights.append(WeightStack(names, [layers[name] for name in names], quantizer))
    network.connect_quantizers()
    return network


def make_run(
    problem: Problem, method: Method, config: RunConfig, team: ProcessTeam | None = None
) -> TrainingRun:
    """Return a run with the method's quantizers in place, but without an optimizer."""
    network = attach_quantizers(problem, method, config)
    return TrainingRun(network, method, config.seed, (config.recipe,), team)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy that never changes: the reference of a run that starts from a trained model."""
    reference = copy.deepcopy(model).eval()
    for module in reference.modules():
        if isinstance(module, QuantLayer):
            module.set_input_quantizer(None)
    return reference.requires_grad_(False)


def open_problem(config: RunConfig, device: torch.device) -> tuple[Task, Problem]:
    """Return the task of a configuration and its problem, at the version that it names."""
    task: Task = registry.build("tasks", config.task, config.task_params)
    if task.version != config.task_version:
        raise QbenchError(
            f"task {config.task} is at version {task.version} here, "
            f"the run asks for {config.task_version}"
        )
    # A task may initialise its model by torch's global generator; ours use generators of their own.
    torch.manual_seed(key_of(config.task, config.seed))
    return task, task.problem(config.size, config.seed, config.recipe.batch, device)
