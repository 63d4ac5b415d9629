"""What the commands share: the group that they belong to, common options, and printing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbench.version import __version__

if TYPE_CHECKING:
    from rich.console import Console


UNLIMITED_WIDTH = 100_000
"""Columns of a table that is not printed to a terminal."""


def find_results_folder() -> Path:
    """Return the default results folder.

    It is `results/` in the checkout that qbench runs from, or in the current directory if qbench is
    installed.
    """
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "results" if (checkout / "pyproject.toml").exists() else Path("results")


results_option = click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="QBENCH_RESULTS",
    default=find_results_folder,
    show_default="results/",
    help="Folder of the runs and the store.",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device to use: auto, cpu, cuda or cuda:N.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class GroupSize(click.ParamType):  # type: ignore[type-arg]
    """A parameter that is `auto`, which becomes None, or a number from 1."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Return the value as a number or None."""
        return None if value == "auto" else click.IntRange(min=1).convert(value, param, ctx)


def print_json(data: Any) -> None:
    """Print data as JSON to standard output."""
    click.echo(json.dumps(data, indent=1, allow_nan=False, default=str))


def make_console() -> Console:
    """Return the console that tables are printed to.

    A table fits the width of a terminal. In a file or a pipe nothing is wrapped, unless the
    environment variable COLUMNS sets a width.
    """
    from rich.console import Console

    console = Console()
    if console.is_terminal or os.environ.get("COLUMNS"):
        return console
    return Console(width=UNLIMITED_WIDTH)


def format_click_error(error: click.ClickException) -> str:
    """Return click's message of several lines as one: what is wrong, and which help to read."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    path = context.command_path
    message = message[:1].lower() + message[1:]
    return f"{path.partition(' ')[2]}: {message}; see {path} --help".removeprefix(": ")


class CommandGroup(click.Group):
    """A group of commands that suggests similar names for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, or raise an error that suggests others."""
        from qbench.errors import unknown_name_error

        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_name_error("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """The benchmark and leaderboard harness for quantization-aware training."""
