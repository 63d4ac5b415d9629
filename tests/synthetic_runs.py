"""Frames of runs with chosen scores, in the form that `qbench.results` returns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

DEFAULTS = {
    "fp": {},
    "rtn": {"scale": "absmax", "grid": "symmetric"},
    "ste": {"scale": "absmax", "clip_gradient": False},
    "lotion": {},
    "pege": {},
    "digits": {"net": "cnn"},
}


KEY_COLUMNS = (
    *(
        "method",
        "method_version",
        "params",
        "task",
        "task_version",
        "task_params",
        "size",
        "data",
        "weights_format",
        "weights_granularity",
    ),
    *("act_format", "act_granularity", "start", "seed", "lr", "steps", "batch", "recipe"),
)
"""The columns that a key is the hash of."""


def make_run(
    method: str, fmt: str | None, seed: int, score: float | None, **more: Any
) -> dict[str, Any]:
    """Return one row; `more` replaces its defaults."""
    params = {**DEFAULTS.get(method, {}), **more.pop("params", {})}
    levels, bits = {"int2": (3, 2.25), "int4": (15, 4.25), None: (None, 32.0)}.get(fmt, (7, 3.25))
    state = more.get("state", "ok")
    row: dict[str, Any] = {
        "attempt": 1, "state": state, "reason": None, "message": None, "method": method, "method_version": 1,
        "params": json.dumps(params, sort_keys=True), "provenance": "paper", "task": "digits", "task_version": 1, "task_params": '{"net":"cnn"}',
        "size": "xs", "weights_format": fmt, "weights_granularity": fmt and "channel", "act_format": None, "act_granularity": None,
        "start": "scratch", "seed": seed, "lr": 0.003, "steps": 300, "batch": 64, "packed": score, "validation": score, "rr_mean": None,
        "metric": "loss", "better": "lower", "unit": "nats", "digits": 3, "bits_per_weight": bits, "levels": levels,
        "train_s": 0.0 if method == "rtn" else 1.5, "step_s_median": 0.004 if method == "fp" else None if method == "rtn" else 0.005, "peak_memory_bytes": 2**27,
        "audit_passed": True if state == "ok" else None, "device_name": "cpu",
    }  # fmt: skip
    row.update(more)
    identity = [v for k, v in row.items() if k in KEY_COLUMNS]
    row["key"] = more.get("key") or hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    return row


def make_runs(
    method: str, fmt: str | None, scores: Sequence[float | None], **more: Any
) -> list[dict[str, Any]]:
    return [make_run(method, fmt, seed, score, **more) for seed, score in enumerate(scores)]


def make_failed_run(
    method: str,
    fmt: str | None,
    seed: int,
    reason: str = "diverged",
    message: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    unknown = dict.fromkeys(
        ("step_s_median", "train_s", "peak_memory_bytes", "levels", "bits_per_weight")
    )
    return make_run(
        method,
        fmt,
        seed,
        None,
        **{"state": "failed", "reason": reason, "message": message, **unknown, **more},
    )


def make_planned_run(
    method: str,
    fmt: str | None,
    seed: int,
    state: str = "planned",
    message: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a run without a result: only its configuration is known."""
    unknown = ("metric", "better", "unit", "digits", "device_name", "attempt", "audit_passed")
    return make_failed_run(
        method,
        fmt,
        seed,
        **{"state": state, "reason": None, "message": message, **dict.fromkeys(unknown), **more},
    )


def make_frame(*parts: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


def make_small_board_frame() -> pd.DataFrame:
    """Return the runs of a small board with a cell in each state."""
    return make_frame(
        make_runs("fp", None, [0.100, 0.102, 0.098]),
        make_runs("rtn", "int2", [1.000, 1.020, 0.990]),
        make_runs("rtn", "int4", [0.110, 0.112, 0.111]),
        make_runs("rtn", "int2", [0.800, 0.805, 0.795], params={"scale": "mse"}),
        make_runs("rtn", "int4", [0.108, 0.110, 0.109], params={"scale": "mse"}),
        make_runs("ste", "int2", [0.300, 0.310, 0.295]),
        make_runs("ste", "int4", [0.101, 0.104, 0.099]),
        make_runs("lotion", "int2", [0.400, 0.420], provenance="reconstructed"),
        [
            make_failed_run(
                "lotion",
                "int2",
                2,
                message="the loss is nan at step 57",
                provenance="reconstructed",
            )
        ],
        [
            make_failed_run(
                "lotion", "int4", s, "oom", "out of memory on cpu", provenance="reconstructed"
            )
            for s in range(3)
        ],
        [
            make_planned_run("pege", "int2", s, "skipped", "pege has no rule for two bits")
            for s in range(3)
        ],
        [make_run("pege", "int4", 0, 0.105, audit_passed=False, step_s_median=0.008)],
        [make_planned_run("pege", "int4", s) for s in (1, 2)],
    )
