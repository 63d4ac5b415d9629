"""Workload: what planning asks of methods and tasks before anything is trained.

Everything is read off shapes, on the device `meta`, so that a large network costs nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import torch

from qbench.api.method import Method
from qbench.api.problem import Problem
from qbench.api.task import Task
from qbench.plugins import registry
from qbench.quant.site import Site
from qbench.runs.config import Metric, RunConfig
from qbench.training.setup import list_sites


def refusal_of(config: RunConfig) -> str | None:
    """Return a sentence if a method cannot run in this format, or None if it can."""
    method: Method = registry.build("methods", config.method, config.method_params)
    if config.recipe.objective == "distill" and not has_batches(config):
        return f"{config.task} has its loss in closed form, and no outputs to imitate"
    for site in sites_of(config):
        misfit = site.grouping.misfit(site.shape) if site.role == "weight" else None
        if sentence := misfit or method.unsupported(site):
            return sentence
    return None


def multi_process_refusal(config: RunConfig, processes: int) -> str | None:
    """Return a sentence if a run cannot be trained by so many processes, or None if it can.

    A post-training method always takes one process, whatever is asked for.
    """
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.post_training is not None or processes == 1:
        return None
    if config.recipe.batch < processes:
        return f"a batch of {config.recipe.batch} cannot be divided among {processes} processes"
    if not has_batches(config):
        return f"{config.task} has its loss in closed form, and no batch to divide"
    return None


def sites_of(config: RunConfig) -> list[Site]:
    """Return the tensors that a run would quantize."""
    return list_sites(_meta_problem(config), config)


def metric_of(config: RunConfig) -> Metric:
    """Return the metric of a run's task."""
    task: Task = registry.build("tasks", config.task, config.task_params)
    return task.metric


def is_language_model(config: RunConfig) -> bool:
    """Return whether a run trains a language model, which can be asked downstream questions."""
    return _meta_problem(config).tokenizer is not None


def is_stackable(config: RunConfig) -> bool:
    """Return whether a run's task is written for stacked runs."""
    problem = _meta_problem(config)
    return problem.stack([problem], problem.model) is not None


def has_batches(config: RunConfig) -> bool:
    """Return whether the task has inputs; a loss in closed form has none."""
    return _meta_problem(config).batch(0).inputs is not None


@dataclass(frozen=True)
class WorkEstimate:
    """What a run asks of a device."""

    tensors: int
    """Number of tensors that the run trains."""
    parameters: int
    """Number of their elements."""
    flops: float
    """Arithmetic of a step."""
    memory: float
    """Memory in bytes."""


def estimate_work(config: RunConfig) -> WorkEstimate:
    """Return an estimate of what a run asks of a device.

    Arithmetic is what the task counts, or else 6 operations for each parameter and sample. Memory
    is, for a parameter, its value, its gradient, two moments, the quantized weight and its
    gradient, what the quantizer was given and what it keeps for the backward pass. For a sample it
    is two numbers for each number that goes into a matrix or comes out of one.
    """
    problem = _meta_problem(config)
    tensors = list(problem.model.parameters())
    count, samples = sum(p.numel() for p in tensors), problem.work.labels
    activations = sum(p.shape[0] + p[0].numel() for p in tensors if p.dim() > 1)
    return WorkEstimate(
        len(tensors),
        count,
        problem.work.flops or 6.0 * count * samples,
        4.0 * (8 * count + 2 * samples * activations),
    )


def _meta_problem(config: RunConfig) -> Problem:
    """Return a run's problem on the device `meta`."""
    params = json.dumps(dict(config.task_params))
    return _cached_problem(config.task, params, config.size, config.recipe.batch)


@cache
def _cached_problem(task: str, params: str, size: str, batch: int) -> Problem:
    instance: Task = registry.build("tasks", task, json.loads(params))
    return instance.problem(size, 0, batch, torch.device("meta"))
