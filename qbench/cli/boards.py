"""Commands that show results: `show`, `compare` and `publish`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from qbench.cli.options import cli, json_option, make_console, print_json, results_option
from qbench.errors import UsageError


@cli.command()
@click.argument("what", required=False)
@results_option
@click.option("--csv", "form", flag_value="csv", help="Print CSV, one line a cell.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--runs", "form", flag_value="runs", help="Print CSV, one line a run.")
@click.option("--randomised", is_flag=True, help="Add the score after randomised rounding.")
@click.option(
    "--summary",
    is_flag=True,
    help="Print a summary of the board: overall, Pareto front, equal training time.",
)
def show(what: str | None, results: Path, form: str | None, randomised: bool, summary: bool) -> int:
    """Print a board or a run.

    WHAT is a board's name (default: the latest board), a run's key, or the beginning of a key.
    """
    if summary:
        print_summary(what, results, form)
    elif what and is_run(what, results):
        print_run(what, results, form)
    else:
        print_board(what, results, form or "table", randomised)
    return 0


def print_board(name: str | None, results: Path, form: str, randomised: bool = False) -> None:
    """Print a board as `table`, `csv`, `markdown` or `json`, or its `runs` as CSV."""
    from qbench.analysis.results import Results
    from qbench.boards.csv_files import runs_csv, to_csv
    from qbench.boards.markdown import to_markdown

    source = Results(results)
    if form == "runs":
        click.echo(runs_csv(source.board_runs(source.board_name(name))), nl=False)
        return
    with paused_garbage_collection():
        board = source.board(name)
    if form == "json":
        print_json(board.to_json())
    elif form in ("csv", "markdown"):
        click.echo(to_csv(board) if form == "csv" else to_markdown(board), nl=False)
    else:
        from qbench.terminal.board import show_board

        show_board(board, make_console(), randomised=randomised)


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector while a board is built.

    The objects of a large board live until the command ends, and scanning them again and again
    takes a twentieth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def print_summary(name: str | None, results: Path, form: str | None) -> None:
    """Print the summary of a board as tables or JSON."""
    from qbench.analysis.results import Results

    if form not in (None, "json"):
        raise UsageError(f"a summary is printed as tables or as JSON, not as {form}")
    summary = Results(results).summary(name)
    if form:
        print_json(summary.to_json())
    else:
        from qbench.terminal.summary import show_summary

        show_summary(summary, make_console())


def print_run(key: str, results: Path, form: str | None) -> None:
    """Print everything that is recorded of a run, as text or JSON."""
    from qbench.runs.lookup import read_latest_attempt

    run = read_latest_attempt(results, key)
    if form == "json":
        print_json(run)
    elif form:
        raise UsageError(f"a run is printed as text or as JSON, not as {form}")
    else:
        from qbench.terminal.run import show_run

        show_run(run, make_console())


def is_run(what: str, results: Path) -> bool:
    """Return whether a word is a run's key or the beginning of one, and not a board's name."""
    from qbench.runs.lookup import looks_like_key

    return (
        (results / "runs").is_dir()
        and looks_like_key(results, what)
        and not (results / "boards" / f"{what}.json").exists()
    )


@cli.command()
@click.argument("one")
@click.argument("other")
@click.option("--board", help="The board to read; the latest by default.")
@click.option(
    "--downstream",
    is_flag=True,
    help="Compare their downstream answers, by seed and item by item.",
)
@results_option
@json_option
def compare(
    one: str, other: str, board: str | None, downstream: bool, results: Path, as_json: bool
) -> int:
    """Compare two entrants of a board, given by their labels.

    Scores are paired by seed. Each difference has an interval and a verdict.
    """
    if downstream:
        return print_downstream_differences(one, other, board, results, as_json)
    from qbench.analysis.compare import format_comparison
    from qbench.analysis.results import Results

    comparisons = Results(results).compare(one, other, board)
    if as_json:
        print_json([comparison.to_json() for comparison in comparisons])
    elif comparisons:
        click.echo("\n".join([f"{one} − {other}", *map(format_comparison, comparisons)]))
    else:
        click.echo(f"{one} and {other} have no format in common")
    return 0


def print_downstream_differences(
    one: str, other: str, board: str | None, results: Path, as_json: bool
) -> int:
    """Print how the downstream answers of two entrants differ."""
    from qbench.analysis.compare_downstream import format_downstream_difference
    from qbench.analysis.results import Results

    differences = Results(results).compare_downstream(one, other, board)
    if as_json:
        print_json([difference.to_json() for difference in differences])
    elif differences:
        lines = (format_downstream_difference(d, one, other) for d in differences)
        click.echo("\n".join([f"{one} − {other}", *lines]))
    else:
        click.echo(f"{one} and {other} have answered no downstream task in common")
    return 0


@cli.command()
@click.argument("board", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; a site that is already there is replaced.",
)
@results_option
@json_option
def publish(board: str | None, out: Path, results: Path, as_json: bool) -> int:
    """Write a board (default: the latest) as a static site.

    The site is a page, the data behind it, and their checksums.
    """
    from dataclasses import asdict

    from qbench.analysis.results import Results
    from qbench.publish.site import publish_site
    from qbench.util.text import format_count

    site = publish_site(Results(results), board, out)
    if as_json:
        print_json(asdict(site))
    else:
        runs, tables = format_count(site.runs, "run"), format_count(site.sections, "table")
        kilobytes = site.sizes["index.html"] / 1000
        click.echo(f"{out / 'index.html'}: {site.board}, {runs} in {tables}, {kilobytes:.0f} kB")
    return 0
