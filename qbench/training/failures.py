"""Why a run ended without a score, as a reason that a table can show."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qbench.errors import Diverged, QbenchError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Failed(Exception):
    """A run ended without a score, for a reason that a table can show."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def failing_with(reason: str) -> Iterator[None]:
    """Turn whatever goes wrong in this context into a failure for that reason.

    Lack of memory has a reason of its own. A full disk is no fault of the run's and passes through.
    """
    try:
        yield
    except (Failed, Diverged):
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Failed("oom", first_line(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise Failed(reason, first_line(error)) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with its type unless it is one of ours."""
    lines = str(error).strip().splitlines()
    if isinstance(error, QbenchError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
