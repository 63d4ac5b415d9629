"""What is printed of one run, at any width and with hostile text in its files."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qbench.terminal.run import show_run
from qbench.terminal.sparkline import draw_sparkline
from tests.hostile_text import HOSTILE, has_only_visible_characters
from tests.terminal.printing import print_to_text

KEY = "ab12" * 8
SPEC: dict[str, Any] = {
    "method": "ste",
    "method_version": 1,
    "method_params": {"scale": "absmax", "clip_gradient": False},
    "task": "digits",
    "task_version": 3,
    "task_params": {"model": "mlp"},
    "size": "xs",
    "data": "5ha",
    "seed": 3,
    "start": "scratch",
    "recipe": {"steps": 300, "lr": 0.003},
    "weights": {"format": "int4", "granularity": "block-32"},
    "activations": {"format": "int8", "granularity": "tensor"},
    "base": None,
}
ENV: dict[str, Any] = {
    "qbench": "0.1.0",
    "commit": "c0ffee",
    "dirty": True,
    "python": "3.11.7",
    "torch": "2.9.0",
    "device": "cpu",
    "device_name": "A Chip",
    "cpu": "A Chip",
}
RESULT: dict[str, Any] = {
    "state": "ok",
    "reason": None,
    "message": None,
    "started": "2026-11-21T04:00:00+00:00",
    "finished": "2026-11-21T04:00:02+00:00",
    "metric": {"name": "loss", "unit": "nats", "better": "lower", "digits": 3},
    "scores": {
        "packed": 0.123,
        "validation": 0.12,
        "simulated": 0.123,
        "latent": None,
        "rr_mean": 0.14,
        "rr_std": 0.01,
        "rr_count": 5,
    },
    "kinds": {"latent": "nan"},
    "metrics": {"accuracy": 97.25},
    "cost": {
        "wall_s": 1.9,
        "train_s": 1.2,
        "step_s_median": 0.004,
        "step_s_q25": 0.003,
        "step_s_q75": 0.005,
        "peak_memory_bytes": 123456789,
    },
    "size": {"parameters": 1000, "bits_per_weight": 4.25, "levels": 15},
    "audit": {
        "passed": False,
        "checks": [
            {"name": "levels", "passed": True, "detail": "15 of 15"},
            {"name": "agree", "passed": False, "detail": "0.1 off"},
        ],
    },
    "artefact_sha256": "f00d",
}
FULL_RUN: dict[str, Any] = {
    "key": KEY,
    "attempt": 2,
    "folder": "results/runs/ab/" + KEY,
    "spec": SPEC,
    "env": ENV,
    "result": RESULT,
    "curve": [{"step": i, "loss": 4.0 * 0.9**i} for i in range(100)],
}


def test_everything_that_is_known_about_a_run_is_printed() -> None:
    printed = print_to_text(show_run, FULL_RUN, width=160)
    for words in (
        f"run {KEY}  attempt 2: ok",
        "ste on digits/xs, int4/block-32 a:int8, seed 3",
        "ste version 1: clip_gradient=false, scale=absmax",
        "digits version 3: model=mlp, data 5ha",
        "start scratch: lr=0.003, steps=300",
        "loss (nats): packed 0.12300, simulated 0.12300, validation 0.12000, latent nan",
        "randomised rounding 0.14000 ± 0.01000 (deviation), 5 draws",
        "accuracy 97.25",
        "parameters 1000, bits per weight 4.25, levels 15",
        "wall 1.9 s, train 1.2 s, step 4 [3, 5] ms, peak memory 123 MB",
        "4 at step 0, 0.0001181 at step 99 (logarithmic)",
        "pass levels: 15 of 15",
        "FAIL agree: 0.1 off",
        "commit c0ffee with changes",
        "cpu, A Chip, python 3.11.7",
        "2026-11-21T04:00:00+00:00 to",
        "sha256 f00d",
        f"results/runs/ab/{KEY}",
        f"qbench reproduce {KEY}",
    ):
        assert words in printed, words
    assert draw_sparkline([point["loss"] for point in FULL_RUN["curve"]], 146) in printed


def test_a_failed_run_is_printed_with_its_reason() -> None:
    result = {
        "state": "failed",
        "reason": "oom",
        "message": "out of memory",
        "scores": {"packed": None},
        "kinds": {"packed": "nan"},
    }
    run = {"key": KEY, "attempt": 1, "result": result, "curve": [{"step": 0, "loss": None}]}
    printed = print_to_text(show_run, run)
    assert "attempt 1: failed" in printed and "oom: out of memory" in printed
    assert "packed nan" in printed
    assert "×" in printed and "not finite at step 0" in printed and "None" not in printed


def test_a_run_without_files_is_printed_as_not_finished() -> None:
    assert print_to_text(show_run, {}) == "run ?  attempt 1: not finished\n"
    run = {"key": KEY, "spec": SPEC, "env": None, "result": None, "curve": []}
    assert "not finished" in print_to_text(show_run, run)


@given(HOSTILE, st.integers(20, 200))
def test_a_hostile_run_is_harmless_at_any_width(words: str, width: int) -> None:
    spec = SPEC | {"method": words, "method_params": {words: words}, "start": words}
    result = RESULT | {
        "message": words,
        "reason": words,
        "kinds": {"latent": words},
        "audit": {"checks": [{"name": words, "detail": words, "passed": False}]},
        "metrics": {words: 1.0},
    }
    run = FULL_RUN | {"key": words, "spec": spec, "result": result, "folder": words}
    printed = print_to_text(show_run, run, width=width)
    assert has_only_visible_characters(printed)
    assert all(cell_len(line) <= width for line in printed.splitlines())


# ---- sparklines ----


def test_a_sparkline_has_a_bar_for_each_mean() -> None:
    assert draw_sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert draw_sparkline([0, 1, 2, 3, 4, 5, 6, 7], 2) == "▁█"
    assert draw_sparkline([1, 1], 5) == "▁▁" and draw_sparkline([], 5) == ""
    assert draw_sparkline([0, math.nan, None, 7, math.inf], 9) == "▁××█×"
    assert draw_sparkline([None, None], 1) == "×"


def test_a_sparkline_is_logarithmic_only_beyond_a_factor_of_30() -> None:
    assert draw_sparkline([1, 10, 100], 3) == "▁▅█"
    assert draw_sparkline([1, 15.5, 30], 3) == "▁▅█"


@given(st.lists(st.floats() | st.none(), max_size=50), st.integers(1, 60))
def test_any_values_give_a_sparkline(values: list[float | None], width: int) -> None:
    bars = draw_sparkline(values, width)
    assert len(bars) == min(width, len(values)) and set(bars) <= set("▁▂▃▄▅▆▇█×")
