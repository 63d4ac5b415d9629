"""Questions that planning asks of methods and tasks, before anything is trained."""

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
from qbench.training.setup import sites as run_sites

__all__ = ["objection"]


def objection(config: RunConfig, processes: int, divided: bool) -> str | None:
    """Why a run cannot be trained so, in a sentence. What is made after training takes one process, whatever is asked for."""
    from qbench.execution.workload import has_batches

    method: Method = registry.build("methods", config.method, config.method_params)
    if method.after is not None or processes == 1:
        return None
    if config.recipe.batch < processes:
        return f"a batch of {config.recipe.batch} cannot be divided among {processes} processes"
    if not has_batches(config):
        return f"{config.task} has its loss in closed form, and no batch to divide"
    return method.undivided() if divided else None


@cache
def _layers(task: str, params: str, size: str, batch: int) -> Problem:
    """A problem to be asked for its layers' shapes: on a device without memory, so that a large network costs nothing."""
    instance: Task = registry.build("tasks", task, json.loads(params))
    return instance.problem(size, 0, batch, torch.device("meta"))


def sites(config: RunConfig) -> list[Site]:
    """The tensors that a run would quantize."""
    return run_sites(_layers(*_network(config)), config)


def reads_text(config: RunConfig) -> bool:
    """Whether it trains a language model, of which something can be asked downstream."""
    return _layers(*_network(config)).tokenizer is not None


def _network(config: RunConfig) -> tuple[str, str, str, int]:
    return config.task, json.dumps(dict(config.task_params)), config.size, config.recipe.batch


@dataclass(frozen=True)
class Work:
    """What a run asks of a device: the tensors that it learns and their numbers, the arithmetic of a step, and the memory that it takes, in bytes."""

    tensors: int
    parameters: int
    flops: float
    memory: float


def work(config: RunConfig) -> Work:
    """Counted where the task counts, else 6 for each parameter and sample. Memory is an estimate: for a parameter its weight, gradient, both
    moments, the quantized weight, its gradient, what the quantizer was given and keeps for the way back; for a sample two numbers for each
    that goes into a matrix or comes out of one, for a function between them or the gradient on its way back."""
    problem = _layers(*_network(config))
    numbers = list(problem.model.parameters())
    count, samples = sum(p.numel() for p in numbers), problem.labels_per_step
    between = sum(p.shape[0] + p[0].numel() for p in numbers if p.dim() > 1)
    return Work(
        len(numbers),
        count,
        problem.flops_per_step or 6.0 * count * samples,
        4.0 * (8 * count + 2 * samples * between),
    )


def beside(config: RunConfig) -> bool:
    """Whether the task is written for runs side by side."""
    problem = _layers(*_network(config))
    return problem.beside([problem], problem.model) is not None


def has_batches(config: RunConfig) -> bool:
    """Whether there are inputs; a loss in closed form has none."""
    return _layers(*_network(config)).batch(0).inputs is not None


def refusal(config: RunConfig) -> str | None:
    """Why a method cannot run in this format, in a sentence; None if it can."""
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.needs_reference and config.start == "scratch":
        return f"{method.name} is to imitate the network that a run starts from, and here every run starts from scratch"
    if config.recipe.objective == "distill" and not has_batches(config):
        return f"{config.task} has its loss in closed form, and no outputs to imitate"
    for site in sites(config):
        sentence = site.grouping.misfit(site.shape) if site.role == "weight" else None
        if sentence := sentence or method.unsupported(site):
            return sentence
    return None


def metric_of(config: RunConfig) -> Metric:
    task: Task = registry.build("tasks", config.task, config.task_params)
    return task.metric
