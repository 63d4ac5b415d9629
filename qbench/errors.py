"""Errors that a user can cause, and helpers that word them.

The message of such an error is one line: what is wrong, where, and what to do. The command line
prints it and exits with the error's code.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class QbenchError(Exception):
    """An error that the user can fix. `code` is the exit status of the command that meets it."""

    code = 1


class UsageError(QbenchError):
    """A wrong word in a command, a sweep file or a parameter."""

    code = 2


class LockedError(QbenchError):
    """Another process is writing to the same results folder."""

    code = 6


class Diverged(Exception):
    """The loss or a weight is no longer finite. This is a result of a run, not a fault."""


MAX_LISTED_NAMES = 8
"""The largest number of names that one message lists."""


def unknown_name_error(
    kind: str, name: object, known: Iterable[str], where: str = "", listed: bool = False
) -> UsageError:
    """Return an error for an unknown name that suggests similar known names.

    With `listed`, the message lists the known names even if there is a similar one.
    """
    names = sorted(set(known))
    similar = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hints = []
    if similar:
        hints.append(f"did you mean {' or '.join(similar)}?")
    if listed or not similar:
        hints.append(f"known: {abbreviate_names(names, str(name))}")
    prefix = f"{where}: " if where else ""
    return UsageError(f"{prefix}unknown {kind} {str(name)!r}; {' '.join(hints)}")


def abbreviate_names(names: Sequence[str], like: str) -> str:
    """Return the names as a list with commas.

    If there are too many for one line, only the names most similar to `like` are listed, followed
    by the number of the others.
    """
    if len(names) <= MAX_LISTED_NAMES:
        return ", ".join(names) or "none"
    similar = difflib.get_close_matches(like, names, n=MAX_LISTED_NAMES, cutoff=0.0)
    return f"{', '.join(similar)} and {len(names) - len(similar)} more"


@contextmanager
def explain_disk_errors(results: Path) -> Iterator[None]:
    """Turn an error of the operating system in a results folder into a `QbenchError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QbenchError(
                f"{results}: no space left on the disk; nothing is lost: free some space and run "
                "the same command again"
            ) from error
        raise QbenchError(f"{error.filename or results}: {error.strerror or error}") from error
