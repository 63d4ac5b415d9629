"""A training step never reads a value from the device, which would stop the queue of a GPU.

A step of many stacked runs also needs no more calls than a step of few. The tests use the device
`meta` in place of a GPU: it computes nothing, so reading a value from it is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qbench.checks.method_kit import Kit
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.prepare import prepare_run
from qbench.execution.stacking import stack_runs
from qbench.execution.step_recording import (
    DEVICE_QUESTIONS,
    WARMUP_STEPS,
    OperationTape,
    RecordedStep,
)
from qbench.plugins import registry
from qbench.training.loop import take_step, update
from qbench.training.run import TrainingRun
from qbench.training.setup import open_problem
from tests import SOAK
from tests.execution.test_stacked_runs import INT4, TASKS, config
from tests.tasks.test_text import corpus

__all__ = ["corpus"]


TRAINED = sorted(
    n for n in registry.plugins("methods") if not registry.load("methods", n).post_training
)
STEPS = 1000
ORDINARY = (137, 331, 519, 777)
"""Steps at which no method calibrates its ranges or measures the curvature."""


class WaitRecorder(TorchDispatchMode):
    """Records every operation for which a GPU would have to finish its queue."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in DEVICE_QUESTIONS:
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


def prepare_toy_run(method: str, folder: Path) -> TrainingRun:
    config = Kit(method, folder).make_config("int4", activations="int4", steps=STEPS)
    run = prepare_run(
        Assignment(config, folder),
        Execution(),
        open_problem(config, torch.device("cpu"))[1],
        torch.device("cpu"),
    )
    take_step(run, 0)  # the first one prepares the optimizer, and may measure
    return run


@pytest.mark.parametrize("method", TRAINED)
def test_an_ordinary_step_reads_no_value_from_the_device(method: str, tmp_path: Path) -> None:
    run = prepare_toy_run(method, tmp_path)
    batch = run.problem.batch(0)
    run.problem.batch = lambda index: batch  # type: ignore[method-assign]
    for step in ORDINARY:
        with WaitRecorder() as watched:
            take_step(run, step)
        assert not watched.waits, step


def test_the_recorder_notices_a_read_value(tmp_path: Path) -> None:
    with WaitRecorder() as watched:
        assert bool(torch.ones(()))
        float(torch.ones(()))
    assert len(watched.waits) == 2


# ---- the device meta ----

META = torch.device("meta")
FUSED_ON = "_get_fused_kernels_supported_devices"
TASK_SETTINGS = ("digits", "cnn", "linreg", "rotated", "twolayer", "grammar", "text")
QUANTIZED_INPUTS = ("digits", "grammar")
FEW = ("gdnsq",)
"""Methods that are tested on every task. All methods are tested on digits; `make soak` tests all
methods on all tasks."""


class CallCounter(TorchDispatchMode):
    """Counts the calls to the device, and records copies to it that would wait for its queue."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {
            x.device.type
            for x in tree_leaves((args, kwargs, result))
            if isinstance(x, torch.Tensor)
        }
        if META.type in devices:
            self.made[str(func)] += 1
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if (
            copies
            and len(devices) > 1
            and not ((kwargs or {}).get("non_blocking") or True in args[2:])
        ):
            self.waits.append(str(func))
        return result


@pytest.fixture
def meta_device(corpus: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make torch do on `meta` what it does on a GPU: fused optimizers, also with rates in tensors.

    Autocast is off, because `meta` does not have it."""
    monkeypatch.setitem(TASKS, "text", ("text", {"corpus": corpus}))
    for module in ("adam", "optimizer"):
        monkeypatch.setattr(
            import_module(f"torch.optim.{module}"),
            FUSED_ON,
            lambda: [META.type],
            raising=False,
        )
    cast, enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, *a, **k: nullcontext() if device == META.type else cast(device, *a, **k),
    )
    monkeypatch.setattr(
        torch,
        "is_autocast_enabled",
        lambda device="cpu": device != META.type and enabled(device),
    )
    library = torch.library.Library("aten", "IMPL", "Meta")
    for optimizer in ("adamw", "sgd"):
        library.impl(f"_fused_{optimizer}_.tensor_lr", lambda *args, **kwargs: None)
    yield
    library._destroy()


def prepare_meta_run(method: str, task: str, count: int, folder: Path) -> TrainingRun:
    """Return stacked runs after their first step, with two rates and half as many seeds as runs."""
    inputs = INT4 if task in QUANTIZED_INPUTS else None
    configs = [
        config(method, task, place // 2, 0.01 * (1 + place % 2), STEPS, inputs)
        for place in range(count)
    ]
    configs.sort(key=lambda c: c.recipe.lr)  # as a sweep has them
    runs = [
        prepare_run(
            Assignment(c, folder),
            Execution(compile=False),
            open_problem(c, META)[1],
            META,
        )
        for c in configs
    ]
    run = stack_runs(runs) if count > 1 else runs[0]
    assert run is not None
    take_step(run, ORDINARY[0])
    return run


def count_calls(run: TrainingRun) -> CallCounter:
    with CallCounter() as calls:
        take_step(run, ORDINARY[1])
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [
        (task, method)
        for task in TASK_SETTINGS
        for method in (TRAINED if SOAK or task == "digits" else FEW)
    ],
)
def test_more_runs_need_no_more_calls_in_a_step(
    method: str, task: str, meta_device: None, tmp_path: Path
) -> None:
    one_run, few_runs, more = (
        prepare_meta_run(method, task, count, tmp_path) for count in (1, 4, 8)
    )
    one, few, many = map(count_calls, (one_run, few_runs, more))
    assert not one.waits + few.waits + many.waits
    assert many.made == few.made and sum(many.made.values()) < 2 * sum(one.made.values())
    for run in (one_run, few_runs):
        check_recording(run)


def check_recording(run: TrainingRun) -> None:
    """Record steps on a tape, which refuses a step that reads memory of the host.

    A graph would repeat such values as they were when it was recorded."""
    run.recording = RecordedStep(run, update)
    for step in range(ORDINARY[2], ORDINARY[2] + WARMUP_STEPS + 2):
        take_step(run, step)
    assert isinstance(run.recording.recorder, OperationTape) and run.recording.recorder.calls


def test_a_tape_refuses_host_memory(meta_device: None, tmp_path: Path) -> None:
    run = prepare_meta_run("ste", "digits", 1, tmp_path)
    run.method.after_step = lambda run: run.parameters[0].grad.mul_(torch.ones(1)[0])  # type: ignore[method-assign, union-attr]
    with pytest.raises(QbenchError, match="memory outside of its device"):
        check_recording(run)


def test_the_counter_sees_calls_and_blocking_copies(meta_device: None) -> None:
    with CallCounter() as seen:
        torch.ones(3).to(META)
        torch.empty(3, device=META).copy_(torch.ones(3))
    assert len(seen.waits) == 2 and seen.made.total() == 3
    with CallCounter() as seen:
        torch.ones(3).to(META, non_blocking=True)
        torch.empty(3, device=META).copy_(torch.ones(3), non_blocking=True)
    assert not seen.waits
