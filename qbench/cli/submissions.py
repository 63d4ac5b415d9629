"""Commands for submissions: pack runs for others, check others' runs, and merge them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from qbench.cli.options import cli, json_option, print_json, results_option
from qbench.errors import UsageError

score_option = click.option(
    "--score/--no-score",
    default=True,
    help="Evaluate the artefacts here (default). Without it, every score is only claimed.",
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@cli.command()
@click.argument("what", nargs=-1, required=True)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write: NAME.qbench.zip.",
)
@click.option("--note", help="A note to whoever receives the file.")
@click.option("--by", help="Who submits.")
@results_option
@json_option
def submit(
    what: tuple[str, ...], out: Path, note: str | None, by: str | None, results: Path, as_json: bool
) -> int:
    """Pack finished runs into one file, for somebody else's `qbench merge`.

    WHAT are names of boards, keys of runs, or beginnings of keys.
    """
    from qbench.submissions.submit import submit_runs

    packed = submit_runs(results, what, out, note, by)
    print_json(vars(packed)) if as_json else click.echo(str(packed))
    return 0


@cli.command()
@bundle_argument
@score_option
@click.option(
    "--rerun",
    metavar="N|all",
    help="Train N runs, drawn at random, or all of them again, and compare.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device for --rerun: auto, cpu, cuda or cuda:N.",
)
@json_option
def verify(bundle: Path, score: bool, rerun: str | None, device: str, as_json: bool) -> int:
    """Check the claims of a BUNDLE, one line a check. Nothing is written.

    The exit code is 5 if a check fails.
    """
    from qbench.submissions.verify import verify_bundle

    report = verify_bundle(
        bundle,
        score=score,
        rerun=parse_rerun_count(rerun),
        device=device,
        on_progress=make_progress_printer(),
    )
    print_json(report.to_json()) if as_json else click.echo("\n".join(map(str, report.findings)))
    return 0 if report.passed else 5


@cli.command()
@click.argument("what", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--own",
    is_flag=True,
    help="WHAT are your own results folders, such as shards of a sweep. Their runs stay your own.",
)
@score_option
@results_option
@json_option
def merge(what: tuple[Path, ...], own: bool, score: bool, results: Path, as_json: bool) -> int:
    """Check a bundle and add its runs to the results, all or none.

    The exit code is 5 if a check fails. Merging the same bundle again adds nothing.
    """
    if own:
        return merge_own_folders(what, results, as_json)
    bundle = what[0]
    if len(what) > 1:
        raise UsageError(f"{bundle}: one bundle at a time")
    if bundle.is_dir():
        raise UsageError(f"{bundle}: is a folder; one of your own is merged with --own")
    from qbench.submissions.merge import merge_bundle

    merged = merge_bundle(results, bundle, score=score, on_progress=make_progress_printer())
    report = merged.report
    if as_json:
        boards = [vars(board) for board in merged.boards]
        print_json({**vars(merged), "report": report.to_json(), "boards": boards})
    else:
        # What passed is of no interest if the bundle was refused.
        findings = [f for f in report.findings if report.passed or f.verdict == "FAILED"]
        click.echo("\n".join([*map(str, findings), str(merged)]))
    return 0 if report.passed else 5


def merge_own_folders(folders: tuple[Path, ...], results: Path, as_json: bool) -> int:
    """Merge results folders of one's own, and print what was merged."""
    from qbench.store.merge_folder import merge_results_folder

    merged = [merge_results_folder(results, folder) for folder in folders]
    if as_json:
        print_json([{**vars(one), "boards": [vars(b) for b in one.boards]} for one in merged])
    else:
        lines = [line for one in merged for line in one.lines]
        # The last merge knows how far each board is with all folders.
        click.echo("\n".join([*lines, *map(str, merged[-1].boards)]))
    return 5 if any(one.refused for one in merged) else 0


def parse_rerun_count(word: str | None) -> int | None:
    """Return the value of --rerun: a number (0 by default), or None for all runs."""
    if word == "all":
        return None
    if word is not None and not (word.isascii() and word.isdigit()):
        raise UsageError(f"--rerun: {word!r} is neither a number nor `all`")
    return int(word or 0)


def make_progress_printer() -> Callable[[str], None]:
    """Return what prints progress: on a terminal a line that it overwrites, elsewhere nothing."""
    if not sys.stderr.isatty():
        return lambda _: None
    # Clear the line, print, and return to its beginning, so that the next output overwrites it.
    return lambda line: click.echo(f"\r\x1b[K{line}\r", err=True, nl=False)
