"""Throughput of stacked runs against a loop over the same runs.

    python -m tests.bench groups

Unless a row says otherwise, both are eager, both run in one process on one thread, and the row
shows the CPU time of one step of one run. The small tasks in `COMPILED` are also measured with
stacked runs compiled. The loop and the stacked runs take turns, and the ratio is the median over
rounds.

A step of a language model is mostly arithmetic: on a CPU, stacking four runs of the smallest one
gains something, and stacking four of the next gains nothing (`group_policy.MOST_FLOPS` is set from
these rows). Two processes, each with as many stacked runs as a sweep would stack, are also compared
with the loop. The row after them shows what a second core gains for matrix products alone.

Where JAX is installed (pip install jax), the same MLP is also swept by `jit(vmap(…))` over `scan`.
This is only the arithmetic of STE, Adam and clipping, without curves, checkpoints or scores.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing as mp
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from qbench import load_method, load_task
from qbench.execution.assignment import Assignment, Execution
from qbench.execution.compile import compile_run
from qbench.execution.execute import execute_group
from qbench.execution.group_policy import group_size
from qbench.execution.prepare import prepare_run
from qbench.execution.stacking import stack_runs
from qbench.runs.config import Quantization, RunConfig
from qbench.training.loop import take_step
from qbench.training.run import TrainingRun
from qbench.training.setup import open_problem

ROUNDS = 7
CPU = torch.device("cpu")
RATES = (0.003, 0.01, 0.03, 0.1)
BEDS: tuple[tuple[str, str, str, dict[str, Any], bool, int, float | None], ...] = (
    ("digits MLP", "digits", "xs", {}, False, 32, 7.0),
    ("linreg, d = 12 000, full gradient", "linreg", "l", {}, False, 32, 8.0),
    ("linreg, d = 256, full gradient", "linreg", "xs", {}, False, 32, 8.0),
    ("linreg, d = 512, mini-batches, one stream", "linreg", "s", {"exact": False}, True, 32, 18.0),
    ("linreg, d = 2048, full gradient", "linreg", "m", {}, False, 32, 8.0),
    ("twolayer, full gradient", "twolayer", "xs", {}, False, 32, None),
    (
        "linreg, d = 12 000, mini-batches, one stream",
        "linreg",
        "l",
        {"exact": False},
        True,
        32,
        18.0,
    ),
    ("digits CNN", "digits", "xs", {"model": "cnn"}, False, 32, None),
    ("grammar xs", "grammar", "xs", {}, False, 4, None),
    ("grammar s, which `auto` leaves alone", "grammar", "s", {}, False, 4, None),
)
"""Title, task, size, options, whether all runs share a seed, number of stacked runs, and the target
ratio, if there is one."""
COMPILED = BEDS[:6]


def config(
    task: str,
    size: str,
    options: dict[str, Any],
    seed: int,
    lr: float,
    method: str = "ste",
    params: Mapping[str, Any] = {},
) -> RunConfig:
    m, t = load_method(method)(**params), load_task(task)(**options)
    recipe = dataclasses.replace(t.recipe(size), steps=1_000_000, lr=lr)
    weights = Quantization("int4", "channel") if not m.full_precision else None
    return RunConfig(
        0,
        method,
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


def prepared(c: RunConfig) -> TrainingRun:
    return prepare_run(
        Assignment(c, Path("unused")), Execution(compile=False), open_problem(c, CPU)[1], CPU
    )


def stepper(run: TrainingRun) -> Callable[[int], float]:
    """Return a function that takes a number of steps and returns their CPU time in seconds."""
    step = 0

    def take(count: int) -> float:
        nonlocal step
        began = time.process_time()
        for _ in range(count):
            take_step(run, step)
            step += 1
        return time.process_time() - began

    return take


def throughput(
    task: str,
    size: str,
    options: dict[str, Any],
    one_seed: bool,
    count: int,
    method: str = "ste",
    compiled: bool = False,
) -> tuple[float, float, float]:
    """Return the CPU time of one run's step alone and stacked, and the median ratio of the two.

    Times are in microseconds. Only the stacked runs can be compiled.
    """
    seeds = [0] * count if one_seed else [place % (count // len(RATES)) for place in range(count)]
    configs = [
        config(task, size, options, seed, RATES[place * len(RATES) // count], method)
        for place, seed in enumerate(seeds)
    ]
    alone = stepper(prepared(configs[0]))
    whole = stack_runs([prepared(c) for c in configs])
    assert whole is not None
    if compiled:
        compile_run(whole)
    beside = stepper(whole)
    beside(3)
    steps = max(4, min(200, int(0.5 / (beside(3) / 3))))
    pairs = [(alone(steps) / steps, beside(steps) / steps / count) for _ in range(ROUNDS)]
    return (
        *(1e6 * statistics.median(side) for side in zip(*pairs, strict=True)),
        statistics.median(a / b for a, b in pairs),
    )


def whole_runs(task: str, count: int = 32) -> tuple[float, float, float]:
    """Return the CPU time of a whole run alone and stacked, and the median ratio of the two.

    Times are in milliseconds per run. As in a sweep, each run is opened, trained with its curve,
    exported, audited and scored, and its files are written.
    """
    steps = load_task(task)().recipe("xs").steps
    configs = [
        config(task, "xs", {}, place % (count // len(RATES)), RATES[place * len(RATES) // count])
        for place in range(count)
    ]
    configs = [
        dataclasses.replace(c, recipe=dataclasses.replace(c.recipe, steps=steps)) for c in configs
    ]

    def seconds(chosen: Sequence[RunConfig]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            assignments = [
                Assignment(c, Path(folder) / str(place) / "1") for place, c in enumerate(chosen)
            ]
            began = time.process_time()
            results = execute_group(
                assignments, Execution(compile=False), [lambda _: None] * len(chosen)
            )
            taken = time.process_time() - began
        assert all(result["state"] == "ok" for result in results)
        return taken / len(chosen)

    seconds(configs)
    pairs = [(seconds(configs[:1]), seconds(configs)) for _ in range(ROUNDS)]
    return (
        *(1e3 * statistics.median(side) for side in zip(*pairs, strict=True)),
        statistics.median(a / b for a, b in pairs),
    )


def table() -> Iterator[str]:
    torch.set_num_threads(1)
    yield "| side by side | runs | alone, µs a step | in company | ratio | target |"
    yield "|---|--:|--:|--:|--:|--:|"
    for bed in BEDS:
        title, task, size, options, one_seed, count, target = bed
        alone, beside, ratio = throughput(task, size, options, one_seed, count)
        yield f"| STE, {title} | {count} | {alone:,.0f} | {beside:,.1f} | {ratio:.1f} | {target or ''} |"
        if bed in COMPILED:
            alone, beside, ratio = throughput(task, size, options, one_seed, count, compiled=True)
            yield f"| the same, compiled in company | {count} | {alone:,.0f} | {beside:,.1f} | {ratio:.1f} | |"
    for method in ("fp", "lotion", "gdnsq", "pege", "ewgs", "lsq"):
        alone, beside, ratio = throughput("digits", "xs", {}, False, 32, method)
        yield f"| {method}, digits MLP | 32 | {alone:,.0f} | {beside:,.1f} | {ratio:.1f} | |"
    for title, task in (("digits MLP", "digits"), ("linreg, d = 256", "linreg")):
        alone, beside, ratio = whole_runs(task)
        yield f"| STE, {title}: whole runs, from dispatch to result | 32 | {alone:,.0f} ms a run | {beside:,.0f} ms | {ratio:.1f} | |"
    for when, seconds in zip(("nothing at hand", "graphs at hand"), compiling(), strict=True):
        yield f"| to compile the digits MLP's steps and its audit, two workers at once, {when} | 32 | | {seconds:.1f} s | | |"
    for size, steps in (("xs", 40), ("s", 20)):
        count = group_size(config("grammar", size, {}, 0, RATES[0]), "cpu")
        times = count * two_processes(
            partial(language, size, 1, steps), partial(language, size, count, steps)
        )
        yield f"| STE, grammar {size}: two processes of {count} against a loop | {2 * count} | | | {times:.2f} | 1.9 |"
    times = two_processes(partial(products, 4000), partial(products, 4000))
    yield f"| products of matrices, and nothing else: two processes against one | | | | {times:.2f} | |"
    if find_spec("jax"):
        yield f"| JAX, digits MLP: jit(vmap) over scan | 32 | | {jax_sweep(32):,.1f} | | |"


# ---- what compiling takes ----


def first_steps(start: Any) -> None:
    torch.set_num_threads(1)
    runs = [prepared(config("digits", "xs", {}, place, 0.01)) for place in range(32)]
    whole, batch = stack_runs(runs), runs[0].batch(0)
    assert whole is not None
    for run in (whole, *runs):
        compile_run(run)
    start.wait()
    take_step(whole, 0)
    with torch.no_grad():
        for run in runs:
            assert run.passes.compiled_output is not None
            run.passes.compiled_output(batch.inputs)


def compiling() -> list[float]:
    """Return the wall time of compiling with an empty compiler cache, and then with a filled one.

    It is the time in seconds until two concurrent processes have each taken the first compiled step
    of stacked runs, computed the compiled output of each single run, and exited.
    """
    found, context = [], mp.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache),
    ):
        for _ in range(2):
            start = context.Barrier(3, timeout=300)
            workers = [context.Process(target=first_steps, args=(start,)) for _ in range(2)]
            for worker in workers:
                worker.start()
            start.wait()
            began = time.perf_counter()
            for worker in workers:
                worker.join()
            found.append(time.perf_counter() - began)
            assert not any(worker.exitcode for worker in workers), (
                "a worker that failed took no time worth telling"
            )
    return found


# ---- two processes ----


Rounds = Callable[[Any, Any], None]


def language(size: str, count: int, steps: int, start: Any, done: Any) -> None:
    """Train `count` stacked runs of the task `grammar`, `steps` steps in each round."""
    torch.set_num_threads(1)
    runs = [prepared(config("grammar", size, {}, place, RATES[0])) for place in range(count)]
    run = stack_runs(runs) if count > 1 else runs[0]
    assert run is not None
    step = itertools.count()
    in_rounds(lambda: take_step(run, next(step)), steps, start, done)


def products(steps: int, start: Any, done: Any) -> None:
    """Compute `steps` matrix products in each round, and nothing else.

    Two such processes against one show the most that a sweep can gain from a second core.
    """
    torch.set_num_threads(1)
    x = torch.rand(256, 256)
    in_rounds(lambda: x @ x, steps, start, done)


def in_rounds(step: Callable[[], Any], steps: int, start: Any, done: Any) -> None:
    for _ in range(3):
        step()
    done.wait()
    for _ in range(ROUNDS):
        start.wait()
        for _ in range(steps):
            step()
        done.wait()


def two_processes(one: Rounds, two: Rounds) -> float:
    """Return how many rounds of `two` two processes finish in the time of one round of `one`.

    The one process and the two take turns, because the speed of a machine varies over time. The
    result is the median over rounds.
    """

    def workers(rounds: Rounds, processes: int) -> tuple[Any, Any]:
        start, done = (
            context.Barrier(processes + 1, timeout=600),
            context.Barrier(processes + 1, timeout=600),
        )
        for _ in range(processes):
            context.Process(target=rounds, args=(start, done), daemon=True).start()
        done.wait()
        return start, done

    def seconds(start: Any, done: Any) -> float:
        start.wait()
        began = time.perf_counter()
        done.wait()
        return time.perf_counter() - began

    context = mp.get_context("spawn")
    alone, both = workers(one, 1), workers(two, 2)
    return 2 * statistics.median(seconds(*alone) / seconds(*both) for _ in range(ROUNDS))


# ---- the same in JAX ----


def jax_sweep(count: int, steps: int = 300) -> float:
    """Return the CPU time in microseconds of one run's step of the digits MLP in JAX.

    The size is xs, with STE at int4 by channel, Adam and clipping. Batches are drawn in advance.
    """
    import jax
    import jax.numpy as jnp

    problem = open_problem(config("digits", "xs", {}, 0, 0.01), CPU)[1]
    drawn = [problem.batch(index) for index in range(steps)]
    xs, ys = (
        jnp.stack([jnp.asarray(getattr(b, part).numpy()) for b in drawn])
        for part in ("inputs", "targets")
    )
    named = [jnp.asarray(p.detach().numpy()) for p in problem.model.parameters()]
    start = jax.tree.map(lambda p: jnp.broadcast_to(p, (count, *p.shape)), named)
    rates = jnp.asarray([RATES[place * len(RATES) // count] for place in range(count)])

    def quantized(w: Any) -> Any:
        top = jnp.abs(w).max(-1, keepdims=True) / 7
        scale = jnp.where(top > 0, top, 1.0)
        return w + jax.lax.stop_gradient(jnp.clip(jnp.round(w / scale), -7, 7) * scale - w)

    def loss(ps: Any, x: Any, y: Any) -> Any:
        layers = list(zip(ps[::2], ps[1::2], strict=True))
        for place, (w, b) in enumerate(layers):
            x = x @ (quantized(w) if 0 < place < len(layers) - 1 else w).T + b
            x = jax.nn.relu(x) if place < len(layers) - 1 else x
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], -1).mean()

    def step(state: Any, batch: Any) -> Any:
        ps, ms, vs, t, lr = state
        value, gs = jax.value_and_grad(loss)(ps, *batch)
        norm = jnp.sqrt(sum((g * g).sum() for g in gs))
        gs = [g * jnp.minimum(1.0, 1.0 / (norm + 1e-6)) for g in gs]
        ms, vs = (
            [0.9 * m + 0.1 * g for m, g in zip(ms, gs, strict=True)],
            [0.95 * v + 0.05 * g * g for v, g in zip(vs, gs, strict=True)],
        )
        moved = [
            m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.95**t)) + 1e-8)
            for m, v in zip(ms, vs, strict=True)
        ]
        return ([p - lr * d for p, d in zip(ps, moved, strict=True)], ms, vs, t + 1, lr), value

    def train(ps: Any, lr: Any) -> Any:
        zeros = [jnp.zeros_like(p) for p in ps]
        return jax.lax.scan(step, (ps, zeros, zeros, 1.0, lr), (xs, ys))[1]

    sweep = jax.jit(jax.vmap(train))
    jax.block_until_ready(sweep(start, rates))
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        jax.block_until_ready(sweep(start, rates))
        times.append(time.process_time() - began)
    return 1e6 * statistics.median(times) / steps / count
