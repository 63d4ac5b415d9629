"""What happens inside a worker process."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import importlib
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from qbench.execution.assignment import Assignment, Execution

GRACE_S = 2.0
"""From a polite request to end to an impolite one."""
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Training frees and takes the same large blocks every step: keep them instead of paging them in again (5–8 %).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=67108864",
}
PRELOAD = "QBENCH_PRELOAD"
"""Environment variable that tells the fork server which modules to import (engines/warm.py)."""
PR_SET_PDEATHSIG = 1


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_environment(more: Mapping[str, str]) -> Iterator[None]:
    """What must stand in the environment before a worker's interpreter starts; the user's own settings win."""
    wanted = {k: v for k, v in WORKER_ENVIRONMENT.items() if k not in os.environ} | dict(more)
    wanted["PYTHONPATH"] = os.pathsep.join(
        sys.path
    )  # the fork server does not take sys.path from us (bpo gh-117378)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def anonymous_main() -> Iterator[None]:
    """A new process imports the caller's main module again: a script without a guard would sweep from its workers. Hide it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that are started in here, and theirs, never see Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the worker ----


def work(assignments: list[Assignment], execution: Execution, train: str, link: Connection) -> None:
    """Train a group, one run after another, and say how it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(link)
    module, _, name = train.partition(":")
    try:
        _print_to(assignments[0].folder)
        import torch

        torch.set_num_threads(1)
        trainer = importlib.import_module(module)
        run_one, run_group = getattr(trainer, name), getattr(trainer, "run_group", None)
        if (
            run_group
            and len(assignments) > 1
            and not any(assignment.downstream for assignment in assignments)
        ):
            _side_by_side(run_group, assignments, execution, link)
            return
        for assignment in assignments:
            _print_to(assignment.folder)
            key = assignment.folder.parent.name
            _say(link, "started", key, {"pid": os.getpid()})
            run_one(
                assignment, execution, lambda details, key=key: _say(link, "step", key, details)
            )
            _drop_log_if_empty(assignment.folder)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the coordinator must hear of it
        traceback.print_exc()
        words = str(error).strip().splitlines()
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        _say(
            link,
            "failed",
            "",
            {
                "error": f"{type(error).__name__}: {words[0] if words else ''}"[:300],
                "disk_full": full,
                **getattr(error, "details", {}),
            },
        )
        sys.exit(1)
    finally:
        with suppress(OSError, ValueError):
            _drop_log_if_empty(assignments[0].folder)


def _side_by_side(
    run_group: Callable[..., Any],
    assignments: list[Assignment],
    execution: Execution,
    link: Connection,
) -> None:
    """Train a group in one pass. What it prints goes to the first run's folder."""
    keys = [assignment.folder.parent.name for assignment in assignments]
    for key in keys:
        _say(link, "started", key, {"pid": os.getpid()})
    run_group(
        assignments,
        execution,
        [lambda details, key=key: _say(link, "step", key, details) for key in keys],
    )
    _drop_log_if_empty(assignments[0].folder)


def _say(link: Connection, kind: str, key: str, details: dict[str, Any]) -> None:
    try:
        link.send((kind, key, details))
    except OSError:
        os._exit(1)  # nobody is listening any more


def end_with(link: Connection) -> None:
    """End this process when the other end of the link is gone, or the one that started it."""
    with suppress(AttributeError, TypeError, OSError):
        # Workers hold the fork server alive by this; let go, so that it ends with the coordinator and we with it.
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        with suppress(EOFError, OSError):
            link.recv_bytes()  # nothing is ever sent: it returns when the other end is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _print_to(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()


def _drop_log_if_empty(folder: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if (folder / "log.txt").stat().st_size == 0:
        (folder / "log.txt").unlink()
