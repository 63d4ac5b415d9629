"""The training loop, and one run from its configuration to its files.

There is one loop. Every method trains in it, and a method's hooks are called at the places where they stand here.
"""

from __future__ import annotations

import errno
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qbench import checkpoint, registry
from qbench.config import Metric, Recipe, RunConfig
from qbench.engines import Assignment, Execution
from qbench.environment import environment
from qbench.errors import Diverged, QbenchError
from qbench.export import ARTEFACT, restore
from qbench.formats import Site
from qbench.hardware import Stopwatch, device_named, peak_flops, peak_memory, quartiles
from qbench.method import Method
from qbench.noise import key_of
from qbench.optim import clip, make_optimizer, parameter_groups, set_learning_rates
from qbench.record import Attempt, finite
from qbench.run import Run, attach, frozen_copy
from qbench.run import sites as run_sites
from qbench.score import score
from qbench.task import Problem, Task

CURVE_POINTS = 100
EVALUATIONS = 8
CALIBRATION_BATCHES = 4
GRAPHS = 256
SIGN_OF_LIFE_S = 30.0

Report = Callable[[dict[str, Any]], None]


def one_step(run: Run, recipe: Recipe, step: int) -> tuple[dict[str, Tensor], Tensor | None, float]:
    """One step of training, whole. Returns the loss's terms, the gradient's norm and the learning rate."""
    assert run.optimizer is not None
    run.begin(step)
    with blame("data"):
        batch = run.problem.batch(step)
    lr = set_learning_rates(run, recipe, step)
    run.method.before_step(run, batch)
    run.optimizer.zero_grad(set_to_none=True)
    terms = run.method.step(run, batch)
    run.method.after_backward(run)
    norm = clip(run.parameters, recipe.clip)
    run.optimizer.step()
    run.method.after_step(run)
    return terms, norm, lr


def train(
    run: Run, recipe: Recipe, attempt: Attempt, execution: Execution, report: Report, first: int = 0, before_s: float = 0.0
) -> tuple[Stopwatch, dict[str, float]]:
    """Train from step `first`, before which `before_s` seconds went, to the end of the budget. Returns step times and the last loss by terms."""
    watch, began = Stopwatch(next(run.model.parameters()).device), time.monotonic() - before_s
    every, validate_every = max(1, recipe.steps // CURVE_POINTS), max(1, recipe.steps // EVALUATIONS)
    saved = reported = time.monotonic()
    values, loss = {}, None
    run.model.train()
    watch.mark()
    with open(attempt.curve, "a", encoding="utf-8") as curve:
        for step in range(first, recipe.steps):
            terms, norm, lr = one_step(run, recipe, step)
            watch.mark()
            done = step + 1
            evaluate = done % validate_every == 0 or done == recipe.steps
            if done % every == 0 or evaluate:
                values = {name: float(term) for name, term in terms.items()}
                loss = sum(values.values())
                validation = validate(run) if evaluate else None
                line = {"loss": loss, "lr": lr, "grad_norm": None if norm is None else float(norm), "val": validation}
                write_line(
                    curve,
                    step=done,
                    progress=done / recipe.steps,
                    seconds=time.monotonic() - began,
                    terms=values,
                    metrics=run.method.metrics(run),
                    **line,
                )
                report({"step": done, "steps": recipe.steps, "loss": loss})
                reported = time.monotonic()
                if not torch.isfinite(torch.tensor(loss)):
                    raise Diverged(f"the loss is {loss} at step {done} of {recipe.steps}")
                watch.skip()
                watch.mark()
            if time.monotonic() - reported > SIGN_OF_LIFE_S:
                report({"step": done, "steps": recipe.steps, "loss": loss})
                reported = time.monotonic()
            if time.monotonic() - saved > execution.checkpoint_s and done < recipe.steps:
                checkpoint.save(run, done, time.monotonic() - began, attempt.checkpoint)
                saved = time.monotonic()
                watch.skip()
                watch.mark()
    return watch, values


@torch.no_grad()
def validate(run: Run) -> float:
    """The task's metric on the validation split, as the network would ship now."""
    with run.shipped():
        return next(iter(run.problem.score(run.model, "val").values()))


def write_line(file: Any, **values: Any) -> None:
    """One line of the curve; numbers that are not finite become null."""
    plain = {k: finite({k: v})[0][k] if isinstance(v, float) else finite(v)[0] if isinstance(v, dict) else v for k, v in values.items()}
    file.write(json.dumps(plain, allow_nan=False) + "\n")
    file.flush()


# ---- one run ----


class Failed(Exception):
    """A run ended without a score, for a reason that a table can show."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def blame(reason: str) -> Iterator[None]:
    """Whatever goes wrong in here is a failure of that kind. A full disk is nobody's fault and passes through."""
    try:
        yield
    except (Failed, Diverged):
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Failed("oom", first_line(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise Failed(reason, first_line(error)) from error


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if isinstance(error, QbenchError) and text else f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def run_one(assignment: Assignment, execution: Execution = Execution(), report: Report = lambda _: None) -> dict[str, Any]:
    """Train, export, audit and score one run in this process. Writes the attempt's files, result.json last, and returns the result."""
    if assignment.downstream:
        from qbench.evaluate import ask_one

        return ask_one(assignment, execution, report)
    attempt, config = Attempt(assignment.folder), assignment.config
    attempt.folder.mkdir(parents=True, exist_ok=True)
    attempt.write("spec", config.to_json())
    result: dict[str, Any] = {
        "result_version": 1,
        "key": config.key,
        "attempt": attempt.number,
        "state": "ok",
        "reason": None,
        "message": None,
    }
    result["started"] = now()
    try:
        for part, values in stages(assignment, execution, report, attempt):
            result[part] = values
    except (Failed, Diverged) as error:
        traceback.print_exc()
        reason = error.reason if isinstance(error, Failed) else "diverged"
        result |= {"state": "failed", "reason": reason, "message": str(error)}
    result["finished"] = now()
    attempt.checkpoint.unlink(missing_ok=True)
    attempt.write("result", result)
    return result


def stages(assignment: Assignment, execution: Execution, report: Report, attempt: Attempt) -> Iterator[tuple[str, Any]]:
    """The parts of the result in the order in which they become known."""
    config, recipe = assignment.config, assignment.config.recipe
    start = time.perf_counter()
    device = device_named(execution.device)
    attempt.write(
        "env",
        {
            **environment(),
            "device": device.type,
            "device_name": device_name(device),
            "threads": torch.get_num_threads(),
            "accumulate": execution.accumulate,
            "compiled": compiles(execution, device),
        },
    )
    with blame("data"):
        task, problem = open_problem(config, device)
        if task.fingerprint() != config.data:
            raise QbenchError(f"task {config.task} has other data here than the run asks for")
        yield "metric", vars(task.metric)
    with blame("plugin"):
        run = prepare(assignment, execution, problem, device)
    first, before_s = resume(run, assignment, attempt)
    built = time.perf_counter()
    watch = Stopwatch(device)
    with blame("plugin"):
        if run.optimizer is not None:
            watch, terms = train(run, recipe, attempt, execution, report, first, before_s)
            yield "train", {"steps": recipe.steps, "final_loss": finite({"x": sum(terms.values())})[0]["x"], "terms": finite(terms)[0]}
        run.begin(recipe.steps)
        run.method.finalize(run, run.probe_batches(CALIBRATION_BATCHES))
        yield "method", finite(run.method.metrics(run))[0]
    trained = time.perf_counter()
    with blame("eval"):
        yield from score(run, config, task.metric, attempt.export).items()
    scored = time.perf_counter()
    yield "cost", cost(watch, problem, recipe, device, built - start, trained - built + before_s, scored - trained)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def open_problem(config: RunConfig, device: torch.device) -> tuple[Task, Problem]:
    """The task of a configuration and its problem, as the configuration pinned them."""
    task: Task = registry.build("tasks", config.task, config.task_params)
    if task.version != config.task_version:
        raise QbenchError(f"task {config.task} is at version {task.version} here, the run asks for {config.task_version}")
    torch.manual_seed(key_of(config.task, config.seed))
    return task, task.problem(config.size, config.seed, config.recipe.batch, device)


def prepare(assignment: Assignment, execution: Execution, problem: Problem, device: torch.device) -> Run:
    """The run with its quantizers, its start and its optimizer; a post-training method has none."""
    config, recipe = assignment.config, assignment.config.recipe
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.version != config.method_version:
        raise QbenchError(f"method {config.method} is at version {method.version} here, the run asks for {config.method_version}")
    if assignment.base is not None:
        restore(assignment.base / "export" / ARTEFACT, problem.model)
    run = attach(problem, method, config)
    run.accumulate = execution.accumulate
    run.autocast = torch.bfloat16 if recipe.precision == "bf16" else None
    if assignment.base is not None and method.after is None:
        run.reference = frozen_copy(problem.model)
        run.distills = recipe.objective == "distill"
    for bundle in run.bundles:
        bundle.quantizer.reset(bundle.stack().detach())
    if method.after is not None:
        return run
    method.prepare(run, run.probe_batches(CALIBRATION_BATCHES))
    groups = parameter_groups(run, recipe)
    run.optimizer = make_optimizer(groups, recipe)
    run.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    torch.backends.cudnn.allow_tf32 = recipe.precision != "float32"
    if compiles(execution, device):
        compile_parts(run)
    return run


def compiles(execution: Execution, device: torch.device) -> bool:
    return device.type == "cuda" if execution.compile is None else execution.compile


def compile_parts(run: Run) -> None:
    """The model and each quantizer as graphs of their own: what the loop calls stays what it is.

    Never with dynamic sizes: the compiler would take levels for sizes too, and was seen to round wrongly then.
    A graph is made for each shape of weights, all from one function: the compiler's usual limit of eight would leave the rest uncompiled.
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    run.network = torch.compile(run.model, dynamic=False)  # type: ignore[assignment]
    for bundle in run.bundles:
        bundle.call = torch.compile(bundle.quantizer, dynamic=False)


def resume(run: Run, assignment: Assignment, attempt: Attempt) -> tuple[int, float]:
    """Go on from an earlier attempt's checkpoint, if there is one. Returns the first step to take, and the seconds that those before it took."""
    earlier = Attempt(assignment.resume) if assignment.resume else None
    if run.optimizer is None or earlier is None or not earlier.checkpoint.exists():
        return 0, 0.0
    first, seconds = checkpoint.load(run, earlier.checkpoint)
    lines = [line for line in earlier.curve.read_text().splitlines(keepends=True) if line.endswith("\n")]
    attempt.curve.write_text("".join(line for line in lines if json.loads(line)["step"] <= first))
    return first, seconds


def cost(
    watch: Stopwatch, problem: Problem, recipe: Recipe, device: torch.device, build_s: float, train_s: float, eval_s: float
) -> dict[str, Any]:
    """What the run took. Step times are synchronised and leave out warm-up, logging and validation."""
    found: dict[str, Any] = {"build_s": build_s, "train_s": train_s, "eval_s": eval_s, "wall_s": build_s + train_s + eval_s}
    found["peak_memory_bytes"] = peak_memory(device)
    if times := watch.steps():
        low, middle, high = quartiles(times)
        found |= {"step_s_median": middle, "step_s_q25": low, "step_s_q75": high}
        found |= {"samples_per_s": recipe.batch / middle, "tokens_per_s": problem.tokens_per_step / middle}
        if flops := problem.flops_per_step:
            dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
            found["peak_share"] = flops / middle / peak_flops(device, dtype)
    return found


# ---- questions that planning asks ----


@cache
def _layers(task: str, params: str, size: str) -> Problem:
    """A problem to be asked for its layers' shapes: on a device without memory, so that a large network costs nothing."""
    instance: Task = registry.build("tasks", task, json.loads(params))
    return instance.problem(size, 0, 1, torch.device("meta"))


def sites(config: RunConfig) -> list[Site]:
    """The tensors that a run would quantize."""
    return run_sites(_layers(*_network(config)), config)


def reads_text(config: RunConfig) -> bool:
    """Whether it trains a language model, of which something can be asked downstream."""
    return _layers(*_network(config)).tokenizer is not None


def _network(config: RunConfig) -> tuple[str, str, str]:
    return config.task, json.dumps(dict(config.task_params)), config.size


def refusal(config: RunConfig) -> str | None:
    """Why a method cannot run in this format, in a sentence; None if it can."""
    method: Method = registry.build("methods", config.method, config.method_params)
    if method.needs_reference and config.start == "scratch":
        return f"{method.name} is to imitate the network that a run starts from, and here every run starts from scratch"
    if config.recipe.objective == "distill" and _layers(*_network(config)).batch(0).inputs is None:
        return f"{config.task} has its loss in closed form, and no outputs to imitate"
    for site in sites(config):
        sentence = site.grouping.misfit(site.shape) if site.role == "weight" else None
        if sentence := sentence or method.unsupported(site):
            return sentence
    return None


def metric_of(config: RunConfig) -> Metric:
    task: Task = registry.build("tasks", config.task, config.task_params)
    return task.metric
