"""Helpers for tests that watch processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def wait_until(condition: Callable[[], Any], limit_s: float = 30) -> Any:
    """Wait until a condition returns something true, and return that."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


def is_alive(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        return read_stat(pid)[0] not in "ZX"
    except OSError:
        return False


def parent_pid(pid: int) -> int:
    """Return the process that has started a process."""
    return int(read_stat(pid)[1])


def list_children(pid: int) -> list[int]:
    """Return the living processes that a process has started."""
    return [child for child, stat in iterate_living() if int(stat[1]) == pid]


def list_session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    return [pid for pid, stat in iterate_living() if int(stat[3]) == leader]


def iterate_living() -> Iterator[tuple[int, list[str]]]:
    """Yield the living processes of this machine, each with its status."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = read_stat(int(path.name))
            if stat[0] not in "ZX":
                yield int(path.name), stat


def read_stat(pid: int) -> list[str]:
    """Return the state, parent, group and session of a process, and what Linux says after them."""
    # The command stands in parentheses in front, and may contain blanks.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
