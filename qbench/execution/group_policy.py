"""Which runs may train side by side, and how many: an execution detail, which no key and no score knows of.

A step of a small network is mostly calls, so it pays until the arithmetic of all together takes longer than the calls, or, on a CPU, until the
caches no longer hold what all of them touch. Beyond that a larger group only makes everybody wait for everybody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qbench.api.method import Method
from qbench.execution.workload import beside, work
from qbench.plugins import registry
from qbench.runs.config import Quantization, RunConfig, canonical
from qbench.training.devices import compiler

MOST = {"cpu": 32, "cuda": 256}
"""Runs in a group."""
RECIPE = ("lr", "weight_decay", "momentum", "warmup", "decay", "floor", "clip")
"""Words in which runs side by side may differ."""
SWITCHES = ("momentum", "clip")
"""Those of them that are off at zero."""
WIDTHS = tuple(f"int{bits}" for bits in range(2, 9))
"""Formats in which they may: those that differ in where their levels end."""
FULL = {"cpu": 500_000, "cuda": 100_000_000}
"""Parameters of all of them."""
ARITHMETIC = {"cpu": 1.2e9, "cuda": 1e12}
"""Operations of a step of all of them. On one core four of `grammar` xs, 0.3e9 each, take 1.3 times the steps that they take alone, and of
`grammar` s, 2e9 each, no more than alone (`make bench ARGS=groups`). For CUDA it is reckoned, not measured: what an H200 does in about the time
that a thousand calls take."""
COMPILING_S = 30.0
"""What it takes on a CPU to compile a group's steps, and the networks for their audit: 24 s were measured where two workers did so at once and
nothing was at hand from before, 6 s where it was (`make bench ARGS=groups`)."""
SAVED_CALLS_S, SAVED_PASSES_S = 1e-4, 1.8e-9
"""What compiling then takes off a step of a group, for each tensor that a run learns (fewer calls) and for each number of all runs (fewer passes
over memory): of 32 runs at least. Told and measured, in ms: digits MLP 1.1, 1.2; `linreg` xs 0.1, 0.4, m 0.2, 0.3 and l 0.8, 1.3; `twolayer` xs 0.4,
2.8 (`make bench ARGS=groups`; the README's table)."""
ROOM = 0.5
"""Of a device's memory, what a group may be estimated to take: the estimate is rough, and others may be on the device. A group that is
too large after all goes on by halves."""


def kind_of(config: RunConfig, widths: bool = True) -> str | None:
    """A name that runs have in common which may train side by side: all but the seed and the numbers that each may have for itself. With
    `widths` the bits of its integers are such a number; without, steps can be timed against full precision's in as large a company, which has
    one format. None for one that trains alone."""
    if alone(config) is not None:
        return None
    varies, params = (
        registry.load("methods", config.method).varies,
        kinds(config.method, config.method_params),
    )
    words: dict[str, Any] = {
        word: bare(getattr(config.recipe, word)) if word in SWITCHES else 1.0 for word in RECIPE
    }
    recipe = dataclasses.replace(config.recipe, **words)
    weights = config.weights
    if widths and weights and "format" in varies and weights.format in WIDTHS:
        weights = Quantization("int", weights.granularity)
    return canonical(
        dataclasses.replace(
            config, recipe=recipe, method_params=params, weights=weights, seed=0, base=None
        ).to_json()
    )


def kinds(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """A method's hyper-parameters, those in which runs side by side may differ without their size."""
    varies = registry.load("methods", method).varies
    return {name: bare(value) if name in varies else value for name, value in params.items()}


def bare(value: Any) -> Any:
    """A number without its size: one that is zero switches something off, and is of another kind."""
    return (
        float(value != 0)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else value
    )


def neighbours(config: RunConfig) -> tuple[Any, ...]:
    """What a group is sorted by: the optimizer steps neighbours of one recipe in one go."""
    return tuple(getattr(config.recipe, word) for word in RECIPE)


def alone(config: RunConfig) -> str | None:
    """Why a run must train alone, in a sentence; None if it need not."""
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.after is not None:
        return f"{config.method} trains nothing"
    return method.alone() or (
        None if beside(config) else f"{config.task} has not been written for runs side by side"
    )


def group_size(config: RunConfig, device: str, memory: int | None = None) -> int:
    """As many as pay on a kind of device, and fit into its memory, in bytes, where that is known."""
    one = work(config)
    limits = [MOST[device], FULL[device] / max(1, one.parameters), ARITHMETIC[device] / one.flops]
    if memory is not None:
        limits.append(ROOM * memory / one.memory)
    return max(1, int(min(limits)))


def compiling_pays(config: RunConfig) -> bool:
    """Whether a run is long enough, and its steps small enough, to be compiled on a CPU. Which sweep it is in and who stands beside it does not
    count: compiled it has other last bits than eager."""
    if compiler() is None or not alike(config) or group_size(config, "cpu") < MOST["cpu"]:
        return False
    one = work(config)
    saved = one.tensors * SAVED_CALLS_S + one.parameters * MOST["cpu"] * SAVED_PASSES_S
    return config.recipe.steps * saved > COMPILING_S


def alike(config: RunConfig) -> bool:
    """Whether it was tried that it has the same bits compiled in company as compiled by itself (`make bench ARGS=alike`, `qbench check`): where
    method and task say so, with the method's usual options. Numbers that may vary in a group may have any size, but zero is another kind."""
    method, task = (
        registry.load("methods", config.method),
        registry.build("tasks", config.task, config.task_params),
    )
    if not method.compiled_alike or not task.compiled_alike:
        return False
    default = {f.name: f.default for f in dataclasses.fields(method)}
    integers = all(q is None or q.format in WIDTHS for q in (config.weights, config.activations))
    recipe, usual = (
        (r.batch, r.precision, r.objective) for r in (config.recipe, task.recipe(config.size))
    )
    return (
        integers
        and recipe == usual
        and kinds(config.method, config.method_params) == kinds(config.method, default)
    )
