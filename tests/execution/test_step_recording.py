"""Recorded and repeated steps end where normally executed steps end.

A tape of operations repeats on the CPU what a CUDA graph would repeat, bit for bit. The tape
refuses what a graph could not hold: tests/training/test_device_calls.py runs it on the device `meta`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch._dynamo.utils import counters

from qbench import Method, Quantizer, Site, load_method
from qbench.api.batch import Batch
from qbench.checks.method_contract import check_recorded
from qbench.checks.method_kit import Kit
from qbench.cli.options import cli
from qbench.execution import execute
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.compile import compile_run, is_recorded
from qbench.execution.execute import execute_group
from qbench.execution.stacking import stack_runs
from qbench.execution.step_recording import WARMUP_STEPS, RecordedStep, Result
from qbench.numerics import batched_math
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig
from qbench.submissions.strict_json import require_schema
from qbench.training.loop import take_step, update
from qbench.training.run import TrainingRun
from tests import SOAK
from tests.execution.test_stacked_runs import (
    CPU,
    INT4,
    METHODS,
    Interrupted,
    config,
    make_assignments,
    make_configs,
    prepare_alone,
    read_curve,
    small_models,
    train_stacked,
)
from tests.training.test_loop import registered

__all__ = ["small_models"]


TAKEN, REPEATED = Execution(compile=False), Execution(compile=False, graphs=True)


def final_states(
    configs: list[RunConfig], folder: Path, execution: Execution
) -> list[tuple[Any, ...]]:
    """Return the artefact, the losses and the method's report of each run."""
    doing = make_assignments(configs, folder / str(execution.graphs))
    results = execute_group(doing, execution, [lambda _: None] * len(doing))
    assert [r["state"] for r in results] == ["ok"] * len(results), [r["message"] for r in results]
    lines = [read_curve(folder / str(execution.graphs), c) for c in configs]
    said = [bool(json.loads((a.folder / "env.json").read_text()).get("recorded")) for a in doing]
    assert said == [execution.graphs] * len(doing)
    return [(r["artefact_sha256"], own) for r, own in zip(results, lines, strict=True)]


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (t, m)
        for t in ("digits", "linreg", "batches")
        for m in METHODS
        if t == "digits" or (m in ("lotion", "gdnsq") or (SOAK and m != "lotion optimizer"))
    ],  # plain SGD keeps no second moment
)
def test_recorded_steps_equal_normal_steps(task: str, method: str, tmp_path: Path) -> None:
    """This holds for stacked runs and for a single run."""
    inputs = (
        INT4 if task == "digits" and not load_method(METHODS[method][0]).full_precision else None
    )
    several = make_configs(method, task, inputs=inputs, steps=16)[:3]
    assert final_states(several, tmp_path, TAKEN) == final_states(several, tmp_path, REPEATED)
    assert final_states(several[:1], tmp_path / "alone", TAKEN) == final_states(
        several[:1], tmp_path / "alone", REPEATED
    )


@pytest.mark.parametrize("task", ["rotated", "twolayer batches", "cnn", "grammar", "text"])
@pytest.mark.parametrize("method", ["ste", "lotion", "gdnsq", "ewgs"] if SOAK else ["gdnsq"])
def test_recording_on_every_task(task: str, method: str, tmp_path: Path) -> None:
    several = make_configs(method, task, steps=WARMUP_STEPS + 4)[:2]
    assert final_states(several, tmp_path, TAKEN) == final_states(several, tmp_path, REPEATED)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd"},
        {"clip": 0.0},
        {"schedule": "wsd", "warmup": 0.25},
    ],
    ids=str,
)
def test_recording_with_every_recipe(recipe: dict[str, Any], tmp_path: Path) -> None:
    several = make_configs("lsq", "digits", **recipe)[:3]
    assert final_states(several, tmp_path, TAKEN) == final_states(several, tmp_path, REPEATED)


def test_recording_with_micro_batches(tmp_path: Path) -> None:
    parts = [dataclasses.replace(execution, accumulate=2) for execution in (TAKEN, REPEATED)]
    several = make_configs("gdnsq", "digits")[:2]
    assert final_states(several, tmp_path, parts[0]) == final_states(several, tmp_path, parts[1])


@pytest.mark.parametrize("count", [1, 3])
def test_a_killed_recorded_run_resumes(count: int, tmp_path: Path) -> None:
    """It resumes from its checkpoint with recording on or off, whichever it was before."""
    several = make_configs("lotion", "digits", steps=24)[:count]
    whole = [sha for sha, _ in final_states(several, tmp_path, TAKEN)]
    for before, after in ((REPEATED, REPEATED), (REPEATED, TAKEN), (TAKEN, REPEATED)):
        cut = make_assignments(several, tmp_path / "cut")
        with contextlib.suppress(Interrupted):
            interrupt_at(12, cut, dataclasses.replace(before, checkpoint_s=0))
        assert all(Attempt(a.folder).checkpoint.exists() for a in cut)
        resumed = train_stacked(
            several, tmp_path / "resumed", after, resume=[a.folder for a in cut]
        )
        assert [r["artefact_sha256"] for r in resumed] == whole


def interrupt_at(step: int, doing: list[Assignment], execution: Execution) -> None:
    def report(progress: dict[str, Any]) -> None:
        if progress["step"] > step:
            raise Interrupted

    execute_group(doing, execution, [report] * len(doing))


# ---- what is repeated ----


def test_an_update_runs_normally_then_is_recorded_once_and_repeated(tmp_path: Path) -> None:
    run, called = prepare_alone(config("ste"), tmp_path), []

    def watched(run: TrainingRun, batch: Batch) -> Any:
        called.append(run.step)
        return update(run, batch)

    run.recording = RecordedStep(run, watched)
    losses = [float(take_step(run, step)[0]["task"]) for step in range(12)]
    assert called == [*range(WARMUP_STEPS), WARMUP_STEPS] and len(set(losses)) == len(losses)


def test_data_that_all_runs_share_is_in_memory_once(tmp_path: Path) -> None:
    """Products recognize shared data by its memory, in recorded steps as in normal ones."""
    run = stack_runs(
        [prepare_alone(config("ste", "batches", seed=0, lr=lr), tmp_path) for lr in (0.01, 0.02)]
    )
    assert run is not None
    run.recording = RecordedStep(run, update)
    for step in range(WARMUP_STEPS + 2):
        take_step(run, step)
    kept, now = run.recording.batch, run.batch(WARMUP_STEPS + 1)
    assert kept is not None and kept.inputs is not None and kept.targets is not None
    assert kept.inputs.stride(0) == kept.targets.stride(0) == 0 and torch.equal(
        kept.inputs, now.inputs
    )  # type: ignore[arg-type]
    assert kept.inputs.data_ptr() != now.inputs.data_ptr()  # type: ignore[union-attr]


@pytest.mark.parametrize("task", ["grammar", "text"])
def test_the_static_batch_has_the_strides_of_others(task: str, tmp_path: Path) -> None:
    """Inputs and targets of a language model are views of one window.

    A compiled graph expects their strides."""
    for count in (1, 2):
        runs = [prepare_alone(config("ste", task, seed=seed), tmp_path) for seed in range(count)]
        run = stack_runs(runs) if count > 1 else runs[0]
        assert run is not None
        now, kept = run.batch(0), RecordedStep(run, update).copy_batch(run.batch(0))
        for x, own in ((now.inputs, kept.inputs), (now.targets, kept.targets)):
            assert (
                x is not None
                and own is not None
                and own.stride() == x.stride()
                and torch.equal(own, x)
            )


class RecorderThatRepeatsNormally:
    """A recorder that calls the function each time, so that the compiler sees the calls."""

    def run_normally(self, f: Callable[[], Result]) -> Result:
        return f()

    def record(self, f: Callable[[], Result]) -> Result:
        self.f, before = f, counters["stats"]["unique_graphs"]
        found = f()
        assert counters["stats"]["unique_graphs"] == before, (
            "nothing is compiled while a graph is recorded"
        )
        return found

    def repeat(self) -> None:
        self.f()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize(("task", "method"), [("grammar", "ste"), ("digits", "gdnsq")])
def test_steps_are_compiled_before_they_are_recorded(
    task: str, method: str, tmp_path: Path
) -> None:
    torch.compiler.reset()
    counters.clear()
    run = prepare_alone(config(method, task), tmp_path)
    compile_run(run)
    run.recording = RecordedStep(run, update)
    run.recording.recorder = RecorderThatRepeatsNormally()
    for step in range(WARMUP_STEPS + 2):
        take_step(run, step)
    assert counters["stats"]["unique_graphs"] > 0


def test_a_record_holds_the_constants_that_it_reads(tmp_path: Path) -> None:
    """A graph goes on reading the memory of constants, here of each run's clipping norm."""
    configs = [config("ste", clip=clip) for clip in (0.5, 2.0)]
    run = stack_runs([prepare_alone(one, tmp_path) for one in configs])
    assert run is not None
    batched_math.constant_cache.clear()
    run.recording = RecordedStep(run, update)
    run.recording.recorder = RecorderThatRepeatsNormally()
    for step in range(WARMUP_STEPS + 1):
        take_step(run, step)
    read = [weakref.ref(x) for x in batched_math.constant_cache.values()]
    batched_math.constant_cache.clear()
    assert read and all(x() is not None for x in read)


def test_numbers_that_change_every_step_are_not_cached(tmp_path: Path) -> None:
    run = stack_runs(
        [
            prepare_alone(config("gdnsq", seed=seed, lr=0.01 * (1 + seed)), tmp_path)
            for seed in range(2)
        ]
    )
    assert run is not None
    take_step(run, 0)
    before = len(batched_math.constant_cache)
    x = torch.zeros(2, 1, 1)
    for step in range(5):
        run._write_scalar("number", [step, step + 0.1])
        values = run.scalar("number", like=x).flatten().tolist()
        assert values == [step, pytest.approx(step + 0.1)]
    assert len(batched_math.constant_cache) == before


def test_the_record_is_freed_after_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds as much memory as a step, and is freed without the garbage collector."""
    made = []

    def watched(run: TrainingRun, update: Any) -> RecordedStep:
        made.append(weakref.ref(found := RecordedStep(run, update)))
        return found

    monkeypatch.setattr(execute, "RecordedStep", watched)
    gc.disable()
    try:
        train_stacked(make_configs("ste")[:2], tmp_path, REPEATED)
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()


# ---- what cannot be recorded ----


@dataclass
class ReadsValues(Method):
    """STE whose update does something that a graph cannot record, or would repeat unchanged."""

    name = "careless"
    does: ClassVar[str]

    def quantizer(self, site: Site) -> Quantizer | None:
        return load_method("ste")().quantizer(site)

    def param_groups(self, run: TrainingRun) -> dict[str, Any]:
        self.carried = torch.zeros(())
        return {}

    def after_backward(self, run: TrainingRun) -> None:
        weight = run.weights[0].layers[0].weight
        assert weight.grad is not None
        if self.does == "number":
            weight.grad *= 1 - run.progress
        elif self.does == "carried":
            self.carried = self.carried + 0.1
            weight.grad *= 1 + self.carried
        elif self.does == "made":
            weight.grad *= torch.tensor(2.0)
        elif weight.grad.sum() > 0:
            weight.grad *= 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("number", "return what changes from schedules"),
        ("carried", "return what changes from schedules"),
        ("made", "could not be recorded"),
        ("asked", "could not be recorded"),
    ],
)
def test_the_check_finds_a_step_that_cannot_be_recorded(
    how: str, words: str, tmp_path: Path
) -> None:
    with registered(type("Careless", (ReadsValues,), {"does": how})):
        (found, *_) = check_recorded(Kit("careless", tmp_path, quick=True))
    assert not found.passed and words in found.detail


def test_stacked_runs_whose_recording_fails_continue_without_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The group is halved and resumes. The results say that no step was recorded."""

    class Asks(ReadsValues):
        does = "asked"

    with registered(Asks):
        configs = [
            dataclasses.replace(c, method="careless", method_version=1, method_params={})
            for c in make_configs("ste")[:3]
        ]
        taken = final_states(configs, tmp_path, TAKEN)
        results = train_stacked(configs, tmp_path / "again", REPEATED)
    assert [r["artefact_sha256"] for r in results] == [sha for sha, _ in taken]
    assert "asks for the value of a tensor" in capfd.readouterr().err
    assert all(
        "recorded" not in json.loads(path.read_text())
        for path in (tmp_path / "again").rglob("env.json")
    )


def test_a_method_that_refuses_recording_is_run_step_by_step(tmp_path: Path) -> None:
    cold = dataclasses.replace(
        config("gdnsq"), method_params={**config("gdnsq").method_params, "rho": 0.99}
    )
    pulled = dataclasses.replace(
        config("pege"), method_params={**config("pege").method_params, "decoupled": True}
    )
    for one in (cold, pulled, config("ste", optimizer="radam")):
        (result,) = train_stacked([one], tmp_path, REPEATED)
        (env,) = tmp_path.rglob(f"{one.key}/*/env.json")
        assert result["state"] == "ok" and "recorded" not in json.loads(env.read_text())
    for cell in (cold, pulled):
        assert not registry.build("methods", cell.method, cell.method_params).batched


def test_compiled_steps_are_not_recorded_on_a_tape(tmp_path: Path) -> None:
    assert is_recorded(REPEATED, config("ste"), CPU)
    assert not is_recorded(dataclasses.replace(REPEATED, compile=True), config("ste"), CPU)
    assert is_recorded(
        dataclasses.replace(REPEATED, compile=True), config("ste"), torch.device("cuda")
    )
    assert not is_recorded(
        dataclasses.replace(REPEATED, gpus_per_run=2), config("ste"), torch.device("cuda")
    )


# ---- as a user asks for it ----


def test_a_sweep_records_steps_and_the_result_says_so(tmp_path: Path) -> None:
    sweep = tmp_path / "a.toml"
    sweep.write_text(
        'board = "a"\nseeds = 2\nmethods = ["fp", "ste"]\ntasks = ["digits"]\nformats = ["int4"]\n[recipe]\nsteps = 12\n'
    )
    shas = []
    for name, words in (("taken", []), ("repeated", ["--graphs"])):
        done = CliRunner().invoke(
            cli,
            [
                "sweep",
                str(sweep),
                "--results",
                str(tmp_path / name),
                "--device",
                "cpu",
                "--quiet",
                *words,
            ],
        )
        assert done.exit_code == 0, done.output
        results = [
            (path.parent.parent.name, json.loads(path.read_text()))
            for path in (tmp_path / name).rglob("result.json")
        ]
        shas.append({key: result["artefact_sha256"] for key, result in results})
    assert shas[0] == shas[1] and len(shas[0]) == 4
    envs = [json.loads(path.read_text()) for path in (tmp_path / "repeated").rglob("env.json")]
    assert len(envs) == 4 and all(env["recorded"] for env in envs)
    for env in envs:
        require_schema(env, "env", "env.json")
    key = next(iter(shas[1]))
    again = CliRunner().invoke(cli, ["reproduce", key, "--results", str(tmp_path / "repeated")])
    assert again.exit_code == 0 and "nothing in the environment" in again.output, again.output
