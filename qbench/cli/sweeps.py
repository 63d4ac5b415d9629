"""Sweeping, and what of a sweep is done."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qbench.cli.boards import print_board
from qbench.cli.common import cli, emit, json_option, results_option

if TYPE_CHECKING:
    from qbench.sweepfile import SweepConfig


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes; a core each by default, or a GPU each.")
@click.option("--compile/--no-compile", "compiled", default=None, help="Compile models; by default on CUDA and not on the CPU.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=0.0, help="Seconds that a run may take; 0 is no limit.")
@click.option("--micro-batches", type=click.IntRange(min=1), default=1, show_default=True, help="Parts that a step's batch is computed in.")
@click.option("--steps", type=click.IntRange(min=1), help="Cut every run to this many steps: another board, to try things on.")
@click.option("--seeds", type=click.IntRange(min=1), help="Train this many seeds instead of the file's.")
@click.option("--no-retry", is_flag=True, help="Leave runs that failed before as they are.")
@click.option("--dry-run", is_flag=True, help="List each run with the reason why it would be trained or not; train nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
def sweep(
    file: Path | None, results: Path, device: str, workers: int | None, compiled: bool | None, timeout_s: float, micro_batches: int,
    steps: int | None, seeds: int | None, no_retry: bool, dry_run: bool, quiet: bool, as_json: bool,
) -> int:  # fmt: skip
    """Train what a sweep FILE asks for and the results lack, then print its board. Without FILE: the built-in board `quick`."""
    from qbench.asking import ask, check, complain

    config = sweep_config(file).shortened(steps, seeds)
    check(config)
    if dry_run:
        return show_status(file, config, results, as_json)
    from qbench.engines import Execution
    from qbench.engines.local import LocalEngine
    from qbench.progress import Progress
    from qbench.sweep import sweep as run_sweep
    from qbench.sweepfile import plugin_modules

    execution = Execution(device=device, compile=compiled, accumulate=micro_batches, timeout_s=timeout_s)
    progress = Progress("quiet" if quiet or as_json else "auto", board=config.board)
    with closing(LocalEngine(workers, device, plugin_modules(config))) as engine:
        engine.start()
        if device != "auto":
            engine.devices  # noqa: B018 - one that is not there is an error before anything is written
        summary = run_sweep(config, results, engine, execution, progress, retry=not no_retry)
        answered = None if summary.interrupted else ask(config, results, engine, execution)
    if as_json:
        from qbench.frames import Results

        emit({**vars(summary), "board": Results(results).board(config.board).to_json()})
    elif not summary.interrupted:
        print_board(config.board, results, "table")
    if answered and answered.failures:
        click.echo(f"qbench: {complain(answered.failures)}", err=True)
    return summary.code or (3 if answered and answered.failures else 0)


def sweep_config(file: Path | None) -> SweepConfig:
    """A sweep file by path, or a built-in board by name."""
    from qbench.sweepfile import builtin_board, builtin_boards, read

    if file is None or (not file.exists() and str(file) in builtin_boards()):
        return builtin_board(str(file or "quick"))
    return read(file / "sweep.toml" if file.is_dir() else file)


def show_status(file: Path | None, config: SweepConfig, results: Path, as_json: bool) -> int:
    from qbench.outlook import status as sweep_status

    lines = sweep_status(config, results)
    if as_json:
        emit([{"run": line.title, "key": line.key, "state": line.standing.state, "reason": line.standing.reason, "message": line.standing.message,
               "stale": line.stale, "older": line.older, "unanswered": line.unanswered} for line in lines])  # fmt: skip
        return 0
    from rich.console import Console

    from qbench.render import show_plan

    show_plan(lines, Console(), str(file or ""))
    return 0


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@json_option
def status(file: Path | None, results: Path, as_json: bool) -> int:
    """What of a sweep FILE is done, missing, failed (why), skipped or made by other code."""
    return show_status(file, sweep_config(file), results, as_json)
