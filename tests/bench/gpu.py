"""What only a GPU can show, measured in under ten minutes: `make gpu OUT=folder`.

    python -m tests.bench.gpu --out folder
    python -m tests.bench.gpu --out folder --device cpu --sizes xs --steps 2 --train xs \\
        --train-steps 4 --methods fp,ste

The results are written to gpu.json and gpu.md in the folder. The parts are:

steps       The step of every method that trains, on the task `text`, compiled, in bf16: median,
            quartiles, tokens per second, peak memory, and the share of the measured peak of a bf16
            matrix product. Steps are compared with full precision, measured first and last.
compiled    Compiled against eager training on the toy task: how far the first losses differ, and
            whether the compiled network is still quantized (the audit).
runs        A short training at 10M parameters: score, cost and audit of every method.
groups      Steps per second against the number of stacked runs (`gpu_groups`).
company     How stacking changes the losses of a run's first steps, and its score (`gpu_groups`).
tests       The tests that are marked `gpu`.

The report names each part that failed and each measurement that no time was left for. The benchmark
needs torch, pandas and safetensors, and it downloads nothing. Where qbench is not installed, its
plugins are registered from pyproject.toml:

    PYTHONPATH=.:methods:tasks python -m tests.bench.gpu --out folder
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu_groups import BEDS, company, groups

ROOT = Path(__file__).resolve().parent.parent.parent
PARTS = ("steps", "compiled", "runs", "groups", "company", "tests")
LIMIT_S = 570.0
SHARES = {
    "steps": 0.4,
    "compiled": 0.52,
    "runs": 0.65,
    "groups": 0.85,
    "company": 0.92,
    "tests": 1.0,
}
"""Share of the time limit after which a part starts no new measurement."""
WARMUP, TOKENS = 8, 65_536
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ewgs, fixed": ("ewgs", {"delta": 1e-3}),
    "ewgs, adaptive": ("ewgs", {"delta": "adaptive"}),
}
"""Methods with other hyper-parameters, timed in addition to every method with its defaults."""
Row = dict[str, Any]


@dataclass
class Bench:
    """The options of the benchmark, and the results so far."""

    out: Path
    device: torch.device
    sizes: list[str]
    steps: int
    train: str
    train_steps: int
    methods: list[str]
    tokens: int = TOKENS
    compile: bool = True
    limit_s: float = LIMIT_S
    beds: tuple[tuple[str, str, str, tuple[int, ...], float], ...] = BEDS
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def late(self, part: str) -> bool:
        return time.monotonic() - self.began > SHARES[part] * self.limit_s

    def save(self) -> None:
        """Write both reports. This happens after every row, so an interruption loses no result."""
        self.found["seconds"] = round(time.monotonic() - self.began, 1)
        (self.out / "gpu.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (self.out / "gpu.md").write_text("\n".join(markdown(self.found)) + "\n")

    def part(self, name: str, rows: Callable[[Bench], Iterator[Row]]) -> None:
        self.found[name] = []
        try:
            for row in rows(self):
                self.found[name].append(row)
                self.save()
        except Exception as error:  # noqa: BLE001 - the other parts can still be measured
            self.found[name].append(
                {
                    "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
                }
            )
        self.save()


# ---- the parts ----


def steps(bench: Bench) -> Iterator[Row]:
    from qbench.plugins import registry
    from qbench.training.devices import peak_flops

    peak = peak_flops(bench.device, torch.bfloat16)
    yield {"peak_bf16_flops": peak}
    chosen: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in bench.methods} | {
        label: v for label, v in VARIANTS.items() if v[0] in bench.methods
    }
    trained = {
        label: v for label, v in chosen.items() if not registry.load("methods", v[0]).post_training
    }
    order = ["fp", *(label for label in trained if label != "fp"), "fp, again"]
    for size in bench.sizes:
        usual: float | None = None
        for label in order:
            method, params = ("fp", {}) if label == "fp, again" else trained.get(label, (label, {}))
            row: Row = {"size": size, "method": label}
            if bench.late("steps"):
                yield row | {"failed": "no time left"}
                continue
            row |= attempted(partial(step_times, bench, method, params, size, peak))
            usual = usual or row.get("median_s")
            if usual and "median_s" in row:
                row["over_fp"] = row["median_s"] / usual
            yield row


def attempted(measure: Callable[[], Row]) -> Row:
    """Return the measured row, or a row with the reason for the failure, and free the memory."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # noqa: BLE001 - the failure is a row of the table
        return {
            "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                :200
            ]
        }
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def step_times(bench: Bench, method: str, params: Mapping[str, Any], size: str, peak: float) -> Row:
    from qbench.training.devices import Stopwatch, peak_memory, quartiles, reset_peak_memory
    from qbench.training.loop import take_step

    run = ready(bench, method, params, size)
    reset_peak_memory(bench.device)
    watch, began = Stopwatch(bench.device), time.monotonic()
    for taken in range(WARMUP + bench.steps):
        # Step 0 comes first, and ordinary steps follow it. The part `runs` covers the rare ones.
        step = 0 if taken == 0 else 1000 + 37 * taken
        take_step(run, step)
        if taken >= WARMUP - 1:
            watch.mark()
        else:
            synchronise(bench.device)
            built = time.monotonic() - began
    low, middle, high = quartiles(watch.steps())
    tokens = run.problem.work.labels
    return {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "tokens": tokens,
        "compiled": bench.compile,
        "median_s": middle,
        "q25_s": low,
        "q75_s": high,
        "tokens_per_s": tokens / middle,
        "peak_memory_bytes": peak_memory(bench.device),
        "peak_share": (run.problem.work.flops or 0.0) / middle / peak,
        "first_steps_s": built,
    }


def ready(bench: Bench, method: str, params: Mapping[str, Any], size: str) -> Any:
    """Return a run ready for its first step, prepared as a worker prepares it.

    Weights are quantized to int4 by channel, except for a full-precision method. Steps compute in
    bf16 over float32 master weights, and are compiled unless `--eager` is given.
    """
    from qbench.execution.assignment import Assignment, Execution
    from qbench.execution.prepare import prepare_run
    from qbench.plugins import registry
    from qbench.runs.config import Quantization, RunConfig
    from qbench.training.setup import open_problem

    task, instance = (
        registry.build("tasks", "text", {}),
        registry.build("methods", method, dict(params)),
    )
    context = task.sizes[size]["context"]
    recipe = replace(
        task.recipe(size), batch=max(1, bench.tokens // context), steps=100_003, precision="bf16"
    )
    weights = Quantization("int4", "channel") if not instance.full_precision else None
    config = RunConfig(
        0,
        method,
        instance.version,
        instance.params,
        "text",
        task.version,
        task.key_options(),
        "",
        size,
        weights,
        None,
        recipe,
        "scratch",
        0,
    )
    _, problem = open_problem(config, bench.device)
    execution = Execution(device=str(bench.device), compile=bench.compile)
    run = prepare_run(Assignment(config, bench.out / "nowhere"), execution, problem, bench.device)
    run.model.train()
    return run


def compiled(bench: Bench) -> Iterator[Row]:
    from qbench.checks.method_contract import first_losses
    from qbench.checks.method_kit import Kit
    from qbench.execution.assignment import Execution
    from qbench.plugins import registry

    for name in bench.methods:
        if registry.load("methods", name).post_training:
            continue
        if bench.late("compiled"):
            yield {"method": name, "failed": "no time left"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            kit = Kit(name, Path(folder))
            ways = {
                way: Execution(device=str(bench.device), compile=way == "compiled")
                for way in ("eager", "compiled")
            }
            made = {
                way: kit.run(kit.make_config("int4"), execution, again=True)
                for way, execution in ways.items()
            }
            wrong = [result["message"] for result, _ in made.values() if result["state"] != "ok"]
            if wrong:
                yield {"method": name, "failed": str(wrong[0])}
                continue
            pairs = zip(*(first_losses(place) for _, place in made.values()), strict=True)
            apart = max(abs(a - b) / abs(a) for a, b in pairs)
            scores = {way: result["scores"]["packed"] for way, (result, _) in made.items()}
            yield {
                "method": name,
                "apart": apart,
                "audit": made["compiled"][0]["audit"]["passed"],
                **scores,
            }


def runs(bench: Bench) -> Iterator[Row]:
    """Train every method and yield the results.

    The runs are trained one after another in this process, so each can reuse what was compiled for
    an earlier one.
    """
    from qbench.engines.dispatch import run_one
    from qbench.execution.assignment import Assignment, Execution
    from qbench.sweepfile.read import parse_sweep
    from qbench.sweeps.plan import make_plan

    words = ", ".join(f'"{name}"' for name in bench.methods)
    batch = max(1, min(bench.tokens, TOKENS // 2) // context_of(bench.train))
    sweep = parse_sweep(
        f'board = "gpu"\nmethods = [{words}]\nformats = ["int4"]\n[[task]]\nname = "text"\nsizes = ["{bench.train}"]\n'
        f'[recipe]\nsteps = {bench.train_steps}\nbatch = {batch}\nprecision = "bf16"\n',
        "gpu.toml",
    )
    folders: dict[str, Path] = {}
    for run in make_plan(sweep).runs.values():
        row: Row = {"method": run.config.method, "steps": bench.train_steps, "key": run.key}
        if bench.late("runs"):
            yield row | {"failed": "no time left"}
            continue
        folders[run.key] = bench.out / "runs" / run.key / "1"
        base = folders.get(run.base) if run.base else None
        execution = Execution(device=str(bench.device), compile=bench.compile)
        result = run_one(Assignment(run.config, folders[run.key], base=base), execution)
        if result["state"] != "ok":
            yield row | {"failed": f"{result['reason']}: {result['message']}"}
            continue
        cost = {
            name: result["cost"].get(name)
            for name in (
                "build_s",
                "train_s",
                "eval_s",
                "tokens_per_s",
                "peak_share",
                "peak_memory_bytes",
            )
        }
        yield row | {
            "bits_per_byte": result["scores"]["packed"],
            "audit": result["audit"]["passed"],
            **cost,
        }


def context_of(size: str) -> int:
    from qbench.plugins import registry

    return int(registry.load("tasks", "text").sizes[size]["context"])


def tests(bench: Bench) -> Iterator[Row]:
    """Run the tests that are marked `gpu` in a separate process, and yield their outcome.

    Only files that contain such a test are collected, because others may import packages that are
    not installed here.
    """
    if find_spec("pytest") is None:
        yield {"failed": "pytest is not installed"}
        return
    files = [
        str(path)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pytest.ini"
        settings.write_text(
            "[pytest]\nmarkers =\n    gpu: needs a CUDA device\n    slow: more than ten seconds\n"
        )
        left = max(30.0, bench.limit_s - (time.monotonic() - bench.began))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "-c",
            str(settings),
            f"--rootdir={ROOT}",
            "--noconftest",
            "-p",
            "no:cacheprovider",
        ]
        try:
            done = subprocess.run(
                [*command, *files], capture_output=True, text=True, timeout=left, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            yield {"failed": f"not over after {left:.0f} s"}
            return
    yield {
        "files": [Path(f).name for f in files],
        "exit": done.returncode,
        "summary": (done.stdout.strip().splitlines() or [""])[-1],
    }
    yield from (
        {"failed": line}
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    )


# ---- the report ----


def markdown(found: Mapping[str, Any]) -> Iterator[str]:
    env = found["environment"]
    yield f"# {env['device_name']}, {env['date']}\n"
    yield f"torch {env['torch']}, CUDA {env['cuda']}, Python {env['python']}, commit {env['commit']}; {found['seconds']} s in all.\n"
    for part in PARTS:
        if rows := found.get(part):
            yield f"## {part}\n"
            measured = [
                row for row in rows if "median_s" in row or "apart" in row or "bits_per_byte" in row
            ]
            if measured:
                columns = list(measured[0])
                columns += [key for row in measured for key in row if key not in columns]
                columns = list(dict.fromkeys(columns))
                yield "| " + " | ".join(columns) + " |"
                yield "|" + "---|" * len(columns)
                for row in measured:
                    yield "| " + " | ".join(shown(key, row.get(key)) for key in columns) + " |"
                yield ""
            for row in rows:
                if row not in measured:
                    yield "* " + ", ".join(
                        f"{key}: {shown(key, value)}" for key, value in row.items()
                    )
            yield ""


def shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(shown(key, one) for one in value)
    if key.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB"
    if key.endswith("_flops"):
        return f"{value / 1e12:.1f} T/s"
    if key in ("median_s", "q25_s", "q75_s"):
        return f"{1e3 * value:.2f} ms"
    if key == "peak_share":
        return f"{100 * value:.1f} %"
    if key.endswith("_per_s"):
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def environment(device: torch.device) -> Row:
    from qbench.runs.environment import collect_environment as machine

    named = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "CPU: what this shows is that the bench works"
    )
    return {
        **machine(),
        "device_name": named,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d"),
    }


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def register_plugins(folder: Path) -> None:
    """Register the plugins of a checkout where qbench is not installed.

    The entry points are written to the folder as an installation would write them.
    """
    from qbench.plugins import registry

    if "fp" in registry.plugins("methods"):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "qbench-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qbench\nVersion: 0\n")
    groups = [
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n")
    sys.path.append(str(folder))
    registry.plugins.cache_clear()


def main(words: list[str]) -> int:
    from qbench.plugins import registry
    from qbench.training.devices import parse_device

    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu", description="What only a GPU can show."
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--methods", default="")
    parser.add_argument("--sizes", default="30m,150m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--train", default="10m")
    parser.add_argument("--train-steps", type=int, default=300)
    parser.add_argument(
        "--beds",
        default="",
        help="Titles of the part groups, separated by semicolons; all by default.",
    )
    parser.add_argument("--side-by-side", default="", help="Numbers of runs of the part groups.")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--limit", type=float, default=LIMIT_S)
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="qbench-gpu-") as folder:
        register_plugins(Path(folder))
        device = parse_device(asked.device)
        asked.out.mkdir(parents=True, exist_ok=True)
        methods = (
            asked.methods.split(",")
            if asked.methods
            else sorted(registry.plugins("methods"), key=lambda name: name != "fp")
        )
        bench = Bench(
            asked.out, device, asked.sizes.split(","), asked.steps, asked.train, asked.train_steps, methods, asked.tokens, not asked.eager, asked.limit
        )  # fmt: skip
        counts = tuple(map(int, asked.side_by_side.split(","))) if asked.side_by_side else ()
        titles = asked.beds.split(";") if asked.beds else [bed[0] for bed in BEDS]
        bench.beds = tuple((*bed[:3], counts or bed[3], bed[4]) for bed in BEDS if bed[0] in titles)
        bench.found["environment"] = environment(device)
        for name, rows in {
            "steps": steps,
            "compiled": compiled,
            "runs": runs,
            "groups": groups,
            "company": company,
            "tests": tests,
        }.items():
            if name in asked.parts.split(","):
                bench.part(name, rows)
    print(bench.out / "gpu.md")
    return int(
        any(
            "failed" in row or row.get("audit") is False or row.get("exit", 0) not in (0, 5)
            for part in PARTS
            for row in bench.found.get(part, [])
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
