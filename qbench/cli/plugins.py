"""Methods and tasks: what is registered, whether it keeps the contract, and the beginning of another."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.options import CommandGroup, cli, json_option, make_console, print_json


@cli.command()
@json_option
def methods(as_json: bool) -> int:
    """The registered methods with version, paper, provenance and hyper-parameters."""
    from qbench.plugins.describe import list_methods

    found = list_methods()
    if as_json:
        print_json(found)
    else:
        from qbench.terminal.plugins import show_methods

        show_methods(found, make_console())
    return 0


@cli.command()
@json_option
def tasks(as_json: bool) -> int:
    """The registered tasks with sizes, metric, recipe and options."""
    from qbench.plugins.describe import list_tasks

    found = list_tasks()
    if as_json:
        print_json(found)
    else:
        from qbench.terminal.plugins import show_tasks

        show_tasks(found, make_console())
    return 0


@cli.command()
@click.argument("method")
@click.option("--quick", is_flag=True, help="Fewer formats, nothing compiled: under half a minute.")
@json_option
def check(method: str, quick: bool, as_json: bool) -> int:
    """Run the conformance kit on METHOD: one line a check; exit code 1 if one fails."""
    import torch

    from qbench.checks.method_contract import check_method

    torch.set_num_threads(1)
    findings = []
    for finding in check_method(method, quick):
        findings.append(vars(finding))
        if not as_json:
            click.echo(
                f"{'ok    ' if finding.passed else 'FAILED'} {finding.check:<10} {finding.where:<16} {finding.detail}".rstrip()
            )
    failed = sum(not f["passed"] for f in findings)
    print_json(findings) if as_json else click.echo(
        f"{method}: {len(findings) - failed} passed, {failed} failed"
    )
    return int(failed > 0)


@cli.group(cls=CommandGroup)
def new() -> None:
    """The beginning of a plugin package, to be rewritten."""


@new.command("method")
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to write it; ./qbench-NAME by default."
)
@json_option
def new_method(name: str, folder: Path | None, as_json: bool) -> int:
    """Write a package with the method NAME: one file, its test, and what installs and registers it."""
    from qbench.plugins.new_method import distribution_name, write_method_package

    written = write_method_package(name, folder := folder or Path(distribution_name(name)))
    print_json([str(path) for path in written]) if as_json else click.echo("\n".join(map(str, written)))
    click.echo(f"next: pip install -e {folder} && qbench check {name}", err=True)
    return 0
