"""What the statistics of a board of 50 methods × 40 cells cost on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qbench.stats import intervals
from qbench.stats.aggregates import MIN_BOOTSTRAP_SEEDS, interquartile_mean, resample_ratios
from qbench.stats.comparisons import compute_rank_ranges, find_clear_bests

METHODS, CELLS = 50, 40


def made(seeds: int) -> np.ndarray:
    """Return made-up scores of methods × cells × seeds.

    Half of the noise's variance is shared by all methods at a seed. The first method stands for
    full precision, the second for plain rounding.
    """
    rng = np.random.default_rng(seeds)
    levels = np.linspace(0, 1, METHODS)[:, None, None]
    found = (
        levels
        + rng.normal(0, 0.05, (1, CELLS, seeds))
        + rng.normal(0, 0.05, (METHODS, CELLS, seeds))
    )
    found[0] += 1.5
    return np.asarray(found)


def by_seed(scores: np.ndarray) -> dict[int, float]:
    return dict(enumerate(scores.tolist()))


def parts(seeds: int) -> dict[str, Callable[[], Any]]:
    x = made(seeds)
    rows = x.tolist()
    columns = [[by_seed(cell) for cell in x[:, c]] for c in range(CELLS)]
    means = [by_seed(method.mean(0)) for method in x]
    overall = [[((method - x[1]), (x[0] - x[1]))] for method in x]
    found: dict[str, Callable[[], Any]] = {
        "intervals of all cells": lambda: [
            intervals.mean_interval(cell) for method in rows for cell in method
        ],
        "gaps recovered of all cells": lambda: [
            intervals.gap_recovered_interval(cell, rows[1][c], rows[0][c], "higher", 0.01)
            for method in rows
            for c, cell in enumerate(method)
        ],
        "the best of each column": lambda: find_clear_bests(columns, "higher", 0.01),
        "ranks of all methods": lambda: compute_rank_ranges(means, "higher", 0.01),
    }
    if seeds >= MIN_BOOTSTRAP_SEEDS:
        found["interquartile means of all methods"] = lambda: [
            interquartile_mean(resample_ratios(tasks)) for tasks in overall
        ]
    return found


def seconds(work: Callable[[], Any]) -> float:
    """Return the shortest of three times."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def table() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"| {METHODS} methods × {CELLS} cells | 5 seeds | 10 seeds | target |"
    yield "| --- | --- | --- | --- |"
    few, many = ({name: seconds(work) for name, work in parts(seeds).items()} for seeds in (5, 10))
    for name, spent in many.items():
        yield f"| {name} | {f'{1e3 * few[name]:.0f} ms' if name in few else '–'} | {1e3 * spent:.0f} ms | |"
    yield f"| these but the last | {sum(few.values()):.2f} s | {sum(many[name] for name in few):.2f} s | 2 s |"
