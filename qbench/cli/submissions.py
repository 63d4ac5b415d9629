"""Submissions: runs packed for others, and others' runs looked at and taken in."""

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
    help="Evaluate the artefacts here (default); without, no run is more than claimed.",
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
@click.option("--note", help="A word to whoever receives it.")
@click.option("--by", help="Who submits.")
@results_option
@json_option
def submit(
    what: tuple[str, ...], out: Path, note: str | None, by: str | None, results: Path, as_json: bool
) -> int:
    """Pack finished runs into one file for somebody else's `qbench merge`. WHAT are boards, and keys of runs or the beginnings of keys."""
    from qbench.submissions.submit import submit_runs as pack

    packed = pack(results, what, out, note, by)
    print_json(vars(packed)) if as_json else click.echo(str(packed))
    return 0


@cli.command()
@bundle_argument
@score_option
@click.option(
    "--rerun",
    "again",
    metavar="N|all",
    help="Train N of its runs, drawn by chance, or all of them again and compare.",
)
@click.option(
    "--device", default="auto", show_default=True, help="Of --rerun: auto, cpu, cuda or cuda:N."
)
@json_option
def verify(bundle: Path, score: bool, again: str | None, device: str, as_json: bool) -> int:
    """Check what a BUNDLE says, one line a check; exit code 5 if something does not hold. Nothing is written."""
    from qbench.submissions.verify import verify_bundle as check

    report = check(
        bundle, score=score, rerun=parse_rerun_count(again), device=device, on_progress=make_progress_printer()
    )
    print_json(report.to_json()) if as_json else click.echo("\n".join(map(str, report.findings)))
    return 0 if report.passed else 5


@cli.command()
@click.argument("what", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--own",
    is_flag=True,
    help="WHAT are results folders of your own, such as shards of a sweep; their runs stay your own.",
)
@score_option
@results_option
@json_option
def merge(what: tuple[Path, ...], own: bool, score: bool, results: Path, as_json: bool) -> int:
    """Check a bundle and take its runs in, all or none; exit code 5 if something does not hold. The same again adds nothing."""
    if own:
        return merge_own(what, results, as_json)
    bundle = what[0]
    if len(what) > 1 or bundle.is_dir():
        raise UsageError(
            f"{bundle}: one bundle at a time"
            if len(what) > 1
            else f"{bundle}: is a folder; one of your own is merged with --own"
        )
    from qbench.submissions.merge import merge_bundle as take_in

    merged = take_in(results, bundle, score=score, on_progress=make_progress_printer())
    if as_json:
        print_json(
            {
                **vars(merged),
                "report": merged.report.to_json(),
                "boards": [vars(board) for board in merged.boards],
            }
        )
    else:
        shown = (
            merged.report.findings
            if merged.report.passed
            else [f for f in merged.report.findings if f.verdict == "FAILED"]
        )
        click.echo("\n".join([*map(str, shown), str(merged)]))
    return 0 if merged.report.passed else 5


def merge_own(folders: tuple[Path, ...], results: Path, as_json: bool) -> int:
    from qbench.store.merge_folder import merge_results_folder

    gathered = [merge_results_folder(results, folder) for folder in folders]
    if as_json:
        print_json([{**vars(one), "boards": [vars(share) for share in one.boards]} for one in gathered])
    else:
        click.echo(
            "\n".join(
                [line for one in gathered for line in one.lines]
                + [str(share) for share in gathered[-1].boards]
            )
        )
    return 5 if any(one.refused for one in gathered) else 0


def parse_rerun_count(word: str | None) -> int | None:
    """`--rerun`: a number, or None for all."""
    if word == "all":
        return None
    if word is not None and not (word.isascii() and word.isdigit()):
        raise UsageError(f"--rerun: {word!r} is neither a number nor `all`")
    return int(word or 0)


def make_progress_printer() -> Callable[[str], None]:
    """One line that is written over, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda line: click.echo(f"\r\x1b[K{line}\r", err=True, nl=False)
