"""A run whose weights are divided among processes (FSDP2) is the run of one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.runs.config import Quantization, RunConfig
from tests.stage import stage

__all__ = ["stage"]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("stage")]
OURS = [
    name
    for name, plugin in sorted(registry.plugins("methods").items())
    if plugin.entry.value.startswith("qbench_methods")
]
ABLE = [
    name
    for name in OURS
    if not (method := registry.build("methods", name, {})).after and not method.undivided()
]
CLOSE = 1e-6
"""Eight units in the last place of a float32: a norm that is summed by parts, and the elements of a part that fill no vector of the CPU."""


def config_of(
    method: str, task: str, size: str = "xs", activations: str | None = None, **recipe: Any
) -> RunConfig:
    found, bed = registry.build("methods", method, {}), registry.build("tasks", task, {})
    weights = Quantization("int4", "channel") if found.quantizes else None
    inputs = Quantization(activations, "tensor") if activations else None
    wanted = dataclasses.replace(bed.recipe(size), **{"steps": 6, "batch": 8, **recipe})
    return RunConfig(
        0,
        method,
        found.version,
        found.params,
        task,
        bed.version,
        bed.params,
        bed.fingerprint(),
        size,
        weights,
        inputs,
        wanted,
        "scratch",
        0,
    )


def trained(
    config: RunConfig, folder: Path, execution: Execution
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    attempt = Attempt(folder / config.key / "1")
    result = run_one(Assignment(config, attempt.folder), execution)
    return result, [json.loads(line) for line in attempt.curve.read_text().splitlines()]


ALONE, DIVIDED = (
    Execution(device="cpu", accumulate=2),
    Execution(device="cpu", gpus_per_run=2, fsdp=True),
)


def test_full_precision_rounding_and_the_straight_through_estimator_can_be_divided() -> None:
    assert ABLE == ["fp", "rr", "ste"]
    for method in set(OURS) - {*ABLE, "rtn", "gptq"}:
        sentence = registry.build("methods", method, {}).undivided()
        assert sentence.startswith(method) and "\n" not in sentence
    assert (
        "parameters of its own"
        in registry.build("methods", "ste", {"scale": "learned"}).undivided()
    )
    assert registry.build("methods", "ste", {"scale": "mse"}).undivided() is None


@pytest.mark.parametrize("method", ABLE)
def test_a_divided_transformer_trains_as_one_process_does_bit_for_bit(
    method: str, tmp_path: Path
) -> None:
    config = config_of(method, "grammar", clip=0.0)
    one, curve = trained(config, tmp_path / "one", ALONE)
    two, other = trained(config, tmp_path / "two", DIVIDED)
    assert two["state"] == "ok" and two["audit"]["passed"], two["message"]
    assert [(a["terms"], a["val"]) for a in curve] == [(b["terms"], b["val"]) for b in other]
    assert two["artefact_sha256"] == one["artefact_sha256"] and two["scores"] == one["scores"]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("grammar", {"clip": 0.1}),
        ("digits", {"activations": "int4"}),
        ("grammar", {"batch": 9, "optimizer": "sgd", "lr": 0.1}),
    ],
    ids=["clipped", "inputs", "uneven"],
)
def test_what_is_summed_by_parts_differs_in_the_last_bits(
    task: str, more: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of("ste", task, **more)
    _, curve = trained(config, tmp_path / "one", ALONE)
    two, other = trained(config, tmp_path / "two", DIVIDED)
    assert two["state"] == "ok" and two["audit"]["passed"], two["message"]
    for a, b in zip(curve, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=CLOSE), a["step"]
        assert b["grad_norm"] == (
            None if a["grad_norm"] is None else pytest.approx(a["grad_norm"], rel=CLOSE)
        ), a["step"]


def test_a_searched_scale_is_looked_for_on_whole_weights(tmp_path: Path) -> None:
    config = dataclasses.replace(
        config_of("ste", "grammar", clip=0.0),
        method_params=registry.build("methods", "ste", {"scale": "mse"}).params,
    )
    one, _ = trained(config, tmp_path / "one", ALONE)
    two, _ = trained(config, tmp_path / "two", DIVIDED)
    assert two["artefact_sha256"] == one["artefact_sha256"]


def test_each_process_holds_its_part_of_weights_and_moments(tmp_path: Path) -> None:
    config = config_of("weigher", "stage")
    two, curve = trained(config, tmp_path, DIVIDED)
    assert two["state"] == "ok", two["message"]
    assert all(line["metrics"] == pytest.approx({"weights": 0.5, "moments": 0.5}) for line in curve)
    assert Attempt(tmp_path / config.key / "1").read("env")["divided"] is True  # type: ignore[index]
