"""The placebo keeps norms and signs of gradients, and is STE at strength 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qbench_methods.placebo import Placebo, stretch

from qbench.checks.method_kit import Kit
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment
from qbench.plugins import registry
from qbench.runs.config import RunConfig
from qbench.training.run import TrainingRun
from qbench.training.setup import make_run, open_problem


@given(st.integers(0, 10**6), st.floats(0, 0.99), st.sampled_from([torch.float32, torch.float64]))
def test_the_norm_of_each_site_is_kept_and_no_sign_changes(
    seed: int, strength: float, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(seed)
    g = torch.randn(3, 4, 5, generator=draw, dtype=dtype) * 10.0 ** torch.randint(
        -6, 6, (3, 1, 1), generator=draw
    )
    g[1, 2] = 0
    actual = stretch(g, torch.rand(g.shape, generator=draw, dtype=dtype), strength)
    torch.testing.assert_close(actual.norm(dim=(1, 2)), g.norm(dim=(1, 2)))
    assert torch.equal(actual.sign(), g.sign())


def test_gradients_of_zero_stay_zero() -> None:
    assert torch.equal(
        stretch(torch.zeros(2, 3, 4), torch.rand(2, 3, 4), 0.5), torch.zeros(2, 3, 4)
    )


def make_placebo_config(kit: Kit, **params: object) -> RunConfig:
    """Return the configuration of a run of the placebo with these parameters."""
    plain = kit.make_config("int2")
    return dataclasses.replace(plain, method_params={**plain.method_params, **params})


def test_without_strength_it_is_ste_bit_for_bit(tmp_path: Path) -> None:
    placebo, ste = Kit("placebo", tmp_path), Kit("ste", tmp_path)
    results = [
        run_one(Assignment(c, tmp_path / str(i) / "1"))
        for i, c in enumerate((make_placebo_config(placebo, strength=0), ste.make_config("int2")))
    ]
    assert results[0]["artefact_sha256"] == results[1]["artefact_sha256"]
    stretch_run = run_one(Assignment(make_placebo_config(placebo), tmp_path / "2" / "1"))
    assert stretch_run["artefact_sha256"] != results[0]["artefact_sha256"]


def test_slopes_differ_from_step_to_step_and_are_reproducible(tmp_path: Path) -> None:
    def gradient_at(step: int) -> torch.Tensor:
        config = make_placebo_config(Kit("placebo", tmp_path))
        _, problem = open_problem(config, torch.device("cpu"))
        run: TrainingRun = make_run(problem, registry.build("methods", "placebo", {}), config)
        run.begin_step(step)
        run.apply_schedules()
        run.method.step(run, problem.batch(0))
        run.method.after_backward(run)
        grad = problem.layers()["hidden"].weight.grad
        assert grad is not None
        return grad

    assert torch.equal(gradient_at(3), gradient_at(3))
    assert not torch.equal(gradient_at(3), gradient_at(4))


@pytest.mark.parametrize("strength", [-0.1, 1.0, float("nan")])
def test_a_slope_must_be_positive(strength: float) -> None:
    assert Placebo(strength=strength).check()
