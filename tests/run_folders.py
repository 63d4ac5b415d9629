"""Make run folders without training: the files of a run, with scores that a test chooses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from qbench.runs.attempts import Attempt
from qbench.runs.config import Metric, Quantization, Recipe, RunConfig
from qbench.store.board_members import BOARD_MEMBERS_VERSION


def make_run_config(
    seed: int = 0, method: str = "ste", fmt: str | None = "int4", task: str = "digits", **more: Any
) -> RunConfig:
    """Return a run's configuration; `more` replaces any of its fields."""
    config = RunConfig(
        board_version=1,
        method=method,
        method_version=1,
        method_params={"scale": "absmax"},
        task=task,
        task_version=1,
        task_params={},
        data="0" * 16,
        size="xs",
        weights=Quantization(fmt, "channel") if fmt else None,
        activations=None,
        recipe=Recipe(steps=10),
        start="scratch",
        seed=seed,
    )
    return dataclasses.replace(config, **more)


def make_result(score: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """Return the contents of result.json, all scores equal; `more` replaces any of its keys."""
    scores = dict.fromkeys(("packed", "validation", "simulated", "latent", "rr_mean"), score)
    return {
        "result_version": 1,
        "state": "ok",
        "reason": None,
        "message": None,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:01+00:00",
        "metric": dataclasses.asdict(Metric("loss", effect=0.01)),
        "scores": {**scores, "rr_std": 0.0, "rr_count": 5},
        "metrics": {"loss": score},
        "kinds": {} if score is not None else {"packed": "nan"},
        "train": {"steps": 10, "final_loss": score},
        "cost": {"train_s": 1.0, "step_s_median": 0.001, "peak_memory_bytes": 1000},
        "size": {
            "parameters": 10,
            "quantized_parameters": 8,
            "bits_per_weight": 4.5,
            "artefact_bytes": 64,
            "levels": 15,
        },
        "audit": {"passed": True, "checks": [{"name": "levels", "passed": True, "detail": ""}]},
        "sites": [],
        "artefact_sha256": "a" * 64,
    } | more


def make_attempt(
    results: Path, config: RunConfig, number: int = 1, points: int = 3, **more: Any
) -> Attempt:
    """Write the folder of a finished attempt; `more` goes to `make_result`."""
    attempt = Attempt(results / "runs" / config.key[:2] / config.key / str(number))
    attempt.folder.mkdir(parents=True)
    attempt.write("spec", config.to_json())
    attempt.write("env", {"qbench": "0.1.0", "commit": "c" * 40, "dirty": False, "threads": 1})
    attempt.curve.write_text("".join(f"{json.dumps(_make_point(n))}\n" for n in range(points)))
    attempt.write("result", make_result(**more) | {"key": config.key, "attempt": number})
    return attempt


def _make_point(step: int) -> dict[str, Any]:
    terms: dict[str, Any] = {"terms": {"task": 1.0}, "metrics": {}}
    return {"step": step, "loss": 1.0 / (step + 1), "lr": 0.1, "val": None, **terms}


def fake_board_members(
    board: str, cells: list[tuple[RunConfig, str | None]], seeds: int, title: str = ""
) -> dict[str, Any]:
    """Return the members of a board, whose cells are (configuration, why it is skipped or None)."""
    return {
        "roster_version": BOARD_MEMBERS_VERSION,
        "board": board,
        "version": 1,
        "title": title,
        "made": "2026-01-01T00:00:00+00:00",
        "sweep": f'board = "{board}"',
        "seeds": list(range(seeds)),
        "track": "fair",
        "defaults": {"ste": {"scale": "absmax"}},
        "cells": [_make_cell(config, refusal, seeds) for config, refusal in cells],
    }


def _make_cell(config: RunConfig, refusal: str | None, seeds: int) -> dict[str, Any]:
    keys = [dataclasses.replace(config, seed=seed).key for seed in range(seeds)]
    return {
        "label": config.method,
        "variant": "",
        "provenance": "paper",
        "refusal": refusal,
        "spec": config.to_json(),
        "keys": [] if refusal else keys,
    }
