"""The lock of a results folder, which allows one writer at a time.

The kernel releases the lock when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from qbench.errors import LockedError

LOCK_FILE = ".lock"


def acquire_lock(results: Path) -> IO[str]:
    """Take the lock and return its file. The lock is held until the file is closed."""
    # "a+" neither truncates the file, which may hold another process's id, nor fails if it is new.
    file = open(results / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise LockedError(
            f"{results} is being written to by process {holder or '?'}: "
            "wait for it, or use another folder (--results)"
        ) from None
    # Other processes read this while the lock is held, so it must not stay in a buffer.
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def release_lock(file: IO[str]) -> None:
    """Release the lock. The file is emptied, so `find_lock_time` sees that nobody holds it."""
    file.truncate(0)
    file.close()


def find_lock_time(results: Path) -> int | None:
    """Return when the lock was taken, in nanoseconds of file time; None while nobody holds it.

    The time is that of the file's last change, so it can be compared with the times of other files.
    """
    # This must not try the lock itself, even for a moment: a sweep that starts just then would be
    # refused. Signal 0 only asks whether the process that is named in the file exists.
    file = results / LOCK_FILE
    try:
        holder, since = int(file.read_text(encoding="utf-8")), file.stat().st_mtime_ns
        os.kill(holder, 0)
    except PermissionError:
        return since  # the process exists and belongs to another user
    except (OSError, ValueError):
        return None
    return since
