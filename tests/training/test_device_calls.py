"""A training step never waits for the device: nothing in it asks for the value of a tensor. On a GPU each such question stops the queue.

And a step of many runs side by side is as many calls as one of few. What a GPU would be asked to do, the device `meta` is asked here, which computes
nothing, so that whoever asks it for a value fails.
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
"""None of the few in a run at which a method looks at its ranges or curvature anew."""


class Impatient(TorchDispatchMode):
    """Notes every operation that a GPU would have to finish its work for."""

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


def ready(method: str, folder: Path) -> TrainingRun:
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
def test_an_ordinary_step_asks_for_no_value(method: str, tmp_path: Path) -> None:
    run = ready(method, tmp_path)
    batch = run.problem.batch(0)
    run.problem.batch = lambda index: batch  # type: ignore[method-assign]
    for step in ORDINARY:
        with Impatient() as watched:
            take_step(run, step)
        assert not watched.waits, step


def test_the_watch_sees_a_question(tmp_path: Path) -> None:
    with Impatient() as watched:
        assert bool(torch.ones(()))
        float(torch.ones(()))
    assert len(watched.waits) == 2


# ---- elsewhere ----

ELSEWHERE = torch.device("meta")
FUSED_ON = "_get_fused_kernels_supported_devices"
BEDS = ("digits", "cnn", "linreg", "rotated", "twolayer", "grammar", "text")
QUANTIZED_INPUTS = ("digits", "grammar")
FEW = ("gdnsq",)
"""Methods that are tried on every task. All methods are tried on digits, and in `make soak` on all tasks."""


class Calls(TorchDispatchMode):
    """Counts what the device is asked for, and notes copies to it that would wait until it has done all before."""

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
        found = func(*args, **(kwargs or {}))
        devices = {
            x.device.type for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)
        }
        if ELSEWHERE.type in devices:
            self.made[str(func)] += 1
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if (
            copies
            and len(devices) > 1
            and not ((kwargs or {}).get("non_blocking") or True in args[2:])
        ):
            self.waits.append(str(func))
        return found


@pytest.fixture
def elsewhere(corpus: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch does not do on `meta` and does on a GPU: fused optimizers, with rates in tensors too, and autocast, which is off here."""
    monkeypatch.setitem(TASKS, "text", ("text", {"corpus": corpus}))
    for module in ("adam", "optimizer"):
        monkeypatch.setattr(
            import_module(f"torch.optim.{module}"),
            FUSED_ON,
            lambda: [ELSEWHERE.type],
            raising=False,
        )
    cast, enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, *a, **k: (
            nullcontext() if device == ELSEWHERE.type else cast(device, *a, **k)
        ),
    )
    monkeypatch.setattr(
        torch,
        "is_autocast_enabled",
        lambda device="cpu": device != ELSEWHERE.type and enabled(device),
    )
    library = torch.library.Library("aten", "IMPL", "Meta")
    for optimizer in ("adamw", "sgd"):
        library.impl(f"_fused_{optimizer}_.tensor_lr", lambda *args, **kwargs: None)
    yield
    library._destroy()


def ready_elsewhere(method: str, bed: str, count: int, folder: Path) -> TrainingRun:
    """So many runs behind their first step: two rates, and half as many seeds."""
    inputs = INT4 if bed in QUANTIZED_INPUTS else None
    configs = [
        config(method, bed, place // 2, 0.01 * (1 + place % 2), STEPS, inputs)
        for place in range(count)
    ]
    configs.sort(key=lambda c: c.recipe.lr)  # as a sweep has them
    runs = [
        prepare_run(
            Assignment(c, folder),
            Execution(compile=False),
            open_problem(c, ELSEWHERE)[1],
            ELSEWHERE,
        )
        for c in configs
    ]
    run = stack_runs(runs) if count > 1 else runs[0]
    assert run is not None
    take_step(run, ORDINARY[0])
    return run


def calls(run: TrainingRun) -> Calls:
    with Calls() as found:
        take_step(run, ORDINARY[1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bed", "method"),
    [(bed, method) for bed in BEDS for method in (TRAINED if SOAK or bed == "digits" else FEW)],
)
def test_a_step_of_more_runs_is_no_more_calls(
    method: str, bed: str, elsewhere: None, tmp_path: Path
) -> None:
    alone, beside, more = (ready_elsewhere(method, bed, count, tmp_path) for count in (1, 4, 8))
    one, few, many = map(calls, (alone, beside, more))
    assert not one.waits + few.waits + many.waits
    assert many.made == few.made and sum(many.made.values()) < 2 * sum(one.made.values())
    for run in (alone, beside):
        look_at_what_is_recorded(run)


def look_at_what_is_recorded(run: TrainingRun) -> None:
    """A graph holds no more of the host than what it was when it was recorded: a tape refuses a step that looks there."""
    run.recording = RecordedStep(run, update)
    for step in range(ORDINARY[2], ORDINARY[2] + WARMUP_STEPS + 2):
        take_step(run, step)
    assert isinstance(run.recording.recorder, OperationTape) and run.recording.recorder.calls


def test_a_tape_hears_of_the_host(elsewhere: None, tmp_path: Path) -> None:
    run = ready_elsewhere("ste", "digits", 1, tmp_path)
    run.method.after_step = lambda run: run.parameters[0].grad.mul_(torch.ones(1)[0])  # type: ignore[method-assign, union-attr]
    with pytest.raises(QbenchError, match="memory outside of its device"):
        look_at_what_is_recorded(run)


def test_the_count_sees_a_call_for_each_run_and_a_copy_that_waits(elsewhere: None) -> None:
    with Calls() as seen:
        torch.ones(3).to(ELSEWHERE)
        torch.empty(3, device=ELSEWHERE).copy_(torch.ones(3))
    assert len(seen.waits) == 2 and seen.made.total() == 3
    with Calls() as seen:
        torch.ones(3).to(ELSEWHERE, non_blocking=True)
        torch.empty(3, device=ELSEWHERE).copy_(torch.ones(3), non_blocking=True)
    assert not seen.waits
