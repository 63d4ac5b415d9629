"""What each method's training costs over full precision: step time and memory, on GPTs of 0.9M and 4.1M parameters at 4096 tokens a step.

Steps of all methods are taken in turn in one process, as in `steps`. Work that is not done at every step (EWGS's Hessian, PEGE's first
measurement, ranges looked at anew) is timed alone and spread over the 1000 steps of a run. Memory is what the process grows by at
most while it builds the run and takes two steps, each method in a process of its own.
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
"""The method, its parameters, and the most that it may cost."""


@dataclass
class Entrant:
    run: TrainingRun
    taken: int = 0

    def step(self) -> float:
        """The time of a step; steps stand all over the run, but not where something rare is done."""
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
    """Seconds a step that the whole run spends on what most of its steps leave out: each step of a run, by its hook alone."""
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
    """Bytes that building the run and training two steps take at most, in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_grown, (make,))


def _grown(make: Callable[[], Entrant]) -> int:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
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
    """The lines of the report."""
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
