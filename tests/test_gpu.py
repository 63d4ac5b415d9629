"""Tests that need a GPU; `make gpu` runs them.

They cover eager and compiled runs against runs on the CPU, recorded steps, bf16 and random draws.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from qbench.checks.method_contract import first_losses, vary_numbers
from qbench.checks.method_kit import Kit
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.execute import execute_group
from qbench.numerics.keyed_random import key_of, uniform
from qbench.plugins import registry
from qbench.runs.attempts import Attempt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
TRAINED = sorted(
    n for n in registry.plugins("methods") if not registry.load("methods", n).post_training
)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_on_the_gpu_passes_its_audit_and_scores_as_on_the_cpu(
    name: str, compiled: bool, tmp_path: Path
) -> None:
    config = Kit(name, tmp_path).make_config("int4")
    here = run_one(Assignment(config, tmp_path / "cpu" / "1"))
    there = run_one(
        Assignment(config, tmp_path / "gpu" / "1"), Execution(device="cuda", compile=compiled)
    )
    assert there["state"] == "ok" and there["audit"]["passed"], there["message"]
    assert there["scores"]["packed"] == pytest.approx(here["scores"]["packed"], rel=0.25), (
        "training magnifies rounding, but not to another result"
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", TRAINED)
def test_recorded_steps_are_the_steps_that_are_taken(
    name: str, compiled: bool, tmp_path: Path
) -> None:
    """Compare three stacked runs with and without step recording.

    The first steps are taken normally before one is recorded. Later steps repeat the recorded one.
    """
    configs = [vary_numbers(Kit(name, tmp_path).make_config("int4"), place) for place in range(3)]
    ends = []
    for graphs in (False, True):
        doing = [
            Assignment(c, tmp_path / str(graphs) / str(place) / "1")
            for place, c in enumerate(configs)
        ]
        results = execute_group(
            doing, Execution(device="cuda", compile=compiled, graphs=graphs), [lambda _: None] * 3
        )
        assert all(r["state"] == "ok" and r["audit"]["passed"] for r in results), [
            r["message"] for r in results
        ]
        assert all(
            bool((Attempt(a.folder).read("env") or {}).get("recorded")) == graphs for a in doing
        )
        ends.append([loss for a in doing for loss in first_losses(a.folder, 12)])
    assert ends[1] == pytest.approx(ends[0], rel=1e-3)


def test_bf16_trains_with_float32_masters(tmp_path: Path) -> None:
    config = Kit("ste", tmp_path).make_config("int4")
    config = dataclasses.replace(
        config, recipe=dataclasses.replace(config.recipe, precision="bf16")
    )
    result = run_one(Assignment(config, tmp_path / "1"), Execution(device="cuda"))
    assert (
        result["state"] == "ok" and result["audit"]["passed"] and result["scores"]["packed"] < 1.0
    ), result["message"]


def test_draws_are_the_same_on_every_device() -> None:
    key, step = torch.tensor([[[key_of("a")]], [[key_of("b")]]]), torch.tensor(7)
    assert torch.equal(
        uniform(key, step, (2, 33, 65)), uniform(key.cuda(), step.cuda(), (2, 33, 65)).cpu()
    )
