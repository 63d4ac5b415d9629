"""Plugins for tests of sweeps: a task that trains in milliseconds, and methods that misbehave.

A fixture writes a distribution that registers them into a temporary folder. So qbench takes them
for third-party plugins.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qbench.api.batch import Batch
from qbench.api.method import Method, Preset
from qbench.api.problem import Problem
from qbench.api.task import Task
from qbench.checks.toy_task import ToyProblem
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.quant.scaled_quantizer import ScaledQuantizer
from qbench.quant.site import Site
from qbench.quant.straight_through import straight_through
from qbench.runs.attempts import Attempt
from qbench.runs.config import Metric, Recipe, RunConfig
from qbench.training.run import TrainingRun

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = """
[qbench.methods]
plain = tests.stage:Plain
after = tests.stage:After
actor = tests.stage:Actor
villain = tests.stage:Villain
heir = tests.stage:Heir
deserter = tests.stage:Deserter
drifter = tests.stage:Drifter
broken = tests.no_such_module:Broken
[qbench.tasks]
stage = tests.stage:Stage
"""


@dataclass
class Stage(Task):
    """A tiny task that trains in milliseconds."""

    name = "stage"
    metric = Metric("loss")
    sizes = {"xs": {"width": 8}, "s": {"width": 16}}

    tilt: float = 1.0
    ladder: tuple[int, ...] = (1, 2)

    def recipe(self, size: str) -> Recipe:
        return Recipe(steps=12, batch=8, lr=1e-2)

    def fingerprint(self) -> str:
        return f"stage-{self.tilt}"

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> Problem:
        return ToyProblem(seed, batch, device)


@dataclass
class Plain(Method):
    """Full precision."""

    name = "plain"
    full_precision = True
    batched = False

    def quantizer(self, site: Site) -> None:
        return None


class Rounded(ScaledQuantizer):
    def __init__(self, site: Site) -> None:
        super().__init__(site, "absmax")

    def relax(self, x: Tensor) -> Tensor:
        return straight_through(x, self.grid(x).snap(x))


@dataclass
class After(Method):
    """A post-training method that starts from the finished run of `plain`."""

    name = "after"
    post_training = "plain"

    def quantizer(self, site: Site) -> Rounded:
        return Rounded(site)


@dataclass
class Actor(Method):
    """A rounding method that does what its role says at one step."""

    name = "actor"
    batched = False  # A run that is killed must not end other runs.
    presets = {
        "debut": Preset(
            "A Review", params={"at": 7}, recipe={"optimizer": "sgd", "lr": 0.5}, start="plain:0.5"
        ),
        "flop": Preset("A Review", recipe={"optimiser": "sgd"}),
        "farce": Preset("A Review", recipe={"lr": -1.0}),
    }

    role: str = "good"
    at: int = 5
    once: str = ""
    """A file that is created when the method acts. If the file exists, the method does not act."""
    seconds: float = 0.0
    """Time to sleep at every step."""
    steps_seen: tuple[int, ...] = ()

    def unsupported(self, site: Site) -> str | None:
        return "too coarse for an actor" if site.format == "int1" else None

    def check(self) -> str | None:
        return "at must not be negative" if self.at < 0 else None

    def quantizer(self, site: Site) -> Rounded:
        return Rounded(site)

    def schedules(self, run: TrainingRun) -> dict[str, float]:
        time.sleep(self.seconds)
        if run.step == self.at and not seen(self.once):
            ACTS[self.role](run)
        return {}

    def losses(self, run: TrainingRun, output: Any, batch: Batch) -> dict[str, Tensor]:
        loss = run.problem.loss(output, batch)
        return {"task": loss * float("nan") if self.role == "nan" and run.step >= self.at else loss}


@dataclass
class Deserter(Actor):
    """An actor whose second process kills itself at one step, at most `times` times.

    A run in a single process is not affected.
    """

    name = "deserter"
    times: int = 1
    counted_in: str = ""
    """A folder that holds one file for each kill so far."""

    def schedules(self, run: TrainingRun) -> dict[str, float]:
        if (
            run.team
            and run.team.rank == 1
            and run.step == self.at
            and len(os.listdir(self.counted_in)) < self.times
        ):
            Path(self.counted_in, str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


@dataclass
class Drifter(Actor):
    """An actor that changes its weights by the loss of its own part of the batch."""

    name = "drifter"

    def losses(self, run: TrainingRun, output: Any, batch: Batch) -> dict[str, Tensor]:
        self.told = run.problem.loss(output, batch)
        return {"task": self.told}

    @torch.no_grad()
    def after_step(self, run: TrainingRun) -> None:
        for layer in run.problem.layers().values():
            layer.weight += 1e-3 * self.told


@dataclass
class Villain(Plain):
    """A full-precision method that fails in its schedules."""

    name = "villain"

    def schedules(self, run: TrainingRun) -> dict[str, float]:
        raise RuntimeError("exit, pursued by a bear\nand more of it")


@dataclass
class Heir(After):
    """A post-training method that starts from a run of `villain`, which never finishes."""

    name = "heir"
    post_training = "villain"


def seen(marker: str) -> bool:
    """Return whether the marker exists, and create it if it does not."""
    if marker and Path(marker).exists():
        return True
    if marker:
        Path(marker).touch()
    return False


def forget_the_lines(_: object) -> None:
    raise ValueError("the actor forgot its lines")


def fill_the_disk(_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run_out_of_memory(run: Any) -> None:
    if run.passes.micro_batches == 1:
        raise torch.OutOfMemoryError("no room for the scenery")


ACTS: dict[str, Callable[[Any], None]] = {
    "good": lambda _: None,
    "nan": lambda _: None,
    "crash": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda _: os._exit(3),
    "stall": lambda _: time.sleep(1000),
    "raise": forget_the_lines,
    "full": fill_the_disk,
    "oom": run_out_of_memory,
}


def stand_in(
    assignment: Assignment, execution: Execution, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Act out the `role` in the run's parameters: a `run_one` without training."""
    attempt, role = Attempt(assignment.folder), str(assignment.config.method_params["role"])
    attempt.write("spec", assignment.config.to_json())
    env = {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "main": getattr(sys.modules["__main__"], "__file__", None),
    }
    attempt.write(
        "env", env | {"device": execution.device, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    )
    report({"step": 1, "steps": 2, "loss": 1.0})
    if role == "print":
        print("to be or not to be")
    if role == "chatter":
        while True:
            time.sleep(0.02)
            report({"step": 1, "steps": 2, "loss": 1.0})
    if role == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if role == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if role == "beat":
        while True:
            time.sleep(0.02)
            (attempt.folder / "beat").write_text(str(time.time()))
    if role == "frozen":
        import ctypes

        # This call holds the interpreter's lock, so no other thread of the worker can run.
        ctypes.PyDLL(None).sleep(1000)
    ACTS.get(role, lambda _: None)(None)
    report({"step": 2, "steps": 2, "loss": 0.5})
    result = {"result_version": 1, "key": attempt.key, "attempt": attempt.number, "state": "ok"}
    attempt.write("result", result)
    return result


def a_config(role: str, seed: int = 0) -> RunConfig:
    return RunConfig(
        1,
        "actor",
        1,
        {"role": role},
        "stage",
        1,
        {},
        "0",
        "xs",
        None,
        None,
        Recipe(),
        "scratch",
        seed,
    )


@contextmanager
def set_up(folder: Path) -> Iterator[Path]:
    """Write the distribution of these plugins into a folder and put it on the path.

    Workers see it too. A fork server that is already running would not, so it is stopped.
    """
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    info = folder / "qbench_stage-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qbench-stage\nVersion: 1\n")
    (info / "entry_points.txt").write_text(PLUGINS)
    sys.path.append(str(folder))
    registry.plugins.cache_clear()
    yield folder
    sys.path.remove(str(folder))
    registry.plugins.cache_clear()


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with set_up(tmp_path_factory.mktemp("stage")) as folder:
        yield folder
