"""Commands for plugins: list methods and tasks, check a method, and write a new one."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.options import CommandGroup, cli, json_option, make_console, print_json


@cli.command()
@json_option
def methods(as_json: bool) -> int:
    """List the registered methods with version, paper, provenance and hyper-parameters."""
    from qbench.plugins.describe import list_methods

    entries = list_methods()
    if as_json:
        print_json(entries)
    else:
        from qbench.terminal.plugins import show_methods

        show_methods(entries, make_console())
    return 0


@cli.command()
@json_option
def tasks(as_json: bool) -> int:
    """List the registered tasks with sizes, metric, recipe and options."""
    from qbench.plugins.describe import list_tasks

    entries = list_tasks()
    if as_json:
        print_json(entries)
    else:
        from qbench.terminal.plugins import show_tasks

        show_tasks(entries, make_console())
    return 0


@cli.command()
@click.argument("method")
@click.option(
    "--quick", is_flag=True, help="Check fewer formats and compile nothing: under half a minute."
)
@json_option
def check(method: str, quick: bool, as_json: bool) -> int:
    """Check that METHOD keeps the contract, one line a check. The exit code is 1 if one fails."""
    import torch

    from qbench.checks.method_contract import check_method

    # The toy task is so small that more threads would make it slower.
    torch.set_num_threads(1)
    findings = []
    for finding in check_method(method, quick):
        findings.append(vars(finding))
        if not as_json:
            verdict = "ok" if finding.passed else "FAILED"
            line = f"{verdict:<6} {finding.check:<10} {finding.where:<16} {finding.detail}"
            click.echo(line.rstrip())
    failed = sum(not f["passed"] for f in findings)
    if as_json:
        print_json(findings)
    else:
        click.echo(f"{method}: {len(findings) - failed} passed, {failed} failed")
    return int(failed > 0)


@cli.group(cls=CommandGroup)
def new() -> None:
    """Write the package of a new plugin, for you to rewrite."""


@new.command("method")
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Folder to write; ./qbench-NAME by default."
)
@json_option
def new_method(name: str, folder: Path | None, as_json: bool) -> int:
    """Write a package with the method NAME: one file, its test, and what installs it."""
    from qbench.plugins.new_method import distribution_name, write_method_package

    folder = folder or Path(distribution_name(name))
    paths = [str(path) for path in write_method_package(name, folder)]
    print_json(paths) if as_json else click.echo("\n".join(paths))
    click.echo(f"next: pip install -e {folder} && qbench check {name}", err=True)
    return 0
