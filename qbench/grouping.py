"""Which runs may train side by side, and how many: an execution detail, which no key and no score knows of.

A step of a small network on a CPU is mostly calls, so it pays until the arithmetic of all together fills the time that the calls take; on a GPU
until the device is full. Beyond that a larger group only makes everybody wait for everybody.
"""

from __future__ import annotations

import dataclasses

from qbench import registry
from qbench.config import RunConfig, canonical
from qbench.method import Method
from qbench.questions import beside, parameters

MOST = {"cpu": 32, "cuda": 256}
"""Runs in a group."""
FULL = {"cpu": 500_000, "cuda": 100_000_000}
"""Parameters of all of them."""


def kind_of(config: RunConfig) -> str | None:
    """A name that runs have in common which may train side by side: all but seed and learning rate. None for one that trains alone."""
    if alone(config) is not None:
        return None
    recipe = dataclasses.replace(config.recipe, lr=1.0)
    return canonical(dataclasses.replace(config, recipe=recipe, seed=0, base=None).to_json())


def alone(config: RunConfig) -> str | None:
    """Why a run must train alone, in a sentence; None if it need not."""
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.after is not None:
        return f"{config.method} trains nothing"
    if config.activations is not None:
        return "inputs are quantized run by run"
    if config.recipe.objective == "distill" or method.needs_reference:
        return "each run imitates a network of its own"
    return method.alone() or (None if beside(config) else f"{config.task} has not been written for runs side by side")


def group_size(config: RunConfig, device: str) -> int:
    """As many as pay on the device."""
    return max(1, min(MOST[device], FULL[device] // max(1, parameters(config))))
