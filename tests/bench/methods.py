"""What each method's training costs relative to full precision, in step time and memory.

The models are GPTs of 0.9M and 4.1M parameters, trained on 4096 tokens a step. The methods take
their steps in turn in one process, as in `steps`. Work that is not done at every step (EWGS's
Hessian, PEGE's first measurement, recalibration) is timed separately and averaged over the 1000
steps of a run. Memory is the peak growth of a process that builds the run and takes two steps. Each
method has a process of its own for this.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qbench.runs.config import Recipe
from qbench.training.calibration import recalibrate_if_due
from qbench.training.loop import probe_if_due, take_step
from qbench.training.run import TrainingRun
from tests.bench.steps import SHAPE, RandomTokens, run_of

STEPS = 1000
TOKENS = 4096
ROUNDS = {"0.9M": 24, "4.1M": 8}
SIZES = {"0.9M": SHAPE, "4.1M": replace(SHAPE, width=256, mlp=704, depth=5, heads=8)}
METHODS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "fp": ("fp", {}, None),
    "ste": ("ste", {}, 1.05),
    "lsq": ("lsq", {}, None),
    "rr": ("rr", {}, None),
    "lotion": ("lotion", {}, 1.08),
    "pege": ("pege", {}, 1.05),
    "ewgs, fixed": ("ewgs", {"delta": 1e-3}, 1.05),
    "ewgs, adaptive": ("ewgs", {"delta": "adaptive"}, None),
    "ewgs, Hessian": ("ewgs", {"delta": "hessian"}, None),
    "gdnsq": ("gdnsq", {}, 1.10),
}
"""Each entry's method, its parameters, and the target for its cost relative to full precision."""


@dataclass
class Entrant:
    run: TrainingRun
    taken: int = 0

    def step(self) -> float:
        """Take a step and return its seconds.

        The steps are spread over the run but avoid multiples of 20, where rare work is done.
        """
        step = (37 + 91 * self.taken) % STEPS
        step += step % 20 == 0
        self.taken += 1
        began = time.perf_counter()
        take_step(self.run, step)
        return time.perf_counter() - began


def entrant(name: str, size: str) -> Entrant:
    method, params, _ = METHODS[name]
    problem = RandomTokens(TOKENS, SIZES[size])
    return Entrant(run_of(method, problem, Recipe(steps=STEPS, lr=1e-4), **params))


def rare(make: Callable[[], Entrant]) -> float:
    """Return the seconds a step of schedules, recalibration and probes, averaged over a run.

    Only these hooks are called, at every step of the run.
    """
    one = make()
    run, spent = one.run, 0.0
    for step in range(STEPS):
        run.begin_step(step)
        began = time.perf_counter()
        run.apply_schedules()
        recalibrate_if_due(run)
        probe_if_due(run, run.problem.batch(step))
        spent += time.perf_counter() - began
    return spent / STEPS


def most_memory(make: Callable[[], Entrant]) -> int:
    """Return the peak bytes of building the run and taking two steps, in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_grown, (make,))


def _grown(make: Callable[[], Entrant]) -> int:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    one = make()
    for _ in range(2):
        one.step()
    return status("VmHWM") - before


def status(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def table() -> Iterator[str]:
    """Yield the lines of the report."""
    torch.set_num_threads(1)
    yield "| method | parameters | median ms | step / fp | quartiles | beside the steps | whole run / fp | target | memory / fp |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|"
    for size in SIZES:
        entrants = {name: entrant(name, size) for name in METHODS}
        times: dict[str, list[float]] = {name: [] for name in METHODS}
        for turn in range(ROUNDS[size] + 3):
            for name, one in entrants.items():
                spent = one.step()
                if turn >= 3:
                    times[name].append(spent)
        usual = statistics.median(times["fp"])
        base = most_memory(partial(entrant, "fp", size))
        for name in METHODS:
            low, middle, high = statistics.quantiles(
                [a / b for a, b in zip(times[name], times["fp"], strict=True)], n=4
            )
            beside = rare(partial(entrant, name, size)) / usual
            memory = most_memory(partial(entrant, name, size)) / base
            target = METHODS[name][2]
            yield (
                f"| {name} | {size} | {1e3 * statistics.median(times[name]):.0f} | {middle:.3f} | {low:.3f}–{high:.3f} "
                f"| {beside:.3f} | {middle + beside:.3f} | {target or ''} | {memory:.2f} |"
            )
