"""Errors that a user can cause. Each is one line that says what, where and what to do; the command line prints it and exits with its code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QbenchError(Exception):
    """Something a user can mend. `code` is the exit status of the command that met it (design: 2 usage, 3 failed cells, …)."""

    code = 1


class UsageError(QbenchError):
    """A wrong word in a command, a sweep file or a parameter."""

    code = 2


class LockedError(QbenchError):
    """Another process is writing to the same results folder."""

    code = 6


class Diverged(Exception):
    """The loss or a weight is no longer finite. An outcome of a run, not a fault of the harness."""


def unknown(kind: str, name: object, known: Iterable[str], where: str = "") -> UsageError:
    """An error for a name that is not known, with its nearest neighbours."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return UsageError(f"{where + ': ' if where else ''}unknown {kind} {str(name)!r}; {hint}")
