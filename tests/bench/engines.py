"""What a run costs on an engine: dispatch, files and result.

The runs themselves train nothing and take no time. The local engine trains in a worker process. So
does Ray's, behind an actor, and its files come back through Ray. Workers have started before the
runs are timed. A board of many runs pays for their start only once, and the report shows it in a
column of its own.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qbench.engines.base import Engine, EngineOptions, Event
from qbench.engines.local import LocalEngine
from qbench.engines.ray import RayEngine
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, create_attempt
from qbench.runs.config import Recipe, RunConfig
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from tests.bench.store import ENV, result_of

RUNS = 100
CHECKPOINT = b"0" * 200_000
"""The checkpoint of a made-up run, which writes as much as a run of the small boards.

It also writes an artefact of 50 kB and a curve of a hundred lines. The checkpoint is deleted again.
"""
ARTEFACT = b"1" * 50_000
LINE = '{"step": 1, "progress": 0.01, "seconds": 0.1, "loss": 1.0, "lr": 0.003, "grad_norm": 0.5, "val": null}\n'


def made_up(
    assignment: Assignment, execution: Execution, report: Callable[[dict[str, Any]], None]
) -> None:
    """Write the files of a run without training it."""
    attempt = Attempt(assignment.folder)
    attempt.write("spec", assignment.config.to_json())
    attempt.write("env", {"device": "cpu"})
    attempt.checkpoint.write_bytes(CHECKPOINT)
    report({"step": 1, "steps": 1, "loss": 1.0})
    attempt.curve.write_text(100 * LINE)
    attempt.export.mkdir(exist_ok=True)
    attempt.artefact.write_bytes(ARTEFACT)
    attempt.checkpoint.unlink()
    attempt.write(
        "result",
        {"result_version": 1, "key": attempt.key, "attempt": attempt.number, "state": "ok"},
    )


def a_run(seed: int) -> RunConfig:
    return RunConfig(1, "fp", 1, {}, "toy", 1, {}, "0", "xs", None, None, Recipe(), "scratch", seed)


def spent(engine: Engine, results: Path, runs: range, group: int = 1) -> float:
    """Return the seconds until all runs have ended."""
    began, going = time.perf_counter(), set[int]()
    todo = [list(runs)[i : i + group] for i in range(0, len(runs), group)]
    while todo or going:
        while todo and len(going) < engine.capacity:
            seeds = todo.pop()
            number, configs = seeds[0] + 1, [replace(a_run(0), seed=seed) for seed in seeds]
            engine.submit(
                number,
                [Assignment(c, create_attempt(results, c.key).folder) for c in configs],
                Execution(device="cpu"),
            )
            going.add(number)
        going -= {event.group for event in engine.poll(1.0) if event.kind == "ended"}
    return time.perf_counter() - began


def table() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"Two places, {RUNS} runs that take no time. A run's share is the time between the ends of two runs, so at one place it is twice that."
    yield ""
    yield "| engine | first two runs, with the start of the places | a run | at one place | target |"
    yield "|---|---:|---:|---:|---:|"
    train = f"{__name__}:made_up"
    yield row("local", lambda: LocalEngine(2, "cpu", (), train), "0.05 s")
    if find_spec("ray") is None:
        yield "| ray | not installed | | | 0.1 s |"
    else:
        yield row(
            "ray",
            lambda: RayEngine(EngineOptions(workers=2, device="cpu", address="local"), train),
            "0.1 s",
        )
    yield ""
    yield coordinator()


class Instant(Engine):
    """An engine whose runs end at once, so that a sweep costs only what the coordinator does."""

    capacity = 8

    def __init__(self) -> None:
        self.over: list[int] = []
        self.files_s = 0.0
        self.chance = random.Random(0)

    @classmethod
    def open(cls, options: EngineOptions) -> Instant:
        return cls()

    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        began = time.process_time()
        for assignment in assignments:
            attempt = Attempt(assignment.folder)
            (attempt.folder / "spec.json").write_text(json.dumps(assignment.config.to_json()))
            (attempt.folder / "env.json").write_text(json.dumps(ENV))
            attempt.curve.write_text(100 * LINE)
            (attempt.folder / "result.json").write_text(
                json.dumps(result_of(assignment.config, attempt.key, self.chance))
            )
        self.over.append(group)
        self.files_s += time.process_time() - began

    def poll(self, timeout_s: float) -> list[Event]:
        events, self.over = (
            [Event(group, "ended", details={"exitcode": 0}) for group in self.over],
            [],
        )
        return events

    def cancel(self, group: int) -> None: ...
    def close(self) -> None: ...


def coordinator() -> str:
    config = parse_sweep(
        f'board = "x"\nmethods = ["ste"]\ntasks = ["digits"]\nformats = ["int4"]\nseeds = {10 * RUNS}\n',
        "x.toml",
    )
    engine, began = Instant(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = run_sweep(config, Path(folder), engine, Execution(device="cpu", group=1))
    spent = time.process_time() - began - engine.files_s
    assert summary.ok == 10 * RUNS
    return f"The coordinator itself (folder, row, messages) takes {1000 * spent / summary.ok:.1f} ms of a core for a run: at most {summary.ok / spent:.0f} runs a second."


def row(name: str, make: Callable[[], Engine], target: str) -> str:
    with tempfile.TemporaryDirectory() as folder, closing(make()) as engine:
        began = time.perf_counter()
        places = engine.capacity
        spent(engine, Path(folder), range(places))
        start = time.perf_counter() - began
        each = spent(engine, Path(folder), range(places, places + RUNS)) / RUNS
        missing = [a for a in Path(folder).glob("runs/*/*/1") if Attempt(a).read("result") is None]
        assert not missing
    return f"| {name} | {start:.1f} s | {each:.3f} s | {places * each:.3f} s | {target} |"
