"""What every method must satisfy, whoever wrote it.

`qbench check NAME` and the project's own tests call the same functions. Each check trains the
method on a toy task, through the same loop, the same artefact and the same audit as any run, and
looks at what came out. No check knows a method by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from qbench.checks.method_kit import Finding, Kit
from qbench.checks.toy_task import STEPS
from qbench.engines.dispatch import run_one
from qbench.errors import QbenchError, UsageError
from qbench.execution import group_policy
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.execute import execute_group
from qbench.execution.prepare import prepare_run
from qbench.execution.workload import refusal_of
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.runs.config import Quantization, RunConfig
from qbench.training.failures import first_line
from qbench.training.optimizer import parameter_groups
from qbench.training.setup import open_problem
from qbench.util.text import format_count

COMPILED_FORMATS = ("int4", "fp4", "int2/block-32", "int4 a:int4", "fp32")
COMPARED_STEPS = 4
LEARNED_LOSS = 1.0
"""What the loss on the toy task must fall below."""

Check = Callable[[Kit], Iterator[Finding]]


def check_method(name: str, quick: bool = False) -> Iterator[Finding]:
    """Run every check on a registered method.

    An exception in the method's code is a failed check, and the other checks go on.
    """
    registry.load("methods", name)
    with tempfile.TemporaryDirectory(prefix="qbench-check-") as folder:
        kit = Kit(name, Path(folder), quick)
        for check in CHECKS:
            try:
                yield from check(kit)
            except Exception as error:  # noqa: BLE001 - whatever the method raises is a finding
                yield Finding(check.__name__.removeprefix("check_"), "", False, first_line(error))


def check_fields(kit: Kit) -> Iterator[Finding]:
    """Check that hyper-parameters survive JSON, and that an unknown one is refused."""
    method = kit.build_method()
    again = registry.build("methods", kit.method, json.loads(json.dumps(method.params)))
    same = again == method
    yield Finding("fields", "JSON", same, "" if same else f"{again} is not {method}")
    try:
        registry.build("methods", kit.method, {"no_such_field": 1})
        yield Finding("fields", "unknown", False, "an unknown field was accepted")
    except UsageError:
        yield Finding("fields", "unknown", True)


def check_groups(kit: Kit) -> Iterator[Finding]:
    """Check that every parameter is in exactly one parameter group."""
    run = kit.attach(kit.usual_config())
    try:
        groups = parameter_groups(run)
    except QbenchError as error:
        yield Finding("groups", "", False, str(error))
        return
    listed = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    modules = (run.model, *run.quantizers())
    expected = {id(p) for module in modules for p in module.parameters()}
    passed = len(listed) == len(set(listed)) and set(listed) == expected
    detail = f"{len(listed)} listed, {len(set(listed))} different, {len(expected)} expected"
    yield Finding("groups", "", passed, detail)


def check_gradients(kit: Kit) -> Iterator[Finding]:
    """Check that the gradient of the loss reaches every weight that is quantized."""
    run = kit.attach(kit.usual_config())
    if run.method.post_training is not None:
        return
    run.network.calibrate_inputs(run.probe_batches(2))
    run.apply_schedules()
    run.method.step(run, run.problem.batch(0))
    for name, layer in run.problem.layers().items():
        grad = layer.weight.grad
        passed = grad is not None and bool(torch.isfinite(grad).all() and grad.abs().sum() > 0)
        detail = "no gradient" if grad is None else "zero or not finite"
        yield Finding("gradients", name, passed, "" if passed else detail)


def check_runs(kit: Kit) -> Iterator[Finding]:
    """Check that the method trains in every format that it supports, and passes the audit."""
    for config in kit.supported_configs():
        result, _ = kit.run(config)
        checks = result.get("audit", {}).get("checks", [])
        failed = [f"{check['name']}: {check['detail']}" for check in checks if not check["passed"]]
        passed = result["state"] == "ok" and not failed
        yield Finding("audit", config.format_label, passed, result["message"] or "; ".join(failed))


def check_learns(kit: Kit) -> Iterator[Finding]:
    """Check that the toy task is learned, and that every term of the loss is finite."""
    config = kit.usual_config()
    result, folder = kit.run(config)
    if result["state"] != "ok":
        yield Finding("learns", config.format_label, False, result["message"])
        return
    score = result["scores"]["packed"]
    detail = (
        f"loss {score} after training; guessing has {math.log(4):.3f}, "
        f"and less than {LEARNED_LOSS} is asked for"
    )
    passed = score is not None and score < LEARNED_LOSS
    yield Finding("learns", config.format_label, passed, detail)
    curve = Attempt(folder).curve
    lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
    holes = [line["step"] for line in lines if None in line["terms"].values()]
    detail = (
        f"a term is not finite at step {holes[0]}" if holes else format_count(len(lines), "point")
    )
    yield Finding("terms", config.format_label, not holes, detail)


def check_repeats(kit: Kit) -> Iterator[Finding]:
    """Check that the same seed twice is the same run, bit for bit."""
    config = kit.usual_config()
    first, _ = kit.run(config)
    if first["state"] != "ok":
        yield _not_run("repeats", config, first)
        return
    second, _ = kit.run(config, again=True)
    yield _compare("repeats", config, first, second, "two runs of one seed differ")


def check_resumes(kit: Kit) -> Iterator[Finding]:
    """Check that a run that is cut and resumed has the bits of one that is not."""
    config = kit.usual_config()
    whole, _ = kit.run(config)
    if kit.build_method().post_training is not None:
        return
    if whole["state"] != "ok":
        yield _not_run("resumes", config, whole)
        return

    def cut_half_way(progress: dict[str, Any]) -> None:
        if progress["step"] > config.recipe.steps // 2:
            raise _Cut

    folder = Path(tempfile.mkdtemp(dir=kit.folder)) / "1"
    with contextlib.suppress(_Cut):
        run_one(Assignment(config, folder), Execution(checkpoint_s=0, compile=False), cut_half_way)
    if not Attempt(folder).checkpoint.exists():
        yield Finding("resumes", config.format_label, False, "no checkpoint was saved")
        return
    resumed, _ = kit.run(config, resume=folder)
    yield _compare("resumes", config, whole, resumed, "the resumed run differs from the other one")


class _Cut(BaseException):
    """Ends a run from outside, as a kill would."""


def check_stacked(kit: Kit) -> Iterator[Finding]:
    """Check that three stacked runs have the artefacts that each has alone, bit for bit.

    They differ in every number in which stacked runs may differ. A method may say, by `batched`,
    that its runs train alone.
    """
    config = kit.usual_config()
    if (sentence := group_policy.why_alone(config)) is not None:
        yield Finding("stacked", config.format_label, True, sentence)
        return
    configs = [vary_numbers(config, place) for place in range(3)]
    folders = [Path(tempfile.mkdtemp(dir=kit.folder)) / "1" for _ in configs]
    assignments = [Assignment(c, f) for c, f in zip(configs, folders, strict=True)]
    results = execute_group(assignments, Execution(compile=False), [lambda _: None] * 3)
    for one, stacked in zip(configs, results, strict=True):
        alone, _ = kit.run(one)
        same = alone.get("artefact_sha256") == stacked.get("artefact_sha256")
        passed = same and stacked.get("cost", {}).get("company", 1) == len(configs)
        detail = "" if passed else "the three were trained one by one after all"
        if stacked["message"]:
            detail += f": {stacked['message']}"
        if not same:
            detail = "stacked with others it differs"
        yield Finding("stacked", f"seed {one.seed}", passed, detail)


def vary_numbers(config: RunConfig, place: int) -> RunConfig:
    """Return a run that may be stacked with `config` and differs in every number that may differ.

    These are the seed, the learning rate, the width of the integers, and the method's
    floating-point hyper-parameters, as far as the method admits the other values.
    """
    factor = (1.0, 0.5, 0.75)[place]
    recipe = dataclasses.replace(config.recipe, lr=config.recipe.lr * factor)
    varied = dataclasses.replace(config, seed=place, recipe=recipe)
    for name, value in config.method_params.items():
        if not isinstance(value, float):
            continue
        params = {**varied.method_params, name: value * factor}
        candidate = dataclasses.replace(varied, method_params=params)
        with contextlib.suppress(UsageError):
            registry.build("methods", config.method, params)
            if group_policy.why_alone(candidate) is None:
                varied = candidate
    if config.weights and config.weights.format in group_policy.INTEGERS:
        width = Quantization(group_policy.INTEGERS[2 - place], config.weights.granularity)
        other = dataclasses.replace(varied, weights=width)
        if refusal_of(other) is None:
            varied = other
    return varied


def check_recorded(kit: Kit) -> Iterator[Finding]:
    """Check that steps that are recorded and repeated have the bits of steps that are taken.

    A method may say, by `batched`, that its steps cannot be recorded.
    """
    method = kit.build_method()
    if method.post_training is not None:
        return
    usual = kit.usual_config()
    if not method.batched:
        yield Finding("recorded", usual.format_label, True, f"{kit.method} is not batched")
        return
    taken_on_cpu = Execution(device="cpu", compile=False)
    recorded_on_cpu = Execution(device="cpu", compile=False, graphs=True)
    configs = (usual, kit.make_config("int4", activations="int4"))
    for config in {config.key: config for config in configs}.values():
        if refusal_of(config) is not None:
            continue
        taken, _ = kit.run(config, taken_on_cpu, again=torch.cuda.is_available())
        repeated, folder = kit.run(config, recorded_on_cpu, again=True)
        if not (Attempt(folder).read("env") or {}).get("recorded"):
            detail = "a step could not be recorded; the run's log says why"
            yield Finding("recorded", config.format_label, False, detail)
            continue
        detail = (
            "repeated steps go on with a number of the step that was recorded: "
            "return what changes from schedules, or keep it in run.state"
        )
        yield _compare("recorded", config, taken, repeated, repeated["message"] or detail)


def check_budget(kit: Kit) -> Iterator[Finding]:
    """Check that learning rates are scaled by progress, so that half the budget has the same
    shape.
    """
    config = kit.usual_config()
    if kit.build_method().post_training is not None:
        return
    whole, _ = kit.run(config)
    if whole["state"] != "ok":
        yield _not_run("budget", config, whole)
        return
    shapes = []
    for steps in (STEPS, STEPS // 2):
        recipe = dataclasses.replace(config.recipe, steps=steps)
        shapes.append(_rate_shapes(kit, dataclasses.replace(config, recipe=recipe)))
    names = [
        name
        for name in sorted({*shapes[0], *shapes[1]})
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    detail = f"the rate of {', '.join(names)} depends on the number of steps, not on progress"
    yield Finding("budget", "", not names, detail if names else "")


def _rate_shapes(kit: Kit, config: RunConfig) -> dict[str, list[float]]:
    """Return how each group's learning rate is scaled at ten times, as shares of the largest."""
    cpu = torch.device("cpu")
    _, problem = open_problem(config, cpu)
    run = prepare_run(Assignment(config, kit.folder), Execution(), problem, cpu)
    scales: dict[str, list[float]] = {}
    for tenth in range(10):
        run.begin_step(config.recipe.steps * tenth // 10)
        run.apply_schedules()
        for group in run.optimizer.param_groups if run.optimizer else ():
            scale = run.scheduled.get(group["name"], [1.0])[0]
            scales.setdefault(group["name"], []).append(scale)
    return {
        name: [round(value / (max(map(abs, values)) or 1.0), 9) for value in values]
        for name, values in scales.items()
    }


def check_compiles(kit: Kit) -> Iterator[Finding]:
    """Check that compiled training takes the steps of eager training, and quantizes to the end.

    Only the first steps are compared: a compiler does not keep the last bit, and training magnifies
    it. The audit looks at the compiled network too.
    """
    if kit.quick or kit.build_method().post_training is not None:
        return
    for config in kit.supported_configs():
        if config.format_label not in COMPILED_FORMATS:
            continue
        torch.compiler.reset()
        eager, eager_folder = kit.run(config)
        compiled, compiled_folder = kit.run(config, Execution(compile=True), again=True)
        if compiled["state"] != "ok" or eager["state"] != "ok":
            message = str(compiled["message"] or eager["message"])
            yield Finding("compiles", config.format_label, False, message)
            continue
        losses = zip(first_losses(eager_folder), first_losses(compiled_folder), strict=True)
        distance = max(abs(a - b) / abs(a) for a, b in losses)
        audit = "passed" if compiled["audit"]["passed"] else "failed"
        detail = (
            f"losses of the first {format_count(COMPARED_STEPS, 'step')} differ "
            f"by {distance:.1e} of themselves, audit {audit}"
        )
        passed = distance < 1e-3 and audit == "passed"
        yield Finding("compiles", config.format_label, passed, detail)


def first_losses(folder: Path, steps: int = COMPARED_STEPS) -> list[float]:
    """Return the losses of a run's first steps, from its curve."""
    lines = Attempt(folder).curve.read_text().splitlines()[:steps]
    return [json.loads(line)["loss"] for line in lines]


def _compare(
    check: str, config: RunConfig, one: dict[str, Any], other: dict[str, Any], detail: str
) -> Finding:
    """Return a finding that passes if two runs have the same artefact."""
    ok = one["state"] == other["state"] == "ok"
    same = ok and one["artefact_sha256"] == other["artefact_sha256"]
    return Finding(check, config.format_label, same, "" if same else detail)


def _not_run(check: str, config: RunConfig, result: dict[str, Any]) -> Finding:
    """Return a failed finding for a check that could not compare runs, because one has failed."""
    detail = f"not run, for the training failed: {result['message'] or result['reason']}"
    return Finding(check, config.format_label, False, detail)


CHECKS: tuple[Check, ...] = (
    check_fields,
    check_groups,
    check_gradients,
    check_runs,
    check_learns,
    check_repeats,
    check_resumes,
    check_stacked,
    check_recorded,
    check_budget,
    check_compiles,
)
