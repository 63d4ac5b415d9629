"""Finished runs: made again."""

from __future__ import annotations

from pathlib import Path

import click

from qbench.cli.common import cli, emit, json_option, results_option


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
