"""The parts `groups` and `company` of `make gpu`: steps of single runs a second against how many train side by side, over a plain loop of single eager
runs; and whether each comes to what it comes to alone.

A run in company is compiled whole, as a sweep would have it, and the largest company once more with CUDA graphs, which a sweep does not use; the
loop is eager, as the target says. The bar is the curve.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from qbench.config import RunConfig
    from qbench.run import Run
    from tests.bench.gpu import Bench, Row

BEDS: tuple[tuple[str, str, str, tuple[int, ...], float], ...] = (
    ("digits MLP", "digits", "xs", (16, 64, 256), 50.0),
    ("linreg, d = 12 000", "linreg", "l", (16, 64, 256), 50.0),
    ("language model, 1M", "text", "1m", (4, 16), 8.0),
)
"""Title, task, size, runs side by side, and the target at the best of them."""
RATES = (0.001, 0.003)
BAR = 24


def groups(bench: Bench) -> Iterator[Row]:
    from qbench.errors import UsageError
    from tests.bench.gpu import attempted

    for title, task, size, counts, target in bench.beds:
        try:
            first = config(task, size, 0, RATES[0])
        except UsageError as error:
            yield {"bed": title, "left out": str(error)}
            continue
        alone: Row = {"bed": title, "runs": 1} | attempted(lambda c=first: measured(bench, [c], compiled=False))  # type: ignore[misc]
        rows = [alone]
        for count in counts:
            row: Row = {"bed": title, "runs": count}
            if bench.late("groups"):
                rows.append(row | {"failed": "no time left"})
                continue
            configs = [config(task, size, place % (count // 2), RATES[2 * place // count]) for place in range(count)]
            rows.append(row | attempted(lambda cs=configs: measured(bench, cs, bench.compile)))  # type: ignore[misc]
        if bench.compile and not bench.late("groups"):
            row = {"bed": f"{title}, CUDA graphs", "runs": counts[-1]}
            rows.append(row | attempted(lambda cs=configs: measured(bench, cs, True, {"triton.cudagraphs": True})))  # type: ignore[misc]
        yield from drawn(rows, target)


def company(bench: Bench) -> Iterator[Row]:
    """Three runs of each method on the toy task, alone and side by side. Eager: what compiling does is the part `compiled`."""
    from qbench import grouping, registry
    from qbench.company import APART
    from qbench.conformance import Kit, differing, first_losses
    from qbench.engines import Assignment, Execution
    from qbench.making import run_group, run_one

    execution = Execution(device=str(bench.device), compile=False)
    for name in bench.methods:
        row: Row = {"method": name}
        if registry.load("methods", name).after:
            continue
        if bench.late("company"):
            yield row | {"failed": "no time left"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            configs = [differing(Kit(name, Path(folder)).one(), place) for place in range(3)]
            if why := grouping.alone(configs[0]):
                yield row | {"left out": why}
                continue
            one, many = ([Assignment(c, Path(folder) / way / str(n) / "1") for n, c in enumerate(configs)] for way in ("one", "many"))
            alone = [run_one(assignment, execution) for assignment in one]
            together = run_group(many, execution, [lambda _: None] * len(many))
            if wrong := [result["message"] for result in (*alone, *together) if result["state"] != "ok"]:
                yield row | {"failed": str(wrong[0])}
                continue
            losses = [(first_losses(a.folder), first_losses(b.folder)) for a, b in zip(one, many, strict=True)]
        apart = max(abs(a - b) / abs(a) for pair in losses for a, b in zip(*pair, strict=True))
        scores = {way: [r["scores"]["packed"] for r in results] for way, results in (("alone", alone), ("in company", together))}
        row |= {
            "runs": together[0]["cost"].get("company", 1),
            "apart": apart,
            "audit": all(r["audit"]["passed"] for r in together),
            **scores,
        }
        yield row if apart <= APART else row | {"failed": f"apart by more than {APART:g}"}


def drawn(rows: list[Row], target: float) -> list[Row]:
    """Each with how many times the steps of the loop it takes, and the curve as bars."""
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
    from qbench import registry
    from qbench.config import Quantization, RunConfig

    t, m = registry.build("tasks", task, {}), registry.build("methods", "ste", {})
    recipe = replace(t.recipe(size), steps=1_000_003, lr=lr)
    weights = Quantization("int4", "channel")
    return RunConfig(
        0, "ste", m.version, m.params, task, t.version, t.params, t.fingerprint(), size, weights, None, recipe, "scratch", seed
    )


def measured(bench: Bench, configs: list[RunConfig], compiled: bool, options: Mapping[str, Any] = {}) -> Row:
    """The median step of one run, or of several side by side; and the loss that it came to, which no way of compiling should move."""
    from qbench.hardware import Stopwatch, forget_memory, peak_memory, quartiles
    from qbench.making import compile_run
    from qbench.train import one_step
    from tests.bench.gpu import WARMUP

    run = opened(bench, configs)
    if compiled:
        compile_run(run, **options)
    forget_memory(bench.device)
    run.model.train()
    watch = Stopwatch(bench.device)
    for taken in range(WARMUP + bench.steps):
        if options:
            torch.compiler.cudagraph_mark_step_begin()
        terms, _, _ = one_step(run, taken)
        if taken >= WARMUP - 1:
            watch.mark()
    low, middle, high = quartiles(watch.steps())
    loss = float(sum(term.double().mean() for term in terms.values()))
    found: dict[str, Any] = {"compiled": compiled, "median_s": middle, "q25_s": low, "q75_s": high, "loss": loss}
    return found | {"run_steps_per_s": len(configs) / middle, "peak_memory_bytes": peak_memory(bench.device)}


def opened(bench: Bench, configs: list[RunConfig]) -> Run:
    from qbench.company import side_by_side
    from qbench.engines import Assignment, Execution
    from qbench.making import open_problem, prepare

    execution = Execution(device=str(bench.device), compile=False)
    runs = [
        prepare(Assignment(c, bench.out / "nowhere"), execution, open_problem(c, torch.device(bench.device))[1], bench.device)
        for c in configs
    ]
    if len(runs) == 1:
        return runs[0]
    run = side_by_side(runs)
    assert run is not None, "these tasks are written for it"
    return run
