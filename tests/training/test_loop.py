"""Training one run: budgets, accumulation, precision, resumption and every kind of failure."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from qbench.api.batch import Batch
from qbench.api.load import load_method
from qbench.api.method import Method
from qbench.checks.method_kit import Kit
from qbench.checks.toy_task import Toy, ToyProblem
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.quant.quantizer import Quantizer
from qbench.quant.site import Site
from qbench.runs.attempts import Attempt, create_attempt, list_attempts
from qbench.runs.config import RunConfig
from qbench.training import checkpoint, schedules
from qbench.training.run import TrainingRun
from qbench.util.json_files import replace_non_finite


def train(
    config: RunConfig, folder: Path, execution: Execution = Execution(), **more: Any
) -> tuple[dict[str, Any], Attempt]:
    attempt = create_attempt(folder, config.key)
    return run_one(Assignment(config, attempt.folder, **more), execution), attempt


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit("ste", tmp_path)


def test_a_run_leaves_its_files(kit: Kit) -> None:
    config = kit.make_config("int2")
    beats: list[dict[str, Any]] = []
    attempt = create_attempt(kit.folder, config.key)
    result = run_one(Assignment(config, attempt.folder), report=beats.append)
    assert sorted(p.name for p in attempt.folder.iterdir()) == [
        "curve.jsonl",
        "env.json",
        "export",
        "result.json",
        "spec.json",
    ]
    assert (
        attempt.read("result") == json.loads(json.dumps(result))
        and RunConfig.from_json(attempt.read("spec") or {}).key == config.key
    )
    curve = [json.loads(line) for line in attempt.curve.read_text().splitlines()]
    assert [line["step"] for line in curve] == list(range(1, 61)) == [b["step"] for b in beats]
    assert [line["step"] for line in curve if line["val"] is not None] == [
        7,
        14,
        21,
        28,
        35,
        42,
        49,
        56,
        60,
    ]
    assert result["size"]["bits_per_weight"] == 2 + 32 * 128 / 5120 and result["audit"]["passed"]
    assert result["cost"]["step_s_median"] > 0 and list_attempts(kit.folder, config.key) == [
        attempt
    ]


def test_a_score_that_is_not_finite_is_recorded_as_such(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes the mean and the deviation of the scores after randomized rounding."""
    scored = ToyProblem.score
    monkeypatch.setattr(
        ToyProblem,
        "score",
        lambda self, model, split: dict.fromkeys(scored(self, model, split), math.inf),
    )
    result, _ = train(kit.make_config("int4", steps=4), kit.folder)
    assert (
        result["state"] == "ok"
        and result["scores"]["packed"] is None
        and result["scores"]["rr_mean"] is None
    )
    assert result["kinds"]["packed"] == "inf" and set(result["kinds"]) >= {"rr_mean", "rr_std"}


def test_a_checkpoint_of_other_code_is_not_resumed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseException):
        pass

    def cut(progress: dict[str, Any]) -> None:
        if progress["step"] > 30:
            raise Cut

    config, attempt = (
        kit.make_config("int4"),
        create_attempt(kit.folder, kit.make_config("int4").key),
    )
    with contextlib.suppress(Cut):
        run_one(Assignment(config, attempt.folder), Execution(checkpoint_s=0), cut)
    assert attempt.checkpoint.exists()
    resumed, folder = train(config, kit.folder, resume=attempt.folder)
    first = [json.loads(line)["seconds"] for line in folder.curve.read_text().splitlines()]
    assert first == sorted(first) and resumed["cost"]["train_s"] >= first[29], (
        "what went before is counted"
    )
    steps: list[int] = []
    monkeypatch.setattr(checkpoint, "describe_maker", lambda run: ["other code"])
    run_one(
        Assignment(config, create_attempt(kit.folder, config.key).folder, resume=attempt.folder),
        report=lambda p: steps.append(p["step"]),
    )
    assert steps[0] == 1


def test_micro_batches_give_the_same_gradient(kit: Kit) -> None:
    whole, _ = train(kit.make_config("int4"), kit.folder)
    parts, _ = train(kit.make_config("int4"), kit.folder, Execution(accumulate=4))
    assert parts["scores"]["packed"] == pytest.approx(whole["scores"]["packed"], rel=1e-3)
    assert parts["train"]["final_loss"] == pytest.approx(whole["train"]["final_loss"], rel=1e-3)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "lr": 0.2},
        {"optimizer": "radam"},
        {"schedule": "wsd"},
        {"precision": "bf16"},
        {"clip": 0.0},
        {"weight_decay": 0.1},
    ],
)
def test_recipes_train(kit: Kit, recipe: dict[str, Any]) -> None:
    config = kit.make_config("int4")
    result, _ = train(
        dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, **recipe)), kit.folder
    )
    assert (
        result["state"] == "ok" and result["scores"]["packed"] < 1.2 and result["audit"]["passed"]
    )


def test_masters_stay_float32_under_bf16(kit: Kit) -> None:
    config = kit.make_config("int8")
    config = dataclasses.replace(
        config, recipe=dataclasses.replace(config.recipe, precision="bf16")
    )
    seen = set()

    run = kit.attach(config)
    run.passes.precision = torch.bfloat16
    relax = run.weights[0].quantizer.relax
    run.weights[0].quantizer.relax = lambda x: (seen.add((x.dtype, relax(x).dtype)), relax(x))[1]  # type: ignore[method-assign]
    run.backward(run.problem.batch(0))
    assert seen == {(torch.float32, torch.float32)}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in run.model.parameters())


@pytest.mark.parametrize("method", ["ste", "fp"])
def test_a_resumed_run_is_equal_bit_for_bit(method: str, tmp_path: Path) -> None:
    """A run that is interrupted at any point and resumed has the bits of an undisturbed run."""
    kit = Kit(method, tmp_path)
    config = kit.make_config("int2", activations="int4")
    whole, attempt = train(config, tmp_path / "whole")

    class Cut(BaseException):
        pass

    for place in (1, 17, 59):

        def cut(beat: dict[str, Any], place: int = place) -> None:
            if beat["step"] > place:
                raise Cut

        first = create_attempt(tmp_path / str(place), config.key)
        with contextlib.suppress(Cut):
            run_one(Assignment(config, first.folder), Execution(checkpoint_s=0), cut)
        assert first.read("result") is None
        result, second = train(config, tmp_path / str(place), resume=first.folder)
        assert (
            result["artefact_sha256"] == whole["artefact_sha256"]
            and result["scores"] == whole["scores"]
        )

        def losses(a: Attempt) -> list[tuple[int, float]]:
            return [
                (line["step"], line["loss"])
                for line in map(json.loads, a.curve.read_text().splitlines())
            ]

        assert losses(second) == losses(attempt)


def test_full_precision_counts_nothing_as_quantized(tmp_path: Path) -> None:
    result, _ = train(Kit("fp", tmp_path).make_config("int4"), tmp_path)
    scores = result["scores"]
    assert scores["packed"] == scores["simulated"] == scores["latent"] and scores["rr_count"] == 0
    assert (
        result["size"]["quantized_parameters"] == 0
        and result["size"]["bits_per_weight"] == 32.0
        and result["sites"] == []
    )


def test_rtn_rounds_the_full_precision_run(tmp_path: Path) -> None:
    kit = Kit("rtn", tmp_path)
    result, _ = kit.run(kit.make_config("int8"))
    fp, _ = kit.run(kit.make_config("int8", method="fp"))
    assert result["scores"]["latent"] == fp["scores"]["packed"]
    assert (
        result["scores"]["packed"] == pytest.approx(fp["scores"]["packed"], rel=1e-2)
        and result["scores"]["packed"] != fp["scores"]["packed"]
    )
    assert "train" not in result


def test_a_run_begins_at_its_start_and_keeps_it_as_reference(tmp_path: Path) -> None:
    _, folder = Kit("fp", tmp_path).run(Kit("fp", tmp_path).make_config("int4"))
    config = dataclasses.replace(
        Kit("ste", tmp_path).make_config("int4", steps=2), start="fp:0.5", base="0" * 32
    )
    seen: list[float] = []

    @dataclass
    class Asks(Method):
        name = "asks"

        def quantizer(self, site: Site) -> Quantizer | None:
            return load_method("ste")().quantizer(site)

        def losses(self, run: TrainingRun, output: Any, batch: Batch) -> dict[str, Tensor]:
            assert run.reference is not None and not any(
                p.requires_grad for p in run.reference.parameters()
            )
            seen.append(float(run.problem.loss(run.reference(batch.inputs), batch)))
            return {"task": run.loss(output, batch)}

    with registered(Asks):
        result, _ = train(
            dataclasses.replace(config, method="asks", method_params={}), tmp_path, base=folder
        )
    assert result["state"] == "ok", result["message"]
    assert len(seen) == 2 and max(seen) < 0.8


# ---- failures ----


@contextlib.contextmanager
def registered(method: type[Method]) -> Any:
    """Register a method of the test as a plugin would."""
    plain = registry.load

    def load(kind: Any, name: str, where: str = "") -> Any:
        return method if (kind, name) == ("methods", method.name) else plain(kind, name, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", load)
        yield


@dataclass
class Breaks(Method):
    """Fails in the middle of training, in the way that the test sets."""

    name = "breaks"
    how: ClassVar[Callable[[TrainingRun], None]]

    def quantizer(self, site: Site) -> Quantizer | None:
        return load_method("ste")().quantizer(site)

    def after_backward(self, run: TrainingRun) -> None:
        if run.step == 20:
            type(self).how(run)


def poison(run: TrainingRun) -> None:
    for p in run.model.parameters():
        p.data.fill_(math.nan)


def crash(run: TrainingRun) -> None:
    raise ValueError("two\nlines")


def out_of_memory(run: TrainingRun) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(("how", "reason", "message"), [(poison, "diverged", "the loss is nan at step 2[12] of 60"), (crash, "plugin", "ValueError: two$"),
                                                        (out_of_memory, "oom", "2.00 GiB")])  # fmt: skip
def test_failures_are_rows_with_a_reason(
    how: Callable[[TrainingRun], None], reason: str, message: str, tmp_path: Path
) -> None:
    Breaks.how = how
    config = dataclasses.replace(
        Kit("ste", tmp_path).make_config("int4"), method="breaks", method_params={}
    )
    with registered(Breaks):
        result, attempt = train(config, tmp_path)
    assert (result["state"], result["reason"]) == ("failed", reason)
    assert re.search(message, result["message"])
    assert attempt.read("result") == result and "scores" not in result
    lines = [json.loads(line) for line in attempt.curve.read_text().splitlines()]
    assert len(lines) >= 20 and (reason != "diverged" or lines[-1]["loss"] is None)


def test_failing_data_is_attributed_to_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch = ToyProblem.batch

    def fail_at_seven(self: ToyProblem, index: int) -> Any:
        if index == 7:
            raise KeyError(index)
        return make_batch(self, index)

    monkeypatch.setattr(ToyProblem, "batch", fail_at_seven)
    result, _ = train(Kit("ste", tmp_path).make_config("int4"), tmp_path)
    assert (result["state"], result["reason"], result["message"]) == (
        "failed",
        "data",
        "KeyError: 7",
    )


def test_a_failing_evaluation_has_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ToyProblem,
        "score",
        lambda self, model, split: {"loss": 1.0} if split == "val" else {}["loss"],
    )
    result, _ = train(Kit("ste", tmp_path).make_config("int4"), tmp_path)
    assert (result["state"], result["reason"]) == ("failed", "eval")


def test_a_full_disk_is_not_a_failure_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Breaks.how = full
    with registered(Breaks), pytest.raises(OSError, match="No space"):
        train(
            dataclasses.replace(
                Kit("ste", tmp_path).make_config("int4"), method="breaks", method_params={}
            ),
            tmp_path,
        )


def test_another_version_is_refused(tmp_path: Path) -> None:
    result, _ = train(
        dataclasses.replace(Kit("ste", tmp_path).make_config("int4"), method_version=99), tmp_path
    )
    assert (
        result["reason"] == "plugin" and "version 1 here, the run asks for 99" in result["message"]
    )


def test_numbers_that_are_not_finite_are_null_with_their_kind() -> None:
    assert replace_non_finite({"a": math.nan, "b": -math.inf, "c": 1.0}) == (
        {"a": None, "b": None, "c": 1.0},
        {"a": "nan", "b": "-inf"},
    )


# ---- schedules ----


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedules_rise_and_fall(name: str) -> None:
    def at(progress: float) -> float:
        return schedules.learning_rate_factor(name, progress, warmup=0.1, decay=0.2, floor=0.05)

    assert at(0.05) == pytest.approx(0.5) and at(0.1) == pytest.approx(1.0)
    assert at(1.0) == pytest.approx(1.0 if name == "constant" else 0.05)
    points = [at(0.1 + 0.9 * i / 100) for i in range(101)]
    assert points == sorted(points, reverse=True)
    assert name != "wsd" or at(0.79) == 1.0 > at(0.81)
    assert schedules.learning_rate_factor(name, 0.0, 0.0, 0.2, 0.0) == 1.0


def test_the_toy_is_a_task() -> None:
    task = Toy()
    assert (
        task.key_options() == {}
        and task.check() is None
        and task.recipe("xs").find_problem() is None
    )
