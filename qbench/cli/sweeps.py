"""Sweeping, and what of a sweep is done."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbench.cli.boards import print_board
from qbench.cli.options import GroupSize, cli, json_option, make_console, print_json, results_option

if TYPE_CHECKING:
    from qbench.sweepfile.config import SweepConfig
    from qbench.sweeps.cells import Shard


def read_shard(_: click.Context, __: click.Parameter, words: str | None) -> Shard | None:
    from qbench.sweeps.cells import Shard

    return None if words is None else Shard.parse(words)


shard_option = click.option(
    "--shard",
    metavar="I/N",
    callback=read_shard,
    help="Only part I of N, from 0 to N-1: each part on a machine of its own, then `qbench merge --own`.",
)


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes; a core each by default, or a GPU each.",
)
@click.option(
    "--engine",
    "engine_name",
    default="local",
    show_default=True,
    help="Where to train: local, ray or a plugin's.",
)
@click.option(
    "--address",
    help="Of --engine ray: the cluster; by default RAY_ADDRESS, the one on this machine, or a new one here.",
)
@click.option(
    "--cpus-per-run",
    "cpus",
    type=click.FloatRange(min=0),
    help="Of --engine ray: CPUs that a run takes; 1 by default.",
)
@click.option(
    "--gpus-per-run",
    "gpus",
    type=click.FloatRange(min=0),
    help="Of --engine ray: GPUs that a run takes; 0.25 puts four on one.",
)
@shard_option
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Compile what a step computes; by default on CUDA, and on a CPU where it pays.",
)
@click.option(
    "--graphs",
    is_flag=True,
    help="On CUDA record a step once, as a graph, and repeat it: one call in the place of all.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Seconds that a run may take; 0 is no limit.",
)
@click.option(
    "--group",
    type=GroupSize(),
    default="auto",
    show_default=True,
    help="Runs that train side by side at most: auto, or a number.",
)
@click.option(
    "--micro-batches",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Parts that a step's batch is computed in.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Cut every run to this many steps: another board, to try things on.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Train this many seeds instead of the file's."
)
@click.option("--no-retry", is_flag=True, help="Leave runs that failed before as they are.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="List each run with the reason why it would be trained or not; train nothing.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def sweep(
    file: Path | None, results: Path, device: str, workers: int | None, engine_name: str, address: str | None, cpus: float | None,
    gpus: float | None, shard: Shard | None, compiled: bool | None, graphs: bool, timeout_s: float, group: int | None, micro_batches: int,
    steps: int | None, seeds: int | None, no_retry: bool, dry_run: bool, quiet: bool, as_json: bool,
) -> int:  # fmt: skip
    """Train what a sweep FILE asks for and the results lack, then print its board. Without FILE: the built-in board `quick`."""
    from qbench.sweeps.downstream_questions import (
        ask_finished_runs,
        check_downstream_names,
        make_failure_error,
    )

    config = sweep_config(file).shorten(steps, seeds)
    check_downstream_names(config)
    if dry_run:
        return show_status(file, config, results, as_json, shard)
    from qbench.engines.base import EngineOptions
    from qbench.execution.assignment import Execution
    from qbench.plugins import registry
    from qbench.sweepfile.read import list_plugin_modules
    from qbench.sweeps.cells import WHOLE_SWEEP
    from qbench.sweeps.coordinator import run_sweep as run_sweep
    from qbench.terminal.progress import ProgressReporter

    execution = Execution(
        device=device,
        compile=compiled,
        graphs=graphs,
        accumulate=micro_batches,
        timeout_s=timeout_s,
        group=group,
        **vars(config.engine),
    )
    progress = ProgressReporter("quiet" if quiet or as_json else "auto", board=config.board)
    engine_options = EngineOptions(
        workers,
        device,
        tuple(list_plugin_modules(config)),
        address,
        cpus,
        gpus,
        config.engine.gpus_per_run,
    )
    with closing(registry.load("engines", engine_name).open(engine_options)) as engine:
        summary = run_sweep(
            config,
            results,
            engine,
            execution,
            progress,
            retry=not no_retry,
            shard=shard or WHOLE_SWEEP,
        )
        answered = (
            None if summary.interrupted else ask_finished_runs(config, results, engine, execution)
        )
    if as_json:
        from qbench.analysis.results import Results

        print_json({**vars(summary), "board": Results(results).board(config.board).to_json()})
    elif not summary.interrupted:
        print_board(config.board, results, "table")
    if answered and answered.failures:
        click.echo(f"qbench: {make_failure_error(answered.failures)}", err=True)
    return summary.code or (3 if answered and answered.failures else 0)


def sweep_config(file: Path | None) -> SweepConfig:
    """A sweep file by path, or a built-in board by name."""
    from qbench.sweepfile.read import list_builtin_boards, load_builtin_board, read_sweep_file

    if file is None or (not file.exists() and str(file) in list_builtin_boards()):
        return load_builtin_board(str(file or "quick"))
    return read_sweep_file(file / "sweep.toml" if file.is_dir() else file)


def show_status(
    file: Path | None, config: SweepConfig, results: Path, as_json: bool, shard: Shard | None = None
) -> int:
    from qbench.sweeps.cells import WHOLE_SWEEP
    from qbench.sweeps.status import read_sweep_status as sweep_status

    lines = sweep_status(config, results, shard or WHOLE_SWEEP)
    if as_json:
        print_json([{"run": line.title, "key": line.key, "state": line.run_state.state, "reason": line.run_state.reason, "message": line.run_state.message,
               "stale": line.stale, "edited": line.edited, "older": line.older_version, "unanswered": line.unanswered} for line in lines])  # fmt: skip
        return 0
    from qbench.terminal.plan import show_plan

    show_plan(lines, make_console(), str(file or ""))
    return 0


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@shard_option
@json_option
def status(file: Path | None, results: Path, shard: Shard | None, as_json: bool) -> int:
    """What of a sweep FILE is done, missing, failed (why), skipped or made by other code."""
    return show_status(file, sweep_config(file), results, as_json, shard)
