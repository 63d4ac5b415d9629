"""The parts `groups` and `company` of `make gpu`, which measure stacked runs.

groups      Steps of single runs per second against the number of stacked runs, compared with a
            plain loop over single eager runs.
company     Whether a stacked run reaches the losses and the score that it reaches alone.

In `groups`, stacked runs are compiled, as in a sweep on a GPU, unless `--eager` is given. A single
run and the largest group are also measured with recorded steps, as with `--graphs` in a sweep. The
loop is eager, because the targets are defined against an eager loop. The bars in the report draw
the curve of throughput.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from qbench.execution.assignment import Assignment
    from qbench.runs.config import RunConfig
    from qbench.training.run import TrainingRun
    from tests.bench.gpu import Bench, Row


BEDS: tuple[tuple[str, str, str, tuple[int, ...], float], ...] = (
    ("digits MLP", "digits", "xs", (16, 64, 256), 50.0),
    ("linreg, d = 12 000", "linreg", "l", (16, 64, 256), 50.0),
    ("language model, 1M", "text", "1m", (4, 16), 8.0),
)
"""Title, task, size, numbers of stacked runs, and the target for the best of them.

The target is a multiple of the throughput of the loop.
"""
RATES = (0.001, 0.003)
BAR = 24


def groups(bench: Bench) -> Iterator[Row]:
    from qbench.errors import UsageError
    from qbench.execution.assignment import Execution
    from qbench.execution.compile import is_recorded
    from tests.bench.gpu import attempted

    for title, task, size, counts, target in bench.beds:
        try:
            first = config(task, size, 0, RATES[0])
        except UsageError as error:
            yield {"bed": title, "left out": str(error)}
            continue
        alone: Row = {"bed": title, "runs": 1} | attempted(
            partial(measured, bench, [first], compiled=False)
        )
        rows = [alone]
        largest: list[RunConfig] = []
        for count in counts:
            row: Row = {"bed": title, "runs": count}
            if bench.late("groups"):
                rows.append(row | {"failed": "no time left"})
                continue
            largest = [
                config(task, size, place % (count // 2), RATES[2 * place // count])
                for place in range(count)
            ]
            rows.append(row | attempted(partial(measured, bench, largest, bench.compile)))
        recordable = is_recorded(Execution(compile=bench.compile, graphs=True), first, bench.device)
        for group in ([first], largest) if recordable else ():
            if group and not bench.late("groups"):
                row = {"bed": f"{title}, recorded", "runs": len(group)}
                timed = partial(measured, bench, group, bench.compile, graphs=True)
                rows.append(row | attempted(timed))
        yield from drawn(rows, target)


def company(bench: Bench) -> Iterator[Row]:
    """Compare three runs of each method that trains on the toy task, and yield a row per method.

    They are trained alone, stacked, and stacked with recorded steps. All are eager, because the
    part `compiled` measures the effect of compiling.
    """
    from qbench.checks.method_contract import COMPARED_STEPS, first_losses, vary_numbers
    from qbench.checks.method_kit import Kit
    from qbench.engines.dispatch import run_one
    from qbench.execution import group_policy
    from qbench.execution.assignment import Assignment, Execution
    from qbench.execution.execute import execute_group
    from qbench.execution.stacking import GPU_TOLERANCE
    from qbench.plugins import registry

    execution = Execution(device=str(bench.device), compile=False)
    for name in bench.methods:
        row: Row = {"method": name}
        if registry.load("methods", name).post_training:
            continue
        if bench.late("company"):
            yield row | {"failed": "no time left"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            configs = [
                vary_numbers(Kit(name, Path(folder)).usual_config(), place) for place in range(3)
            ]
            if why := group_policy.why_alone(configs[0]):
                yield row | {"left out": why}
                continue
            ways = {
                way: [
                    Assignment(c, Path(folder) / way / str(n) / "1") for n, c in enumerate(configs)
                ]
                for way in ("alone", "in company", "recorded")
            }
            silent = [lambda _: None] * len(configs)
            made = {
                "alone": [run_one(assignment, execution) for assignment in ways["alone"]],
                "in company": execute_group(ways["in company"], execution, silent),
                "recorded": execute_group(
                    ways["recorded"], replace(execution, graphs=True), silent
                ),
            }
            if wrong := [
                result["message"]
                for results in made.values()
                for result in results
                if result["state"] != "ok"
            ]:
                yield row | {"failed": str(wrong[0])}
                continue
            if not all(said(assignment) for assignment in ways["recorded"]):
                yield row | {
                    "failed": "its steps could not be recorded; why not is in what was printed"
                }
                continue
            losses = {
                way: [first_losses(assignment.folder, 2 * COMPARED_STEPS) for assignment in doing]
                for way, doing in ways.items()
            }
        few = {way: [own[:COMPARED_STEPS] for own in each] for way, each in losses.items()}
        apart, recorded = (
            far(few["alone"], few["in company"]),
            far(losses["in company"], losses["recorded"]),
        )
        row |= {
            "runs": made["in company"][0]["cost"].get("company", 1),
            "apart": apart,
            "recorded apart": recorded,
            "audit": all(
                r["audit"]["passed"] for way in ("in company", "recorded") for r in made[way]
            ),
            **{way: [r["scores"]["packed"] for r in results] for way, results in made.items()},
        }
        yield (
            row
            if max(apart, recorded) <= GPU_TOLERANCE
            else row | {"failed": f"apart by more than {GPU_TOLERANCE:g}"}
        )


def said(assignment: Assignment) -> bool:
    """Return whether a run's environment record says that its steps were recorded.

    Stacked runs whose steps cannot be recorded are trained without recording.
    """
    from qbench.runs.attempts import Attempt

    return bool((Attempt(assignment.folder).read("env") or {}).get("recorded"))


def far(losses: list[list[float]], others: list[list[float]]) -> float:
    """Return the largest difference between two losses, relative to the first of them."""
    pairs = [
        pair
        for one, other in zip(losses, others, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def drawn(rows: list[Row], target: float) -> list[Row]:
    """Add to each row its multiple of the loop's throughput, and a bar, and return the rows.

    The target is added to the best of the rows whose steps are not recorded.
    """
    alone = rows[0].get("run_steps_per_s")
    best = max((row.get("run_steps_per_s", 0.0) for row in rows), default=0.0)
    for row in rows:
        if alone and "run_steps_per_s" in row:
            row["times"] = row["run_steps_per_s"] / alone
            row["curve"] = "█" * max(1, round(BAR * row["run_steps_per_s"] / best))
    swept = [row for row in rows if "times" in row and row["bed"] == rows[0]["bed"]]
    if swept:
        max(swept, key=lambda row: row["times"])["target"] = target
    return rows


def config(task: str, size: str, seed: int, lr: float) -> RunConfig:
    from qbench.plugins import registry
    from qbench.runs.config import Quantization, RunConfig

    t, m = registry.build("tasks", task, {}), registry.build("methods", "ste", {})
    recipe = replace(t.recipe(size), steps=1_000_003, lr=lr)
    weights = Quantization("int4", "channel")
    return RunConfig(
        0,
        "ste",
        m.version,
        m.params,
        task,
        t.version,
        t.key_options(),
        t.fingerprint(),
        size,
        weights,
        None,
        recipe,
        "scratch",
        seed,
    )


def measured(bench: Bench, configs: list[RunConfig], compiled: bool, graphs: bool = False) -> Row:
    """Return the median step time of one run or of stacked runs, and the last loss.

    Neither compiling nor recording should change the loss.
    """
    from qbench.execution.compile import compile_run
    from qbench.execution.step_recording import RecordedStep
    from qbench.training.devices import Stopwatch, peak_memory, quartiles, reset_peak_memory
    from qbench.training.loop import take_step, update
    from tests.bench.gpu import WARMUP

    run = opened(bench, configs)
    if compiled:
        compile_run(run)
    if graphs:
        run.recording = RecordedStep(run, update)
    reset_peak_memory(bench.device)
    run.model.train()
    watch = Stopwatch(bench.device)
    for taken in range(WARMUP + bench.steps):
        terms, _, _ = take_step(run, taken)
        if taken >= WARMUP - 1:
            watch.mark()
    low, middle, high = quartiles(watch.steps())
    loss = float(sum(term.double().mean() for term in terms.values()))
    found: dict[str, Any] = {
        "compiled": compiled,
        "recorded": graphs,
        "median_s": middle,
        "q25_s": low,
        "q75_s": high,
        "loss": loss,
    }
    return found | {
        "run_steps_per_s": len(configs) / middle,
        "peak_memory_bytes": peak_memory(bench.device),
    }


def opened(bench: Bench, configs: list[RunConfig]) -> TrainingRun:
    from qbench.execution.assignment import Assignment, Execution
    from qbench.execution.prepare import prepare_run
    from qbench.execution.stacking import stack_runs
    from qbench.training.setup import open_problem

    execution = Execution(device=str(bench.device), compile=False)
    runs = [
        prepare_run(
            Assignment(c, bench.out / "nowhere"),
            execution,
            open_problem(c, torch.device(bench.device))[1],
            bench.device,
        )
        for c in configs
    ]
    if len(runs) == 1:
        return runs[0]
    run = stack_runs(runs)
    assert run is not None, "these tasks are written for it"
    return run
