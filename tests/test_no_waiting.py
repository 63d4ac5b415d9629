"""A training step never waits for the device: nothing in it asks for the value of a tensor. On a GPU each such question stops the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qbench import registry
from qbench.conformance import Kit
from qbench.engines import Assignment, Execution
from qbench.making import open_problem, prepare
from qbench.run import Run
from qbench.train import one_step

TRAINED = sorted(n for n in registry.plugins("methods") if not registry.load("methods", n).after)
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default}
"""`item`, `bool`, `float` and indexing by a mask: all must know what the device has come to."""
STEPS = 1000
ORDINARY = (137, 331, 519, 777)
"""None of the few in a run at which a method looks at its ranges or curvature anew."""


class Impatient(TorchDispatchMode):
    """Notes every operation that a GPU would have to finish its work for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in WAITS:
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


def ready(method: str, folder: Path) -> Run:
    config = Kit(method, folder).config("int4", activations="int4", steps=STEPS)
    run = prepare(Assignment(config, folder), Execution(), open_problem(config, torch.device("cpu"))[1], torch.device("cpu"))
    one_step(run, 0)  # the first one prepares the optimizer, and may measure
    return run


@pytest.mark.parametrize("method", TRAINED)
def test_an_ordinary_step_asks_for_no_value(method: str, tmp_path: Path) -> None:
    run = ready(method, tmp_path)
    batch = run.problem.batch(0)
    run.problem.batch = lambda index: batch  # type: ignore[method-assign]
    for step in ORDINARY:
        with Impatient() as watched:
            one_step(run, step)
        assert not watched.waits, step


def test_the_watch_sees_a_question(tmp_path: Path) -> None:
    with Impatient() as watched:
        assert bool(torch.ones(()))
        float(torch.ones(()))
    assert len(watched.waits) == 2
