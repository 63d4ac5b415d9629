"""Run folders made without training: what a run writes, with numbers of the test's choice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from qbench.runs.attempts import Attempt
from qbench.runs.config import Metric, Quantization, Recipe, RunConfig
from qbench.store.board_members import ROSTER_VERSION


def config(
    seed: int = 0, method: str = "ste", fmt: str | None = "int4", task: str = "digits", **more: Any
) -> RunConfig:
    weights = Quantization(fmt, "channel") if fmt else None
    spec = RunConfig(
        1,
        method,
        1,
        {"scale": "absmax"},
        task,
        1,
        {},
        "0" * 16,
        "xs",
        weights,
        None,
        Recipe(steps=10),
        "scratch",
        seed,
    )
    return dataclasses.replace(spec, **more)


def result(score: float | None = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "result_version": 1, "state": "ok", "reason": None, "message": None, "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:01+00:00", "metric": dataclasses.asdict(Metric("loss", effect=0.01)),
        "scores": {"packed": score, "validation": score, "simulated": score, "latent": score, "rr_mean": score, "rr_std": 0.0, "rr_count": 5},
        "metrics": {"loss": score}, "kinds": {} if score is not None else {"packed": "nan"}, "train": {"steps": 10, "final_loss": score},
        "cost": {"train_s": 1.0, "step_s_median": 0.001, "peak_memory_bytes": 1000},
        "size": {"parameters": 10, "quantized_parameters": 8, "bits_per_weight": 4.5, "artefact_bytes": 64, "levels": 15},
        "audit": {"passed": True, "checks": [{"name": "levels", "passed": True, "detail": ""}]}, "sites": [], "artefact_sha256": "a" * 64,
    } | more  # fmt: skip


def make(results: Path, spec: RunConfig, number: int = 1, points: int = 3, **more: Any) -> Attempt:
    """A finished attempt."""
    attempt = Attempt(results / "runs" / spec.key[:2] / spec.key / str(number))
    attempt.folder.mkdir(parents=True)
    attempt.write("spec", spec.to_json())
    attempt.write("env", {"qbench": "0.1.0", "commit": "c" * 40, "dirty": False, "threads": 1})
    lines = [
        json.dumps(
            {
                "step": n,
                "loss": 1.0 / (n + 1),
                "lr": 0.1,
                "val": None,
                "terms": {"task": 1.0},
                "metrics": {},
            }
        )
        for n in range(points)
    ]
    attempt.curve.write_text("".join(f"{line}\n" for line in lines))
    attempt.write("result", result(**more) | {"key": spec.key, "attempt": number})
    return attempt


def roster(
    board: str, cells: list[tuple[RunConfig, str | None]], seeds: int, title: str = ""
) -> dict[str, Any]:
    """Of (configuration, why it is skipped)."""
    rows = [
        {
            "label": spec.method, "variant": "", "provenance": "paper", "refusal": refusal, "spec": spec.to_json(),
            "keys": [] if refusal else [dataclasses.replace(spec, seed=seed).key for seed in range(seeds)],
        }
        for spec, refusal in cells
    ]  # fmt: skip
    return {
        "roster_version": ROSTER_VERSION, "board": board, "version": 1, "title": title, "made": "2026-01-01T00:00:00+00:00",
        "sweep": f'board = "{board}"', "seeds": list(range(seeds)), "track": "fair", "defaults": {"ste": {"scale": "absmax"}}, "cells": rows,
    }  # fmt: skip
