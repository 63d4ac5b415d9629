"""Distillation as the objective of a board: for all its runs or none, and only with a teacher."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qbench_tasks.digits import Digits
from torch import Tensor

from qbench.api.batch import Batch
from qbench.checks.method_kit import Kit
from qbench.checks.toy_task import ToyProblem
from qbench.engines.dispatch import run_one
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.execute import execute_group
from qbench.execution.group_policy import stacking_kind, why_alone
from qbench.runs.attempts import create_attempt
from qbench.runs.config import Recipe, RunConfig
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.cells import Plan
from qbench.sweeps.plan import make_plan
from tests.execution.test_stacked_runs import config, outcome, read_curve, small_models

__all__ = ["small_models"]


SWEEP = """
board = "imitation"
start = "fp:0.5"
methods = ["fp", "rtn", "ste"]
tasks = ["toy"]
formats = ["int4"]
"""


def plan(text: str = SWEEP, recipe: str = "") -> Plan:
    return make_plan(parse_sweep(f"{text}\n[recipe]\nsteps = 20\n{recipe}", "s.toml"))


def train_run(
    config: RunConfig, folder: Path, base: Path | None = None
) -> tuple[dict[str, Any], Path]:
    attempt = create_attempt(folder, config.key)
    return run_one(Assignment(config, attempt.folder, base=base)), attempt.folder


def test_the_distance_is_jeffreys_for_classes_and_squared_error_for_numbers() -> None:
    problem = ToyProblem(0, 8, torch.device("cpu"))
    draw = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(5, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = student.softmax(-1), teacher.softmax(-1)
    kl = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    classes, numbers = (
        Batch(student, torch.zeros(5, dtype=torch.int64)),
        Batch(student, torch.zeros(5, 7)),
    )
    torch.testing.assert_close(
        problem.distances(student, teacher, classes), kl.float(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        problem.distances(student, teacher, numbers), (student - teacher).square()
    )
    assert not problem.distances(student, student, classes).any()


def test_the_objective_is_an_axis_and_the_start_is_trained_on_the_task() -> None:
    both = plan(recipe='objective = ["task", "distill"]')
    off = plan()
    assert set(off.runs) < set(both.runs), (
        "the word changes no key where it says what was always so"
    )
    extra = [cell for cell in both.cells if cell.extra]
    assert [
        (c.example.recipe.objective, c.example.recipe.steps, c.example.start) for c in extra
    ] == [("task", 10, "scratch")]
    asked = [(c.example.method, c.example.recipe.objective) for c in both.cells if not c.extra]
    assert sorted(asked) == sorted(
        (m, o) for m in ("fp", "rtn", "ste") for o in ("task", "distill")
    )
    again = [
        RunConfig.from_json(json.loads(json.dumps(run.config.to_json()))).key
        for run in both.runs.values()
    ]
    assert again == list(both.runs)


def test_distillation_needs_a_teacher() -> None:
    with pytest.raises(UsageError, match="needs a network to imitate"):
        plan(SWEEP.replace("fp:0.5", "scratch"), 'objective = "distill"')
    with pytest.raises(UsageError, match="objective"):
        plan(recipe='objective = "imitate"')
    closed = plan(SWEEP.replace('"toy"', '"linreg"'), 'objective = "distill"')
    assert {cell.refusal for cell in closed.skipped if not cell.extra} >= {
        "linreg has its loss in closed form, and no outputs to imitate"
    }
    assert not [cell for cell in closed.cells if not cell.extra]


@pytest.mark.parametrize("method", ["fp", "ste", "gdnsq", "lotion"])
def test_every_method_learns_from_the_teacher_and_not_from_labels(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Recipe(steps=20, batch=32, lr=0.01)
    base = dataclasses.replace(Kit("fp", tmp_path).make_config(None), recipe=whole)
    _, start = train_run(base, tmp_path)
    config = Kit(method, tmp_path).make_config("int2" if method != "fp" else None)
    config = dataclasses.replace(
        config,
        recipe=dataclasses.replace(whole, objective="distill"),
        start="fp:0.5",
        base=base.key,
        task="toy",
        data="toy-1",
    )
    one, folder = train_run(config, tmp_path, start)
    assert one["state"] == "ok", one["message"]
    distances = [
        json.loads(line)["terms"]["distance"]
        for line in (folder / "curve.jsonl").read_text().splitlines()
    ]
    # A full-precision run begins at its teacher, so nothing moves it. The same holds for LOTION's
    # latent weights, where the Fisher information is zero.
    assert max(distances) < 1e-9 if method in ("fp", "lotion") else min(distances) > 0
    assert method != "ste" or distances[-1] < distances[0] / 2

    draw = ToyProblem.batch

    def mislabelled(self: ToyProblem, index: int) -> Batch:
        batch = draw(self, index)
        return dataclasses.replace(
            batch,
            targets=torch.zeros_like(batch.targets) if isinstance(batch.targets, Tensor) else None,
        )

    monkeypatch.setattr(ToyProblem, "batch", mislabelled)
    other, _ = train_run(config, tmp_path / "other", start)
    assert other["artefact_sha256"] == one["artefact_sha256"]


def test_activations_of_the_reference_are_not_quantized(tmp_path: Path) -> None:
    base = dataclasses.replace(
        Kit("fp", tmp_path).make_config(None), recipe=Recipe(steps=5, batch=8, lr=0.01)
    )
    base = dataclasses.replace(
        base,
        task="digits",
        task_version=Digits.version,
        data=Digits().fingerprint(),
        task_params=Digits().key_options(),
    )
    _, start = train_run(base, tmp_path)
    config = Kit("ste", tmp_path).make_config("int2", activations="int2")
    same = {
        name: getattr(base, name)
        for name in ("task", "task_version", "data", "task_params", "size")
    }
    config = dataclasses.replace(
        config,
        **same,
        recipe=dataclasses.replace(base.recipe, objective="distill"),
        start="fp:0.5",
        base=base.key,
    )
    result, folder = train_run(config, tmp_path, start)
    assert result["state"] == "ok" and result["audit"]["passed"]
    assert json.loads((folder / "curve.jsonl").read_text().splitlines()[0])["terms"]["distance"] > 0


# ---- stacked runs ----


def make_distilled_runs(
    task: str, method: str, folder: Path, count: int = 3
) -> tuple[list[RunConfig], list[Path]]:
    """Return runs that are each distilled from a teacher of their own, and the teachers' folders."""
    configs, bases = [], []
    for seed in range(count):
        base = config("fp", task, seed=seed, lr=0.02)
        _, start = train_run(base, folder / "bases")
        found = config(method, task, seed=seed)
        recipe = dataclasses.replace(
            found.recipe,
            lr=0.01 * (1 + seed // 2),
            objective="distill",
        )
        configs.append(dataclasses.replace(found, recipe=recipe, start="fp:0.5", base=base.key))
        bases.append(start)
    return configs, bases


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [
        *(("digits", m) for m in ("fp", "ste", "lotion", "pege", "lsq")),
        *((t, "gdnsq") for t in ("digits", "batches", "grammar")),
        ("batches", "ewgs"),
        ("cnn", "ste"),
        ("grammar", "rr"),
        ("text", "ste"),
    ],
)
def test_stacked_runs_each_learn_from_their_own_teacher(
    task: str, method: str, tmp_path: Path
) -> None:
    configs, bases = make_distilled_runs(task, method, tmp_path)
    assert (
        all(why_alone(c) is None for c in configs) and len({stacking_kind(c) for c in configs}) == 1
    )
    many = [
        Assignment(c, create_attempt(tmp_path / "many", c.key).folder, base=base)
        for c, base in zip(configs, bases, strict=True)
    ]
    for result, c, base in zip(
        execute_group(many, Execution(), [lambda _: None] * 3), configs, bases, strict=True
    ):
        one, _ = train_run(c, tmp_path / "one", base)
        assert result["state"] == "ok" and result["cost"]["company"] == 3, result["message"]
        assert outcome(result) == outcome(one) and read_curve(tmp_path / "many", c) == read_curve(
            tmp_path / "one", c
        )
