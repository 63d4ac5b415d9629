"""Commands that train: `sweep`, and `status`, which says what of a sweep is done."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbench.cli.boards import print_board
from qbench.cli.options import (
    GroupSize,
    cli,
    device_option,
    json_option,
    make_console,
    print_json,
    results_option,
)

if TYPE_CHECKING:
    from qbench.sweepfile.config import SweepConfig
    from qbench.sweeps.cells import Shard
    from qbench.sweeps.listener import SweepSummary
    from qbench.sweeps.status import RunStatus


def read_shard(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> Shard | None:
    """Return the shard that --shard names."""
    from qbench.sweeps.cells import Shard

    return None if text is None else Shard.parse(text)


shard_option = click.option(
    "--shard",
    metavar="I/N",
    callback=read_shard,
    help=(
        "Only part I of N, from 0 to N-1. Train each part on its own machine, then use "
        "`qbench merge --own`."
    ),
)


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@device_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes; by default one a core, or one a GPU.",
)
@click.option(
    "--engine",
    "engine_name",
    default="local",
    show_default=True,
    help="Where to train: local, ray or an engine of a plugin.",
)
@click.option(
    "--address",
    help=(
        "With --engine ray: the cluster; by default RAY_ADDRESS, the one on this machine, or a "
        "new one here."
    ),
)
@click.option(
    "--cpus-per-run",
    "cpus",
    type=click.FloatRange(min=0),
    help="With --engine ray: CPUs that a run takes; 1 by default.",
)
@click.option(
    "--gpus-per-run",
    "gpus",
    type=click.FloatRange(min=0),
    help="With --engine ray: GPUs that a run takes; 0.25 puts four runs on one GPU.",
)
@shard_option
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Compile the steps; by default on CUDA only.",
)
@click.option(
    "--graphs",
    is_flag=True,
    help="On CUDA, record a step once as a graph and replay it, which saves the kernel launches.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Seconds that a run may take; 0 means no limit.",
)
@click.option(
    "--group",
    type=GroupSize(),
    default="auto",
    show_default=True,
    help="Largest number of stacked runs, which train together: auto, or a number.",
)
@click.option(
    "--micro-batches",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Parts into which a step's batch is split.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Cut every run to this many steps. It is another board, for trying things out.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Train this many seeds instead of the file's."
)
@click.option("--no-retry", is_flag=True, help="Do not train runs again that failed before.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="List each run with the reason why it would be trained or not; train nothing.",
)
@click.option("--quiet", is_flag=True, help="Print no progress.")
@json_option
def sweep(
    file: Path | None,
    results: Path,
    device: str,
    workers: int | None,
    engine_name: str,
    address: str | None,
    cpus: float | None,
    gpus: float | None,
    shard: Shard | None,
    compiled: bool | None,
    graphs: bool,
    timeout_s: float,
    group: int | None,
    micro_batches: int,
    steps: int | None,
    seeds: int | None,
    no_retry: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train the runs of a sweep FILE that have no result yet, then print its board.

    Without FILE it is the built-in board `quick`.
    """
    from qbench.sweeps.downstream_questions import (
        ask_finished_runs,
        check_downstream_names,
        make_failure_error,
    )

    config = read_config(file).shorten(steps, seeds)
    check_downstream_names(config)
    if dry_run:
        return print_status(file, config, results, as_json, shard)
    # Training needs torch; a dry run and an error in the file are quicker without it.
    from qbench.engines.base import EngineOptions
    from qbench.execution.assignment import Execution
    from qbench.plugins import registry
    from qbench.sweepfile.read import list_plugin_modules
    from qbench.sweeps.cells import WHOLE_SWEEP
    from qbench.sweeps.coordinator import run_sweep
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
        answers = None
        if not summary.interrupted:
            answers = ask_finished_runs(config, results, engine, execution)
    print_trained_board(config.board, results, summary, as_json)
    if answers and answers.failures:
        click.echo(f"qbench: {make_failure_error(answers.failures)}", err=True)
    return summary.code or (3 if answers and answers.failures else 0)


def print_trained_board(board: str, results: Path, summary: SweepSummary, as_json: bool) -> None:
    """Print the board of a sweep that has ended. After an interruption only JSON is printed."""
    if as_json:
        from qbench.analysis.results import Results

        print_json({**vars(summary), "board": Results(results).board(board).to_json()})
    elif not summary.interrupted:
        print_board(board, results, "table")


def read_config(file: Path | None) -> SweepConfig:
    """Return the configuration of a sweep file, its folder, or a built-in board by name."""
    from qbench.sweepfile.read import list_builtin_boards, load_builtin_board, read_sweep_file

    if file is None or (not file.exists() and str(file) in list_builtin_boards()):
        return load_builtin_board(str(file or "quick"))
    return read_sweep_file(file / "sweep.toml" if file.is_dir() else file)


def print_status(
    file: Path | None, config: SweepConfig, results: Path, as_json: bool, shard: Shard | None = None
) -> int:
    """Print the state of each run of a sweep."""
    from qbench.sweeps.cells import WHOLE_SWEEP
    from qbench.sweeps.status import read_sweep_status

    statuses = read_sweep_status(config, results, shard or WHOLE_SWEEP)
    if as_json:
        print_json([describe_status(status) for status in statuses])
        return 0
    from qbench.terminal.plan import show_plan

    show_plan(statuses, make_console(), str(file or ""))
    return 0


def describe_status(status: RunStatus) -> dict[str, Any]:
    """Return the state of a run as JSON."""
    return {
        "run": status.title,
        "key": status.key,
        "state": status.run_state.state,
        "reason": status.run_state.reason,
        "message": status.run_state.message,
        "stale": status.stale,
        "edited": status.edited,
        "older": status.older_version,
        "unanswered": status.unanswered,
    }


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@shard_option
@json_option
def status(file: Path | None, results: Path, shard: Shard | None, as_json: bool) -> int:
    """Print what of a sweep FILE is done, missing, failed, skipped or made by other code."""
    return print_status(file, read_config(file), results, as_json, shard)
