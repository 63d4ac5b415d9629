"""The command line. Bodies are short: what they do lives elsewhere and is imported when it is needed."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbench import __version__
from qbench.errors import QbenchError, UsageError

if TYPE_CHECKING:
    from qbench.sweepfile import SweepConfig


def results_folder() -> Path:
    """`results/` of the checkout that qbench runs from; of the current directory for an installed one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout / "results" if (checkout / "pyproject.toml").exists() else Path("results")


results_option = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), envvar="QBENCH_RESULTS", default=results_folder, show_default="results/",
    help="Folder of the runs and the store.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def emit(data: Any) -> None:
    click.echo(json.dumps(data, indent=1, allow_nan=False, default=str))


class Commands(click.Group):
    """Suggests neighbours for a command that does not exist."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        from qbench.errors import unknown

        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """The benchmark and leaderboard harness for quantization-aware training."""


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
    config = sweep_config(file).shortened(steps, seeds)
    if dry_run:
        return show_status(config, results, as_json)
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
    if as_json:
        from qbench.frames import Results

        emit({**vars(summary), "board": Results(results).board(config.board).to_json()})
    elif not summary.interrupted:
        print_board(config.board, results, "table")
    return summary.code


def sweep_config(file: Path | None) -> SweepConfig:
    """A sweep file by path, or a built-in board by name."""
    from qbench.sweepfile import builtin_board, builtin_boards, read

    if file is None or (not file.exists() and str(file) in builtin_boards()):
        return builtin_board(str(file or "quick"))
    return read(file / "sweep.toml" if file.is_dir() else file)


def show_status(config: SweepConfig, results: Path, as_json: bool) -> int:
    from qbench.sweep import status as sweep_status

    lines = sweep_status(config, results)
    if as_json:
        emit([{"run": line.title, "key": line.key, "state": line.standing.state, "reason": line.standing.reason, "message": line.standing.message,
               "stale": line.stale} for line in lines])  # fmt: skip
        return 0
    from rich.console import Console

    from qbench.render import show_plan

    show_plan(lines, Console())
    return 0


@cli.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@results_option
@json_option
def status(file: Path | None, results: Path, as_json: bool) -> int:
    """What of a sweep FILE is done, missing, failed (why), skipped or made by other code."""
    code = show_status(sweep_config(file), results, as_json)
    if not as_json:
        click.echo(f"to go on: qbench sweep {file or ''}".rstrip(), err=True)
    return code


@cli.command()
@click.argument("what", required=False)
@results_option
@click.option("--csv", "form", flag_value="csv", help="Print CSV, a line a cell.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--runs", "form", flag_value="runs", help="Print CSV, a line a run.")
@click.option("--randomised", is_flag=True, help="Add the score after randomised rounding.")
def show(what: str | None, results: Path, form: str | None, randomised: bool) -> int:
    """Print a board, or one run whole. WHAT is a board's name (default: the latest) or a run's key, or the beginning of one."""
    if what and is_run(what, results):
        print_run(what, results, form)
    else:
        print_board(what, results, form or "table", randomised)
    return 0


def print_board(name: str | None, results: Path, form: str, randomised: bool = False) -> None:
    from qbench import plaintext
    from qbench.frames import Results

    found = Results(results)
    if form == "runs":
        click.echo(plaintext.runs_csv(found.board_runs(found.board_name(name))), nl=False)
        return
    board = found.board(name)
    if form == "json":
        emit(board.to_json())
    elif form in ("csv", "markdown"):
        click.echo(plaintext.to_csv(board) if form == "csv" else plaintext.to_markdown(board), nl=False)
    else:
        from rich.console import Console

        from qbench.render import show_board

        show_board(board, Console(), randomised=randomised)


def print_run(key: str, results: Path, form: str | None) -> None:
    from qbench.record import latest

    run = latest(results, key)
    if form == "json":
        emit(run)
    elif form:
        raise UsageError(f"a run is printed whole or as JSON, not as {form}")
    else:
        from rich.console import Console

        from qbench.render import show_run

        show_run(run, Console())


@cli.command()
@click.argument("one")
@click.argument("other")
@click.option("--board", help="The board to look at; the latest by default.")
@results_option
@json_option
def compare(one: str, other: str, board: str | None, results: Path, as_json: bool) -> int:
    """Hold two entrants of a board, by their labels, against each other: paired by seed, with an interval and a verdict."""
    from qbench.frames import Results
    from qbench.plaintext import comparison

    found = Results(results).compare(one, other, board)
    if as_json:
        emit([c.to_json() for c in found])
    else:
        click.echo("\n".join([f"{one} − {other}", *map(comparison, found)] if found else [f"{one} and {other} have no format in common"]))
    return 0


@cli.command()
@json_option
def methods(as_json: bool) -> int:
    """The registered methods with version, paper, provenance and hyper-parameters."""
    from qbench.catalogue import list_methods

    found = list_methods()
    if as_json:
        emit(found)
    else:
        from rich.console import Console

        from qbench.render import show_methods

        show_methods(found, Console())
    return 0


@cli.command()
@json_option
def tasks(as_json: bool) -> int:
    """The registered tasks with sizes, metric, recipe and options."""
    from qbench.catalogue import list_tasks

    found = list_tasks()
    if as_json:
        emit(found)
    else:
        from rich.console import Console

        from qbench.render import show_tasks

        show_tasks(found, Console())
    return 0


@cli.command()
@click.argument("method")
@click.option("--quick", is_flag=True, help="Fewer formats, nothing compiled: under half a minute.")
@json_option
def check(method: str, quick: bool, as_json: bool) -> int:
    """Run the conformance kit on METHOD: one line a check; exit code 1 if one fails."""
    import torch

    from qbench.conformance import check_method

    torch.set_num_threads(1)
    findings = []
    for finding in check_method(method, quick):
        findings.append(vars(finding))
        if not as_json:
            click.echo(f"{'ok    ' if finding.passed else 'FAILED'} {finding.check:<10} {finding.where:<16} {finding.detail}".rstrip())
    failed = sum(not f["passed"] for f in findings)
    emit(findings) if as_json else click.echo(f"{method}: {len(findings) - failed} passed, {failed} failed")
    return int(failed > 0)


@cli.command()
@click.argument("run")
@results_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def reproduce(run: str, results: Path, device: str, as_json: bool) -> int:
    """Train RUN again from its record and compare; exit code 5 if it comes to something else. RUN is a key, or the beginning of one."""
    from qbench.reproduce import reproduce as make_again

    found = make_again(results, run, device)
    emit(vars(found)) if as_json else click.echo(str(found))
    return 5 if found.verdict == "different" else 0


@cli.command()
@results_option
@json_option
def doctor(results: Path, as_json: bool) -> int:
    """Look at this machine and installation: what works, what is missing, what to do about it."""
    from qbench.doctor import examine

    findings = examine(results)
    if as_json:
        emit([vars(f) for f in findings])
    else:
        for f in findings:
            click.echo(f"{'ok    ' if f.fine else 'NOT OK'} {f.what:<14} {f.detail}")
    return int(not all(f.fine for f in findings))


@cli.group(cls=Commands)
def new() -> None:
    """The beginning of a plugin package, to be rewritten."""


@new.command("method")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write it; ./qbench-NAME by default.")
@json_option
def new_method(name: str, folder: Path | None, as_json: bool) -> int:
    """Write a package with the method NAME: one file, its test, and what installs and registers it."""
    from qbench.scaffold import distribution_name, new_method

    written = new_method(name, folder := folder or Path(distribution_name(name)))
    emit([str(path) for path in written]) if as_json else click.echo("\n".join(map(str, written)))
    click.echo(f"next: pip install -e {folder} && qbench check {name}", err=True)
    return 0


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes qbench's words in SHELL: eval "$(qbench completion bash)"."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "qbench", "_QBENCH_COMPLETE").source())


@cli.group(cls=Commands)
def db() -> None:
    """The store: an index of the run folders, which can always be made again from them."""


@db.command("rebuild")
@results_option
@json_option
def db_rebuild(results: Path, as_json: bool) -> int:
    """Make the store again from the run folders."""
    from qbench.upkeep import rebuild

    report = rebuild(results)
    emit(vars(report)) if as_json else click.echo(str(report))
    return 0


@db.command("check")
@results_option
@json_option
def db_check(results: Path, as_json: bool) -> int:
    """Compare the store with the run folders; exit code 5 if they differ."""
    from qbench.upkeep import check

    report = check(results)
    emit({**vars(report), "agrees": report.agrees}) if as_json else click.echo(str(report))
    return 0 if report.agrees else 5


def is_run(what: str, results: Path) -> bool:
    """Whether a word is the beginning of a run's key rather than a board's name."""
    return len(what) >= 6 and set(what) <= set("0123456789abcdef") and any((results / "runs" / what[:2]).glob(f"{what}*"))


def main() -> None:
    """The entry point: every error that a user can cause is one line, and every exit code means something."""
    try:
        code = cli.main(standalone_mode=False)
    except QbenchError as error:
        click.echo(f"qbench: {error}", err=True)
        code = error.code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
