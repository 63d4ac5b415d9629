"""One writer to a results folder: whoever holds its lock. The kernel lets it go when the holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from qbench.errors import LockedError

LOCK = ".lock"


def hold(results: Path) -> IO[str]:
    """Take the lock, which is held until the file is closed."""
    file = open(results / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise LockedError(
            f"{results} is being written to by process {holder or '?'}: wait for it, or use another folder (--results)"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def release(file: IO[str]) -> None:
    """Let it go, and say so to whoever asks for the holder."""
    file.truncate(0)
    file.close()


def held_since(results: Path) -> int | None:
    """When the present holder took the lock, in the files' nanoseconds; None while nobody holds it. Trying the lock itself might turn a sweep
    away that begins at this moment, so the holder is asked for by its process."""
    try:
        holder, since = (
            int((results / LOCK).read_text(encoding="utf-8")),
            (results / LOCK).stat().st_mtime_ns,
        )
        os.kill(holder, 0)
    except PermissionError:
        return since
    except (OSError, ValueError):
        return None
    return since
