"""Why a run ended without a score, as a reason a table can show."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qbench.errors import Diverged, QbenchError

# ---- what goes wrong ----


class Failed(Exception):
    """A run ended without a score, for a reason that a table can show."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def blame(reason: str) -> Iterator[None]:
    """Whatever goes wrong in here is a failure of that kind. A full disk is nobody's fault and passes through."""
    try:
        yield
    except (Failed, Diverged):
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Failed("oom", first_line(error)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise Failed(reason, first_line(error)) from error


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (
        text[0]
        if isinstance(error, QbenchError) and text
        else f"{type(error).__name__}: {text[0] if text else ''}"[:300]
    )
