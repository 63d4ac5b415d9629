"""Compiled steps have the gradients of eager ones; stacked runs have the bits of single runs."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

from qbench import Method, Quantizer, Site, load_method
from qbench.api.batch import Batch
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Execution
from qbench.execution.compile import compile_run, is_compiled
from qbench.execution.stacking import stack_runs
from qbench.training import checkpoint
from qbench.training.forward_backward import ForwardBackward
from qbench.training.loop import take_step
from qbench.training.run import TrainingRun
from tests.execution.test_stacked_runs import (
    CPU,
    INT4,
    STEPS,
    Interrupted,
    config,
    make_assignments,
    prepare_alone,
    read_curve,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own


@pytest.fixture(autouse=True)
def reset_compiler() -> None:
    torch.compiler.reset()
    counters.clear()


def take_steps(run: TrainingRun, steps: int, compiled: bool = True) -> list[torch.Tensor]:
    """Return the parameters after the given number of steps."""
    if compiled:
        compile_run(run)
    for step in range(steps):
        take_step(run, step)
    return [p.detach().clone() for p in run.parameters]


@pytest.mark.parametrize(
    ("task", "method", "inputs"),
    [
        ("digits", "pege", INT4),
        ("linreg", "lsq", None),
        ("batches", "ewgs", None),
        ("cnn", "ste", None),
    ],
)
def test_a_run_has_the_bits_that_it_has_compiled_alone(
    task: str, method: str, inputs: Any, tmp_path: Path
) -> None:
    """If the loss is the only sum, they are also the bits of eager steps."""
    me, steps = config(method, task, seed=3, lr=0.02, inputs=inputs), 8
    alone = take_steps(prepare_alone(me, tmp_path), steps)
    eager = take_steps(prepare_alone(me, tmp_path), steps, compiled=False)
    for one, other in zip(alone, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert task != "linreg" or torch.equal(one, other)
    others, slot = (
        [config(method, task, seed=10 + place, lr=0.01, inputs=inputs) for place in range(2)],
        1,
    )
    runs = [prepare_alone(c, tmp_path) for c in (*others[:slot], me, *others[slot:])]
    run = stack_runs(runs)
    assert run is not None
    take_steps(run, steps)
    mine = [p for group in runs[slot].optimizer.param_groups for p in group["params"]]  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(mine, alone, strict=True))


@pytest.mark.parametrize("method", ["ste", "gdnsq"])
def test_a_step_is_compiled_once(method: str, tmp_path: Path) -> None:
    """This holds if the losses of a method contain numbers that change in every step."""
    me = config(method)
    run = prepare_alone(me, tmp_path)
    compile_run(run)
    take_step(run, 0)
    made = counters["stats"]["unique_graphs"]
    for step in range(1, 6):
        take_step(run, step)
    assert made and counters["stats"]["unique_graphs"] == made and not counters["graph_break"]


def test_with_micro_batches_quantizers_are_separate_graphs(tmp_path: Path) -> None:
    """Weights are quantized once per step, not once per micro-batch."""
    me, several = config("pege"), Execution(accumulate=2)
    folders = {way: make_assignments([me], tmp_path / way)[0] for way in ("eager", "compiled")}
    results = [
        run_one(a, dataclasses.replace(several, compile=way == "compiled"))
        for way, a in folders.items()
    ]
    assert [r["state"] for r in results] == ["ok", "ok"] and results[1]["audit"]["passed"]
    eager, compiled = (read_curve(tmp_path / way, me)[:4] for way in folders)
    assert [line["loss"] for line in compiled] == pytest.approx(
        [line["loss"] for line in eager], rel=1e-3
    )
    run = prepare_alone(me, tmp_path)
    run.passes.micro_batches = 2
    compile_run(run)
    calls = [mock.Mock(wraps=bundle.training_call) for bundle in run.weights]
    for bundle, call in zip(run.weights, calls, strict=True):
        bundle.training_call = call
    take_step(run, 0)
    assert run.passes.compiled_terms is None and [call.call_count for call in calls] == [1] * len(
        run.weights
    )


def test_losses_of_a_method_see_its_quantized_weights(tmp_path: Path) -> None:
    """A penalty on the rounding error is not zero, compiled or eager."""

    class Damped(Method):
        name = "damped"

        def quantizer(self, site: Site) -> Quantizer | None:
            return load_method("ste")().quantizer(site)

        def losses(self, run: TrainingRun, output: Any, batch: Batch) -> dict[str, torch.Tensor]:
            moved = [
                (layer.quantized_weight - layer.weight).square().sum()
                for bundle in run.weights
                for layer in bundle.layers
            ]
            return {"task": run.loss(output, batch), "damping": torch.stack(moved).sum()}

    found = []
    for compiled in (False, True):
        run = prepare_alone(config("ste"), tmp_path)
        run.method = Damped()
        if compiled:
            compile_run(run)
        found.append(take_step(run, 0)[0]["damping"])
    assert float(found[0]) > 0
    torch.testing.assert_close(found[1], found[0])


def test_a_compiled_run_does_not_resume_an_eager_one(tmp_path: Path) -> None:
    me = config("ste")

    def cut(note: dict[str, Any]) -> None:
        if note["step"] == STEPS // 2:
            raise Interrupted

    (begun,) = make_assignments([me], tmp_path / "cut")
    with contextlib.suppress(Interrupted):
        run_one(begun, Execution(checkpoint_s=0), cut)
    assert (begun.folder / "checkpoint").exists()
    found = {}
    for resume in (None, begun.folder):
        (a,) = make_assignments([me], tmp_path / ("fresh" if resume is None else "resumed"))
        found[resume] = run_one(dataclasses.replace(a, resume=resume), Execution(compile=True))[
            "artefact_sha256"
        ]
    assert found[None] == found[begun.folder]
    for compiled, first in ((False, STEPS // 2 - 1), (True, 0)):
        run = prepare_alone(me, tmp_path)
        if compiled:
            compile_run(run)
        assert checkpoint.load_checkpoint(run, begun.folder / "checkpoint")[0] == first


# ---- when steps are compiled ----


def test_steps_are_compiled_on_cuda_or_where_the_command_says_so() -> None:
    cuda = torch.device("cuda")
    assert is_compiled(Execution(), cuda) and not is_compiled(Execution(), CPU)
    assert not is_compiled(Execution(compile=False), cuda)
    assert is_compiled(Execution(compile=True), CPU)


def test_a_compiled_run_says_so_and_is_audited_compiled(tmp_path: Path) -> None:
    (assignment,) = make_assignments([config("ste")], tmp_path)
    result = run_one(assignment, Execution(compile=True))
    assert (result["state"], result["audit"]["passed"]) == ("ok", True)
    assert "compiled = eager" in {check["name"] for check in result["audit"]["checks"]}
    assert '"compiled": true' in (assignment.folder / "env.json").read_text()


def test_the_audit_sees_a_quantizer_that_the_compiler_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the compiled network the weights are unrounded, as happened in a published result."""

    def lost(passes: ForwardBackward, inputs: Any) -> Any:
        return passes.run.model(inputs)

    monkeypatch.setattr(ForwardBackward, "output", lost)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    result = run_one(make_assignments([config("ste")], tmp_path)[0], Execution(compile=True))
    failed = [check["name"] for check in result["audit"]["checks"] if not check["passed"]]
    assert "compiled = eager" in failed and not result["audit"]["passed"]
