"""What the commands share: the group that they belong to, options, and printing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qbench.version import __version__

if TYPE_CHECKING:
    from rich.console import Console


ENDLESS = 100_000
"""Columns of what is no terminal."""


def results_folder() -> Path:
    """`results/` of the checkout that qbench runs from; of the current directory for an installed one."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "results" if (checkout / "pyproject.toml").exists() else Path("results")


results_option = click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), envvar="QBENCH_RESULTS", default=results_folder, show_default="results/",
    help="Folder of the runs and the store.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class GroupSize(click.ParamType):  # type: ignore[type-arg]
    """`auto`, which is None, or a number from 1."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        return None if value == "auto" else click.IntRange(min=1).convert(value, param, ctx)


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=1, allow_nan=False, default=str))


def make_console() -> Console:
    """Where tables go. A terminal keeps its width; in a file or a pipe nothing is wrapped, unless COLUMNS asks for it."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal or os.environ.get("COLUMNS") else Console(width=ENDLESS)


def format_click_error(error: click.ClickException) -> str:
    """What click says in three lines: what is wrong, and where to read on."""
    words = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return words
    path = context.command_path
    words = words[:1].lower() + words[1:]
    return f"{path.partition(' ')[2]}: {words}; see {path} --help".removeprefix(": ")


class CommandGroup(click.Group):
    """Suggests neighbours for a command that does not exist."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from qbench.errors import unknown_name_error

        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_name_error("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version")
def cli() -> None:
    """The benchmark and leaderboard harness for quantization-aware training."""
