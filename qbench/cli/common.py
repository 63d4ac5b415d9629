"""What the commands share: the group that they belong to, options, and printing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from qbench import __version__


def results_folder() -> Path:
    """`results/` of the checkout that qbench runs from; of the current directory for an installed one."""
    checkout = Path(__file__).resolve().parents[2]
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
