"""The command line, with a module for each kind of command.

A command's body is short: it imports what does the work when the command runs, so that the command
line starts fast.
"""

from __future__ import annotations

import sys

import click

from qbench.cli import boards, maintenance, plugins, runs, submissions, sweeps
from qbench.cli.options import cli, format_click_error
from qbench.errors import QbenchError

__all__ = ["boards", "cli", "main", "maintenance", "plugins", "runs", "submissions", "sweeps"]


def main() -> None:
    """Run the command line and exit.

    Every error that a user can cause is one line. The exit codes are 0 ok, 1 internal, 2 usage,
    3 finished with failed cells, 4 incomplete, 5 disagreement, 6 locked, 130 interrupted.
    """
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
        # Whoever read the output, such as `head`, has enough. With standard error closed, Python
        # does not complain at exit that it cannot flush standard output.
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
