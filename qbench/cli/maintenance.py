"""Commands for the machine, the shell and the store: `doctor`, `completion` and `db`."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.options import CommandGroup, cli, json_option, print_json, results_option


@cli.command()
@results_option
@json_option
def doctor(results: Path, as_json: bool) -> int:
    """Check this machine and installation: what works, what is missing, what to do about it.

    The exit code is 1 if a check fails.
    """
    from qbench.checks.machine import examine_machine

    findings = examine_machine(results)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            verdict = "ok" if finding.fine else "NOT OK"
            click.echo(f"{verdict:<6} {finding.what:<14} {finding.detail}")
    return int(not all(finding.fine for finding in findings))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for SHELL: eval "$(qbench completion bash)"."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "qbench", "_QBENCH_COMPLETE").source())


@cli.group(cls=CommandGroup)
def db() -> None:
    """Maintain the store, an index that can always be rebuilt from the run folders."""


@db.command("rebuild")
@results_option
@json_option
def db_rebuild(results: Path, as_json: bool) -> int:
    """Rebuild the store from the run folders."""
    from qbench.store.consistency import rebuild_store

    report = rebuild_store(results)
    print_json(vars(report)) if as_json else click.echo(str(report))
    return 0


@db.command("check")
@results_option
@json_option
def db_check(results: Path, as_json: bool) -> int:
    """Compare the store with the run folders. The exit code is 5 if they differ."""
    from qbench.store.consistency import check_store

    report = check_store(results)
    print_json({**vars(report), "agrees": report.agrees}) if as_json else click.echo(str(report))
    return 0 if report.agrees else 5
