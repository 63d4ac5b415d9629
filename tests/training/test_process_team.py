"""A run on several processes equals the run of one process.

Two processes with gloo on the CPU take the place of two GPUs.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.checks.method_kit import Kit
from qbench.checks.toy_task import ToyProblem
from qbench.engines.device_slots import list_slot_devices
from qbench.engines.dispatch import run_one
from qbench.engines.local import local_engine
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.runs.attempts import Attempt, list_attempts
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import SweepSummary
from qbench.sweeps.plan import make_plan
from qbench.training.process_team import ProcessTeam, cut_batch
from tests import SOAK
from tests.stage import stage

__all__ = ["stage"]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("stage")]
TRAINED = sorted(
    n for n in registry.plugins("methods") if not registry.load("methods", n).post_training
)
STEPS = 12
CLOSE = 1e-6
"""Eight units in the last place of a float32: the order of sums may change a loss by this much in
twelve steps."""
MAGNIFIES = {"gdnsq": 2}
"""For how many steps a method stays that close if random numbers steer its steps. There, one
different bit of a gradient leads to another step."""


def train_run(
    method: str, folder: Path, execution: Execution, **recipe: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = Kit(method, folder).make_config("int4", activations="int4", steps=STEPS)
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, **recipe))
    attempt = Attempt(folder / config.key / "1")
    result = run_one(Assignment(config, attempt.folder), execution)
    return result, [json.loads(line) for line in attempt.curve.read_text().splitlines()]


def seen(curve: list[dict[str, Any]]) -> list[Any]:
    return [(line["terms"], line["grad_norm"], line["val"], line["metrics"]) for line in curve]


@pytest.mark.parametrize("method", TRAINED if SOAK else ["gdnsq"])
def test_two_processes_train_as_one_does_with_two_micro_batches_bit_for_bit(
    method: str, tmp_path: Path
) -> None:
    _, whole = train_run(method, tmp_path / "alone", Execution(device="cpu"))
    halved, curve = train_run(method, tmp_path / "halved", Execution(accumulate=2, device="cpu"))
    two, other = train_run(method, tmp_path / "two", Execution(gpus_per_run=2, device="cpu"))
    assert two["state"] == "ok" and two["audit"]["passed"], two["message"]
    assert seen(other) == seen(curve) and two["artefact_sha256"] == halved["artefact_sha256"]
    for a, b in list(zip(whole, other, strict=True))[: MAGNIFIES.get(method)]:
        assert b["loss"] == pytest.approx(a["loss"], rel=CLOSE), a["step"]


def test_three_processes_share_a_batch_that_three_do_not_divide(tmp_path: Path) -> None:
    _, curve = train_run("ste", tmp_path / "one", Execution(device="cpu"))
    three, other = train_run("ste", tmp_path / "three", Execution(gpus_per_run=3, device="cpu"))
    assert three["state"] == "ok", three["message"]
    for a, b in zip(curve, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=CLOSE), a["step"]


def test_micro_batches_are_equally_many_in_all_processes_and_cover_the_batch() -> None:
    batch = ToyProblem(0, 11, torch.device("cpu")).batch(0)
    per_process = [list(ProcessTeam(rank, 3).parts(batch, 4)) for rank in range(3)]
    assert {len(parts) for parts in per_process} == {3}
    firsts = [(first, part.count) for parts in per_process for first, part in parts]
    assert [first for first, _ in firsts] == [
        sum(count for _, count in firsts[:i]) for i in range(9)
    ]
    assert torch.equal(
        torch.cat([part.inputs for parts in per_process for _, part in parts]), batch.inputs
    )
    assert [part.count for part in cut_batch(batch, 4)] == [3, 3, 3, 2]


# ---- through a sweep ----

FILE = """
board = "together"
tasks = ["stage"]
formats = ["int4"]
{methods}
[engine]
gpus_per_run = {count}
"""


def make_sweep_config(methods: str, count: int = 2) -> Any:
    return parse_sweep(FILE.format(methods=methods, count=count), "f.toml")


def run_and_summarize(config: Any, results: Path) -> SweepSummary:
    execution = Execution(device="cpu", checkpoint_s=0, **vars(config.engine))
    with local_engine(config, execution, 1) as engine:
        return run_sweep(config, results, engine, execution)


def test_a_killed_process_ends_the_run_and_the_next_sweep_goes_on_to_the_same_result(
    tmp_path: Path,
) -> None:
    (tmp_path / "deaths").mkdir()
    config = make_sweep_config(
        f'[[method]]\nname = "deserter"\ntimes = 2\ncounted_in = "{tmp_path / "deaths"}"'
    )
    first = run_and_summarize(config, tmp_path)
    ((_, reason, message),) = first.failures
    assert (first.code, reason) == (3, "signal") and message.startswith(
        "process 2 of 2 was killed by SIGKILL"
    )
    second = run_and_summarize(config, tmp_path)
    assert second.code == 0
    (run,) = make_plan(config).runs.values()
    one, two, three = list_attempts(tmp_path, run.key)
    assert [a.read("result") and a.read("result")["state"] for a in (one, two, three)] == [
        None,
        "failed",
        "ok",
    ]  # type: ignore[index]
    *kept, _ = one.curve.read_text().splitlines(
        keepends=True
    )  # the last may be of a step whose checkpoint was not written any more
    assert len(kept) > 2 and three.curve.read_text().startswith("".join(kept)), "it began anew"
    assert three.read("env")["processes"] == 2  # type: ignore[index]
    undisturbed = tmp_path / "undisturbed"
    assert run_and_summarize(config, undisturbed).code == 0  # it has died as often as it wants to
    (whole,) = list_attempts(undisturbed, run.key)
    assert three.read("result")["artefact_sha256"] == whole.read("result")["artefact_sha256"]  # type: ignore[index]


def test_post_training_methods_take_one_process(tmp_path: Path) -> None:
    config = make_sweep_config('methods = ["plain", "after"]')
    assert run_and_summarize(config, tmp_path).code == 0
    environments = {
        run.config.method: list_attempts(tmp_path, run.key)[-1].read("env") or {}
        for run in make_plan(config).runs.values()
    }
    assert {name: env.get("processes", 1) for name, env in environments.items()} == {
        "plain": 2,
        "after": 1,
    }


def test_state_that_differs_between_processes_is_detected(tmp_path: Path) -> None:
    ((_, reason, message),) = run_and_summarize(
        make_sweep_config('methods = ["drifter"]'), tmp_path
    ).failures
    assert (
        reason == "plugin"
        and "drifter" in message
        and "drifted apart" in message
        and "run.sum_over_processes" in message
    )


def test_an_error_in_every_process_is_the_error_of_the_run(tmp_path: Path) -> None:
    ((_, reason, message),) = run_and_summarize(
        make_sweep_config('[[method]]\nname = "actor"\nrole = "raise"'), tmp_path
    ).failures
    assert (reason, message) == ("plugin", "ValueError: the actor forgot its lines")


def test_a_full_disk_stops_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="no space left on the disk"):
        run_and_summarize(make_sweep_config('[[method]]\nname = "actor"\nrole = "full"'), tmp_path)


# ---- what a file may ask for ----


def test_the_engine_is_part_of_no_key() -> None:
    methods = 'methods = ["actor"]'
    assert (
        make_plan(make_sweep_config(methods)).runs.keys()
        == make_plan(
            parse_sweep(FILE.split("[engine]")[0].format(methods=methods), "f.toml")
        ).runs.keys()
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[engine]\ngpus = 2", "f.toml: [engine]: unknown"),
        (
            "[engine]\ngpus_per_run = 0",
            "f.toml: [engine]: gpus_per_run: expected an integer from 1",
        ),
        (
            "[engine]\ngpus_per_run = 9",
            "f.toml: [engine]: a batch of 8 cannot be divided among 9 processes",
        ),
        ("[engine]\nfsdp = true", "f.toml: [engine]: unknown"),
        (
            '[[task]]\nname = "linreg"\n[engine]\ngpus_per_run = 1\n[recipe]\nbatch = 1',
            None,
        ),
        (
            '[[task]]\nname = "linreg"\n[engine]\ngpus_per_run = 2\n[recipe]\nbatch = 8',
            "linreg has its loss in closed form, and no batch to divide",
        ),
    ],
)
def test_impossible_settings_are_refused_before_training(text: str, complaint: str | None) -> None:
    tasks = "" if "[[task]]" in text else 'tasks = ["stage"]\n'
    file = f'board = "x"\nmethods = ["actor"]\nformats = ["int4"]\n{tasks}{text}\n'
    if complaint is None:
        make_plan(parse_sweep(file, "f.toml"))
        return
    with pytest.raises(UsageError) as error:
        make_plan(parse_sweep(file, "f.toml"))
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_missing_gpus_are_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    assert list_slot_devices("auto", 2, None) == ["cuda:0", "cuda:2"] and list_slot_devices(
        "cuda", 4, None
    ) == ["cuda:0"]
    with pytest.raises(UsageError, match=r"gpus_per_run = 8: this machine has 5 CUDA device"):
        list_slot_devices("auto", 8, None)
    with pytest.raises(UsageError, match="--device cuda:1 names one device"):
        list_slot_devices("cuda:1", 2, None)
