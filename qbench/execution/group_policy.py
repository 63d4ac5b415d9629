"""Group policy: which runs may be stacked, and how many. It affects no key and no score.

A step of a small network is mostly calls, so stacking pays until the arithmetic of all runs takes
longer than the calls, or, on a CPU, until the caches no longer hold what all of them touch. Beyond
that a larger group only makes every run wait for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qbench.api.method import Method
from qbench.execution.workload import estimate_work, is_stackable
from qbench.plugins import registry
from qbench.runs.config import Quantization, RunConfig, canonical_json

MOST_RUNS = {"cpu": 32, "cuda": 256}
"""Largest number of runs in a group."""
MOST_PARAMETERS = {"cpu": 500_000, "cuda": 100_000_000}
"""Largest number of parameters of a group."""
MOST_FLOPS = {"cpu": 1.2e9, "cuda": 1e12}
"""Largest number of operations in a step of a group. On one core four runs of `grammar` xs, 0.3e9
operations each, take 1.3 times the steps that they take alone, and of `grammar` s, 2e9 each, no
more than alone (`make bench ARGS=groups`). The number for CUDA is an estimate and was not measured:
what an H200 does in about the time that a thousand calls take."""
MEMORY_SHARE = 0.5
"""Share of a device's memory that a group may be estimated to take. The estimate is rough, and
others may use the device. A group that is too large after all goes on by halves."""

RECIPE_NUMBERS = ("lr", "weight_decay", "momentum", "warmup", "decay", "floor", "clip")
"""Numbers of the recipe in which stacked runs may differ."""
SWITCHES = ("momentum", "clip")
"""Those of them that switch something off where they are zero."""
INTEGERS = tuple(f"int{bits}" for bits in range(2, 9))
"""Formats in which stacked runs may differ: their levels differ only in where they end."""


def stacking_kind(config: RunConfig, widths: bool = True) -> str | None:
    """Return a name that two runs share if they may be stacked, or None for one that trains alone.

    Stacked runs agree in everything but the seed, numbers of the recipe, numeric hyper-parameters
    of the method, and the width of their integers.

    Args:
        config: The run.
        widths: Whether the width of the integers may differ. Step times are compared with those of
            full precision, which has one format, so the timed groups may not differ in it.
    """
    if why_alone(config) is not None:
        return None
    numbers: dict[str, Any] = {
        name: without_size(getattr(config.recipe, name)) if name in SWITCHES else 1.0
        for name in RECIPE_NUMBERS
    }
    weights = config.weights
    if widths and weights and weights.format in INTEGERS:
        weights = Quantization("int", weights.granularity)
    kind = dataclasses.replace(
        config,
        recipe=dataclasses.replace(config.recipe, **numbers),
        method_params=params_without_sizes(config.method_params),
        weights=weights,
        seed=0,
        base=None,
    )
    return canonical_json(kind.to_json())


def params_without_sizes(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters with each float replaced by 0.0 or 1.0: whether it is zero."""
    return {name: without_size(value) for name, value in params.items()}


def without_size(value: Any) -> Any:
    """Return whether a floating-point number is zero, as a number; anything else as it is.

    A number that is zero switches something off, so runs that differ in that are not stacked.
    """
    return float(value != 0) if isinstance(value, float) else value


def group_sort_key(config: RunConfig) -> tuple[Any, ...]:
    """Return what a group is sorted by: the optimizer steps neighbours of one recipe in one
    call.
    """
    return tuple(getattr(config.recipe, name) for name in RECIPE_NUMBERS)


def why_alone(config: RunConfig) -> str | None:
    """Return a sentence if a run must train alone, or None if it may be stacked."""
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.post_training is not None:
        return f"{config.method} trains nothing"
    if not method.batched:
        return f"{config.method} with these hyper-parameters trains one run at a time"
    if not is_stackable(config):
        return f"{config.task} has not been written for stacked runs"
    return None


def group_size(config: RunConfig, device: str, memory: int | None = None) -> int:
    """Return how many runs pay on a kind of device and fit into its memory, if that is known."""
    work = estimate_work(config)
    limits = [
        MOST_RUNS[device],
        MOST_PARAMETERS[device] / max(1, work.parameters),
        MOST_FLOPS[device] / work.flops,
    ]
    if memory is not None:
        limits.append(MEMORY_SHARE * memory / work.memory)
    return max(1, int(min(limits)))
