"""Errors that a user can cause. Each is one line that says what, where and what to do; the command line prints it and exits with its code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


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


MOST_NAMES = 8
"""Names that a line lists."""


def unknown(
    kind: str, name: object, known: Iterable[str], where: str = "", listed: bool = False
) -> UsageError:
    """An error for a name that is not known, with its nearest neighbours; `listed` names the others, too."""
    names = sorted(set(known))
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hints = [f"did you mean {' or '.join(near)}?"] * bool(near) + [
        f"known: {some(names, str(name))}"
    ] * (listed or not near)
    return UsageError(
        f"{where + ': ' if where else ''}unknown {kind} {str(name)!r}; {' '.join(hints)}"
    )


def some(names: Sequence[str], like: str) -> str:
    """All of a few names; of many the nearest to a word, and how many more there are."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names) or "none"
    near = difflib.get_close_matches(like, names, n=MOST_NAMES, cutoff=0.0)
    return f"{', '.join(near)} and {len(names) - len(near)} more"


@contextmanager
def plain_disk_errors(results: Path) -> Iterator[None]:
    """What the disk of a results folder refuses, as one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QbenchError(
                f"{results}: no space left on the disk; nothing is lost: free some and run the same command again"
            ) from error
        raise QbenchError(f"{error.filename or results}: {error.strerror or error}") from error
