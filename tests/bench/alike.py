"""Which compiled steps give a run the same bits alone and in company: what `grouping.compiling_pays` may choose by itself.

    python -m tests.bench alike

A run takes its first steps compiled alone, then compiled among others, and what it has learned is compared. A compiler promises nothing of
the kind: it computes an exponential by one formula in whole vectors and by another elsewhere, and what is where depends on who is there.
Twenty minutes on two cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch

from qbench import load_method
from qbench.execution.compile import compile_run
from qbench.execution.stacking import stack_runs
from qbench.runs.config import Quantization
from qbench.training.loop import take_step
from qbench.training.run import TrainingRun
from tests.bench.groups import config, prepared

STEPS = 8
COMPANY = ((3, 1), (32, 17))
"""Runs side by side, and the place of the one that is compared."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp": ("fp", {}),
    "ste": ("ste", {}),
    "ste, mse": ("ste", {"scale": "mse"}),
    "ste, hessian": ("ste", {"scale": "hessian"}),
    "ste, learned": ("ste", {"scale": "learned"}),
    "rr": ("rr", {}),
    "placebo": ("placebo", {}),
    "lsq": ("lsq", {}),
    "lotion": ("lotion", {}),
    "gdnsq": ("gdnsq", {}),
    "pege": ("pege", {}),
    "ewgs": ("ewgs", {}),
    "ewgs, adaptive": ("ewgs", {"delta": "adaptive"}),
}


@dataclass(frozen=True)
class Bed:
    task: str
    size: str = "xs"
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ("int4",)
    """Formats, in turn."""
    granularity: str = "channel"
    inputs: str | None = None
    one_seed: bool = False
    numbers: bool = False
    """Whether runs differ in the numbers in which a method lets them."""


BEDS = {
    "digits": Bed("digits"),
    "digits s, by tensor": Bed("digits", "s", granularity="tensor"),
    "digits, batches of 50": Bed("digits", recipe={"batch": 50}),
    "digits, widths mixed": Bed("digits", weights=("int4", "int2", "int8")),
    "digits, numbers differ": Bed("digits", numbers=True),
    "digits, blocks and inputs": Bed("digits", granularity="block-32", inputs="int4"),
    "linreg": Bed("linreg"),
    "linreg, d = 12 000": Bed("linreg", "l"),
    "linreg, rotated": Bed("linreg", options={"rotated": True}),
    "linreg, mini-batches": Bed("linreg", "s", {"exact": False}),
    "linreg, one stream": Bed("linreg", "s", {"exact": False}, one_seed=True),
    "twolayer": Bed("twolayer"),
    "twolayer, mini-batches": Bed("twolayer", options={"exact": False}),
}


def apart(bed: Bed, method: str, params: dict[str, Any]) -> float:
    """The largest difference that company makes to a number that is learned."""
    torch.set_num_threads(1)
    torch.compiler.reset()

    def run(place: int) -> TrainingRun:
        seed, rate = 0 if bed.one_seed else place, 0.01 * (1 + place % 3)
        found = config(
            bed.task,
            bed.size,
            bed.options,
            seed,
            rate,
            method,
            others(method, params, place) if bed.numbers else params,
        )
        found = dataclasses.replace(found, recipe=dataclasses.replace(found.recipe, **bed.recipe))
        if found.weights:
            weights = Quantization(bed.weights[place % len(bed.weights)], bed.granularity)
            found = dataclasses.replace(
                found,
                weights=weights,
                activations=Quantization(bed.inputs, "tensor") if bed.inputs else None,
            )
        return prepared(found)

    def together(runs: Iterable[Run]) -> TrainingRun:
        found = stack_runs(list(runs))
        assert found is not None, f"{method} trains alone on {bed.task}"
        return found

    differences = []
    for count, place in COMPANY:
        many = [run(each) for each in range(count)]
        for taken in (alone := run(place), together(many)):
            compile_run(taken)
            for step in range(STEPS):
                take_step(taken, step)
        differences += [
            float((a - b).detach().abs().max())
            for a, b in zip(learned(alone), learned(many[place]), strict=True)
        ]
    return max(differences)


def others(method: str, params: dict[str, Any], place: int) -> dict[str, Any]:
    m = load_method(method)
    numbers = {
        name: value
        for name, value in m(**params).params.items()
        if name in m.varies and isinstance(value, float)
    }
    return params | {name: value * (1.0, 0.5, 0.75)[place % 3] for name, value in numbers.items()}


def learned(run: TrainingRun) -> list[torch.Tensor]:
    assert run.optimizer is not None
    return [p for group in run.optimizer.param_groups for p in group["params"]]


def table() -> Iterator[str]:
    yield f"| largest difference after {STEPS} steps | {' | '.join(BEDS)} |"
    yield "|---|" + "--:|" * len(BEDS)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = {
            label: [pool.submit(apart, bed, *which) for bed in BEDS.values()]
            for label, which in METHODS.items()
        }
        for label, differences in found.items():
            yield (
                f"| {label} | "
                + " | ".join(f"{d.result():.0e}" if d.result() else "0" for d in differences)
                + " |"
            )
