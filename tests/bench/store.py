"""What a store of a hundred thousand runs costs.

`qbench show`, `qbench db rebuild` and the reading of one run's files are timed. The run folders
hold what a run writes, with made-up numbers. Each command runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qbench.runs.attempts import Attempt
from qbench.runs.config import Metric, Quantization, Recipe, RunConfig
from qbench.store.board_members import BOARD_MEMBERS_VERSION, save_board_members
from qbench.store.file_rows import IncomingRows

BITS = {
    "int2": (3, 2.25),
    "int3": (7, 3.25),
    "int4": (15, 4.25),
    "int8": (255, 8.25),
    "fp4": (15, 4.25),
}
METHODS = ("fp", "rtn", *(f"method{n}" for n in range(8)))
TASKS = tuple(itertools.product(("alpha", "beta", "gamma", "delta"), ("xs", "s", "m")))
ENV = {
    "qbench": "0.1.0",
    "torch": "2.13.0",
    "commit": "0" * 40,
    "dirty": False,
    "python": "3.11.7",
    "device": "cpu",
    "device_name": "cpu",
    "threads": 1,
}


def cells() -> Iterator[RunConfig]:
    for method, (task, size), fmt in itertools.product(METHODS, TASKS, BITS):
        weights = None if method == "fp" else Quantization(fmt, "channel")
        if method != "fp" or fmt == "int2":
            recipe = Recipe(steps=1000, batch=32)
            yield RunConfig(
                1,
                method,
                1,
                {"scale": "absmax"},
                task,
                1,
                {},
                "1" * 16,
                size,
                weights,
                None,
                recipe,
                "scratch",
                0,
            )


def result_of(config: RunConfig, key: str, chance: random.Random) -> dict[str, Any]:
    levels, bits = BITS[config.weights.format] if config.weights else (None, 32.0)
    score = chance.gauss(1, 0.1)
    numbers = {
        name: score + chance.gauss(0, 0.01)
        for name in ("packed", "validation", "simulated", "latent", "rr_mean", "rr_std")
    }
    times = {
        name: chance.uniform(0.001, 0.002)
        for name in (
            "build_s",
            "train_s",
            "eval_s",
            "wall_s",
            "step_s_median",
            "step_s_q25",
            "step_s_q75",
        )
    }
    checks = [{"name": f"check {n}", "passed": True, "detail": "as it should be"} for n in range(6)]
    return {
        "result_version": 1, "key": key, "attempt": 1, "state": "ok", "reason": None, "message": None,
        "started": "2026-11-21T04:00:00+00:00", "finished": "2026-11-21T04:00:02+00:00", "metric": dataclasses.asdict(Metric("loss", effect=0.01)),
        "scores": numbers | {"rr_count": 5}, "metrics": {"loss": score}, "kinds": {},
        "train": {"steps": 1000, "final_loss": score, "terms": {"task": score}}, "cost": times | {"peak_memory_bytes": 2**28},
        "size": {"parameters": 9000, "quantized_parameters": 8000, "bits_per_weight": bits, "artefact_bytes": 5000, "levels": levels},
        "audit": {"passed": True, "checks": checks}, "sites": [], "artefact_sha256": "2" * 64,
    }  # fmt: skip


def point(step: int, loss: float) -> str:
    line = {
        "step": step,
        "progress": step / 1000,
        "seconds": step / 2000,
        "terms": {"task": loss},
        "metrics": {},
        "loss": loss,
    }
    return json.dumps(line | {"lr": 3e-3, "grad_norm": 0.5, "val": None})


def make(results: Path, runs: int, points: int) -> None:
    """Write made-up run folders and the members of one board that contains all of them."""
    chance = random.Random(0)
    configs = list(cells())
    seeds = range(-(-runs // len(configs)))
    curve = "\n".join(point(10 * i, 1 + 1 / (1 + i)) for i in range(1, points + 1)) + "\n"
    rows = []
    for config in configs:
        keys = []
        for seed in seeds:
            run = dataclasses.replace(config, seed=seed)
            keys.append(run.key)
            folder = Attempt(results / "runs" / run.key[:2] / run.key / "1").folder
            folder.mkdir(parents=True)
            (folder / "spec.json").write_text(json.dumps(run.to_json(), indent=1))
            (folder / "env.json").write_text(json.dumps(ENV, indent=1))
            (folder / "curve.jsonl").write_text(curve)
            (folder / "result.json").write_text(
                json.dumps(result_of(config, run.key, chance), indent=1)
            )
        rows.append(
            {
                "label": config.method,
                "variant": "",
                "provenance": "paper",
                "refusal": None,
                "spec": config.to_json(),
                "keys": keys,
            }
        )
    save_board_members(
        results,
        {
            "roster_version": BOARD_MEMBERS_VERSION, "board": "large", "version": 1, "title": "", "made": "2026-11-21T04:00:00+00:00", "sweep": "",
            "seeds": list(seeds), "track": "fair", "defaults": {m: {"scale": "absmax"} for m in METHODS}, "cells": rows,
        },
    )  # fmt: skip


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def table(runs: int = 100_000, points: int = 100) -> Iterator[str]:
    """Yield the lines of the report."""
    results = Path(tempfile.mkdtemp(prefix="qbench-store-"))
    try:
        make(results, runs, points)
        where = ("--results", str(results))
        rebuild = seconds("qbench", "db", "rebuild", *where)
        shows = [seconds("qbench", "show", "large", *where) for _ in range(5)]
        sizes = [(results / name).stat().st_size for name in ("qbench.duckdb",)]
        one = Attempt(next((results / "runs").glob("*/*/1")))
        began = time.perf_counter()
        for _ in range(100):
            IncomingRows().add_attempt(one)
        reading = (time.perf_counter() - began) / 100
        yield "| what | measured | target |"
        yield "| --- | --- | --- |"
        yield f"| `qbench db rebuild`, {runs:,} runs of {points} points | {rebuild:.0f} s | 120 s |"
        yield f"| `qbench show` of a board of all of them, median of 5 | {statistics.median(shows):.2f} s | 1 s |"
        yield f"| size of the store | {sizes[0] / 1e6:.0f} MB | |"
        yield f"| reading one run's files | {1e3 * reading:.2f} ms | |"
    finally:
        shutil.rmtree(results)
