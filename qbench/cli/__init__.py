"""The command line: a module for each kind of command. Bodies are short: what they do lives elsewhere and is imported when it is needed."""

from __future__ import annotations

import sys

import click

from qbench.cli import boards, maintenance, plugins, runs, submissions, sweeps
from qbench.cli.options import cli, format_click_error
from qbench.errors import QbenchError

__all__ = ["boards", "cli", "main", "maintenance", "plugins", "runs", "submissions", "sweeps"]


def main() -> None:
    """The entry point: every error that a user can cause is one line, and every exit code means something."""
    try:
        code = cli.main(prog_name="qbench", standalone_mode=False)
    except QbenchError as error:
        click.echo(f"qbench: {error}", err=True)
        code = error.code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"qbench: {format_click_error(error)}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
