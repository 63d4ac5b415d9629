"""What every method must satisfy, whoever wrote it. `qbench check NAME` and our own tests call the same functions.

Each check trains the method on a toy task (a two-layer body on a made-up classification), through the same loop, the same
artefact and the same audit as any run, and looks at what came out. None of them knows a method by name.
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

from qbench.api.method import Method
from qbench.checks.method_kit import Finding, Kit
from qbench.checks.toy_task import STEPS
from qbench.engines.dispatch import run_one
from qbench.errors import QbenchError, UsageError
from qbench.execution import execute, group_policy, workload
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.prepare import prepare
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.runs.config import Quantization, RunConfig
from qbench.sweepfile.tuning_space import MOST_KNOBS, RECIPE
from qbench.training.failures import first_line
from qbench.training.optimizer import parameter_groups
from qbench.training.setup import open_problem
from qbench.util.text import count

COMPILED, COMPARED_STEPS = ("int4", "fp4", "int2/block-32", "int4 a:int4", "fp32"), 4
"""What is trained compiled, too."""
LEARNED = 1.0


Check = Callable[[Kit], Iterator[Finding]]


def check_fields(kit: Kit) -> Iterator[Finding]:
    """Hyper-parameters survive JSON, one that does not exist is refused, and those that a board may tune are there."""
    instance: Method = registry.build("methods", kit.method, {})
    again = registry.build("methods", kit.method, json.loads(json.dumps(instance.params)))
    yield Finding(
        "fields",
        "JSON",
        again == instance,
        "" if again == instance else f"{again} is not {instance}",
    )
    try:
        registry.build("methods", kit.method, {"no_such_field": 1})
        yield Finding("fields", "unknown", False, "an unknown field was accepted")
    except UsageError:
        yield Finding("fields", "unknown", True)
    strange = [name for name in instance.knobs if name not in instance.params or name in RECIPE]
    fine = not strange and len(instance.knobs) <= MOST_KNOBS
    what = (
        f"{', '.join(strange)}: no fields, or words of the recipe"
        if strange
        else f"{len(instance.knobs)}, of {MOST_KNOBS} at most"
    )
    yield Finding("fields", "knobs", fine, "" if fine else what)


def check_runs(kit: Kit) -> Iterator[Finding]:
    """Trains in every supported format, and passes the audit: level counts, decoded = snapped, coverage, bits, active."""
    for config in kit.supported():
        result, _ = kit.run(config)
        failed = [
            f"{c['name']}: {c['detail']}"
            for c in result.get("audit", {}).get("checks", [])
            if not c["passed"]
        ]
        fine = result["state"] == "ok" and not failed
        yield Finding("audit", config.format_label, fine, result["message"] or "; ".join(failed))


def check_learns(kit: Kit) -> Iterator[Finding]:
    """The toy task is learned, and every term of the loss is finite."""
    config = kit.one()
    result, folder = kit.run(config)
    if result["state"] != "ok":
        yield Finding("learns", config.format_label, False, result["message"])
        return
    score = result["scores"]["packed"]
    fine = score is not None and score < LEARNED
    yield Finding(
        "learns",
        config.format_label,
        fine,
        f"loss {score} after training; {math.log(4):.3f} is guessing, {LEARNED} is asked for",
    )
    lines = (
        [json.loads(line) for line in Attempt(folder).curve.read_text().splitlines()]
        if Attempt(folder).curve.exists()
        else []
    )
    holes = [line["step"] for line in lines if any(v is None for v in line["terms"].values())]
    yield Finding(
        "terms",
        config.format_label,
        not holes,
        f"a term is not finite at step {holes[0]}" if holes else count(len(lines), "point"),
    )


def check_groups(kit: Kit) -> Iterator[Finding]:
    """Every parameter is in exactly one group."""
    run = kit.attached(kit.one())
    try:
        groups = parameter_groups(run)
    except QbenchError as error:
        yield Finding("groups", "", False, str(error))
        return
    listed = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    wanted = {id(p) for p in run.model.parameters()} | {
        id(p) for q in run.quantizers() for p in q.parameters()
    }
    fine = len(listed) == len(set(listed)) and set(listed) == wanted
    yield Finding(
        "groups",
        "",
        fine,
        f"{len(listed)} listed, {len(set(listed))} different, {len(wanted)} wanted",
    )


def check_gradients(kit: Kit) -> Iterator[Finding]:
    """The gradient of the loss reaches every weight that is quantized."""
    config = kit.one()
    run = kit.attached(config)
    if run.method.after is not None:
        return
    run.method.prepare(run, run.probe_batches(2))
    run.method.step(run, run.problem.batch(0))
    for name, layer in run.problem.layers().items():
        grad = layer.weight.grad
        fine = grad is not None and bool(torch.isfinite(grad).all()) and bool(grad.abs().sum() > 0)
        yield Finding(
            "gradients",
            name,
            fine,
            "" if fine else "no gradient" if grad is None else "zero or not finite",
        )


def check_repeats(kit: Kit) -> Iterator[Finding]:
    """The same seed twice is the same run, bit for bit."""
    config = kit.one()
    if (first := kit.run(config)[0])["state"] != "ok":
        yield not_run("repeats", config, first)
        return
    second, _ = kit.run(config, again=True)
    fine = first.get("artefact_sha256") == second.get("artefact_sha256")
    yield Finding(
        "repeats", config.format_label, fine, "" if fine else "two runs of one seed differ"
    )


def not_run(check: str, config: RunConfig, result: dict[str, Any]) -> Finding:
    """What compares runs has nothing to say of a run that failed, and that is no pass."""
    return Finding(
        check,
        config.format_label,
        False,
        f"not run, for the training failed: {result['message'] or result['reason']}",
    )


class _Cut(BaseException):
    """Ends a run from outside, as a kill would."""


def check_resumes(kit: Kit) -> Iterator[Finding]:
    """Train, save, rebuild, load and train on: the same bits as without the break."""
    config = kit.one()
    whole, _ = kit.run(config)
    if registry.build("methods", kit.method, {}).after:
        return
    if whole["state"] != "ok":
        yield not_run("resumes", config, whole)
        return

    def cut(progress: dict[str, Any]) -> None:
        if progress["step"] > config.recipe.steps // 2:
            raise _Cut

    folder = Path(tempfile.mkdtemp(dir=kit.folder)) / "1"
    with contextlib.suppress(_Cut):
        run_one(Assignment(config, folder), Execution(checkpoint_s=0, compile=False), cut)
    fine = Attempt(folder).checkpoint.exists()
    if fine:
        result, _ = kit.run(config, resume=folder)
        fine = whole.get("artefact_sha256") == result.get("artefact_sha256")
    yield Finding(
        "resumes",
        config.format_label,
        fine,
        "" if fine else "the resumed run differs from the undisturbed one",
    )


def check_beside(kit: Kit) -> Iterator[Finding]:
    """Three runs in one pass end with the artefacts that each has alone, bit for bit, whatever of its numbers the method lets them differ in; a
    method may say that its runs train alone."""
    config = kit.one()
    if (words := group_policy.alone(config)) is not None:
        yield Finding("beside", config.format_label, True, words)
    else:
        yield from three_beside(kit, "beside", Execution(compile=False))


def check_alike(kit: Kit) -> Iterator[Finding]:
    """The same of compiled runs, for a method that says so."""
    if (
        not kit.quick
        and registry.load("methods", kit.method).compiled_alike
        and group_policy.alone(kit.one()) is None
    ):
        torch.compiler.reset()
        yield from three_beside(kit, "alike", Execution(compile=True))


def three_beside(kit: Kit, check: str, execution: Execution) -> Iterator[Finding]:
    config = kit.one()
    three = [differing(config, place) for place in range(3)]
    folders = [Path(tempfile.mkdtemp(dir=kit.folder)) / "1" for _ in three]
    found = execute.run_group(
        [Assignment(c, f) for c, f in zip(three, folders, strict=True)],
        execution,
        [lambda _: None] * len(three),
    )
    for one, together in zip(three, found, strict=True):
        single, _ = kit.run(one, execution, again=bool(execution.compile))
        same = (
            single.get("artefact_sha256") == together.get("artefact_sha256")
            and single["state"] == together["state"]
        )
        fine = same and together.get("cost", {}).get("company", 1) == len(three)
        apart = (
            f"the three fell apart: {together['message']}"
            if together["message"]
            else "the three fell apart"
        )
        yield Finding(
            check,
            f"seed {one.seed}",
            fine,
            "" if fine else apart if same else "trained beside others it differs",
        )


def differing(config: RunConfig, place: int) -> RunConfig:
    """A run of the same kind in other numbers: its seed, its rate, the width of its integers, and the method's own where it admits them."""
    times, varies = (1.0, 0.5, 0.75)[place], registry.load("methods", config.method).varies
    recipe = dataclasses.replace(config.recipe, lr=config.recipe.lr * times)
    found = dataclasses.replace(config, seed=place, recipe=recipe)
    numbers = {
        name: value * times
        for name, value in config.method_params.items()
        if name in varies and isinstance(value, float)
    }
    width = group_policy.WIDTHS[2 - place] if "format" in varies else None
    with contextlib.suppress(UsageError):
        registry.build("methods", config.method, {**config.method_params, **numbers})
        found = dataclasses.replace(found, method_params={**config.method_params, **numbers})
    other = dataclasses.replace(found, weights=Quantization(width, "channel")) if width else found
    return other if workload.refusal(other) is None else found


def check_recorded(kit: Kit) -> Iterator[Finding]:
    """Steps that are recorded once and repeated end with the artefact of steps that are taken, bit for bit; a method may say that its own cannot be."""
    config = kit.one()
    method = registry.build("methods", kit.method, config.method_params)
    if method.after is not None:
        return
    if (words := method.unrecorded()) is not None:
        yield Finding("recorded", config.format_label, True, words)
        return
    for one in {c.key: c for c in (config, kit.config("int4", activations="int4"))}.values():
        if workload.refusal(one) is not None:
            continue
        taken, _ = kit.run(
            one, Execution(device="cpu", compile=False), again=torch.cuda.is_available()
        )
        repeated, _ = kit.run(one, Execution(device="cpu", compile=False, graphs=True), again=True)
        fine = (
            taken["state"] == repeated["state"] == "ok"
            and taken["artefact_sha256"] == repeated["artefact_sha256"]
        )
        why = (
            repeated["message"]
            or "repeated it goes on with numbers of the step that was recorded: write what changes into tensors"
        )
        yield Finding("recorded", one.format_label, fine, "" if fine else why)


def check_budget(kit: Kit) -> Iterator[Finding]:
    """A curve that the method keeps in `lr_scale` has the same shape at half the budget, whatever its height."""
    config = kit.one()
    if registry.build("methods", kit.method, {}).after:
        return
    if (whole := kit.run(config)[0])["state"] != "ok":
        yield not_run("budget", config, whole)
        return
    long, short = (
        lr_scales(
            kit, dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, steps=n))
        )
        for n in (STEPS, STEPS // 2)
    )
    names = sorted({name for name in {*long, *short} if long.get(name) != short.get(name)})
    fine = not names
    yield Finding(
        "budget",
        "",
        fine,
        ""
        if fine
        else f"lr_scale of {', '.join(names)} depends on the number of steps, not on progress",
    )


def lr_scales(kit: Kit, config: RunConfig) -> dict[str, list[float]]:
    """Each group's `lr_scale` at ten moments of a run, as shares of its largest."""
    assignment = Assignment(config, kit.folder)
    run = prepare(
        assignment, Execution(), open_problem(config, torch.device("cpu"))[1], torch.device("cpu")
    )
    track: dict[str, list[float]] = {}
    for moment in range(10):
        run.begin(config.recipe.steps * moment // 10)
        run.method.before_step(run, run.problem.batch(run.step))
        for group in run.optimizer.param_groups if run.optimizer else ():
            scale = run.lr_scale.get(group["name"], 1.0)
            track.setdefault(group["name"], []).append(
                scale[0] if isinstance(scale, list) else scale
            )
    return {
        name: [round(value / (max(map(abs, values)) or 1.0), 9) for value in values]
        for name, values in track.items()
    }


def check_compiles(kit: Kit) -> Iterator[Finding]:
    """Compiled training takes the steps of eager training, and still quantizes at the end (the audit looks at the compiled network too).

    Only the first steps are compared: a compiler does not keep the last bit, and training magnifies it.
    """
    if kit.quick or registry.build("methods", kit.method, {}).after:
        return
    for config in kit.supported():
        if config.format_label not in COMPILED:
            continue
        torch.compiler.reset()
        (eager, one), (compiled, other) = (
            kit.run(config),
            kit.run(config, Execution(compile=True), again=True),
        )
        if compiled["state"] != "ok" or eager["state"] != "ok":
            yield Finding(
                "compiles", config.format_label, False, str(compiled["message"] or eager["message"])
            )
            continue
        pairs = list(zip(first_losses(one), first_losses(other), strict=True))
        apart = max(abs(a - b) / abs(a) for a, b in pairs)
        audit = "passed" if compiled["audit"]["passed"] else "failed"
        detail = f"losses of the first {count(len(pairs), 'step')} differ by {apart:.1e} of themselves, audit {audit}"
        yield Finding("compiles", config.format_label, apart < 1e-3 and audit == "passed", detail)


def first_losses(folder: Path, steps: int = COMPARED_STEPS) -> list[float]:
    return [
        json.loads(line)["loss"] for line in Attempt(folder).curve.read_text().splitlines()[:steps]
    ]


CHECKS: tuple[Check, ...] = (
    check_fields, check_groups, check_gradients, check_runs, check_learns, check_repeats, check_resumes, check_beside, check_recorded,
    check_budget, check_compiles, check_alike,
)  # fmt: skip


def check_method(name: str, quick: bool = False) -> Iterator[Finding]:
    """Every check on a registered method. An exception in the method's code is a failed check, not the end."""
    registry.load("methods", name)
    with tempfile.TemporaryDirectory(prefix="qbench-check-") as folder:
        kit = Kit(name, Path(folder), quick)
        for check in CHECKS:
            try:
                yield from check(kit)
            except Exception as error:  # noqa: BLE001 - a finding, whatever it is
                yield Finding(check.__name__.removeprefix("check_"), "", False, first_line(error))
