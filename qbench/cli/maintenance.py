"""This machine, this shell, this store."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.options import CommandGroup, cli, json_option, print_json, results_option


@cli.command()
@results_option
@json_option
def doctor(results: Path, as_json: bool) -> int:
    """Look at this machine and installation: what works, what is missing, what to do about it."""
    from qbench.checks.machine import examine_machine

    findings = examine_machine(results)
    if as_json:
        print_json([vars(f) for f in findings])
    else:
        for f in findings:
            click.echo(f"{'ok    ' if f.fine else 'NOT OK'} {f.what:<14} {f.detail}")
    return int(not all(f.fine for f in findings))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes qbench's words in SHELL: eval "$(qbench completion bash)"."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "qbench", "_QBENCH_COMPLETE").source())


@cli.group(cls=CommandGroup)
def db() -> None:
    """The store: an index of the run folders, which can always be made again from them."""


@db.command("rebuild")
@results_option
@json_option
def db_rebuild(results: Path, as_json: bool) -> int:
    """Make the store again from the run folders."""
    from qbench.store.consistency import rebuild_store

    report = rebuild_store(results)
    print_json(vars(report)) if as_json else click.echo(str(report))
    return 0


@db.command("check")
@results_option
@json_option
def db_check(results: Path, as_json: bool) -> int:
    """Compare the store with the run folders; exit code 5 if they differ."""
    from qbench.store.consistency import check_store

    report = check_store(results)
    print_json({**vars(report), "agrees": report.agrees}) if as_json else click.echo(str(report))
    return 0 if report.agrees else 5
