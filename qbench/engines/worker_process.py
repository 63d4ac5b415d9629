"""Starting a worker process, and what happens inside it.

The first half is used by processes that start workers: the environment that a worker inherits. The
second half runs in the worker: it trains its group, reports over a pipe, and ends with its parent.
"""

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
"""Time between SIGTERM and SIGKILL."""
WORKER_ENVIRONMENT = {
    # Workers run one per core, so threads within a worker would only compete for the cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Training frees and allocates the same large blocks at every step. By default glibc gives them
    # back to the kernel and pages them in again. Keeping them saves 5 to 8 % of the time.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=67108864",
}
PRELOAD = "QBENCH_PRELOAD"
"""Environment variable that names the modules which `engines/preload.py` imports."""
GROUP_FUNCTION = "execute_group"
"""If the module of a worker's run function has a function of this name, it trains whole groups."""
PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the option that sets the signal sent when the parent dies."""


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    # The affinity of the process respects taskset and containers, and os.cpu_count does not.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_environment(more: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables for workers that are started in this block.

    They must be set before a worker's interpreter starts, because glibc and OpenMP read them only
    once. Variables that the user has set keep their value, except those in `more`.
    """
    values = {k: v for k, v in WORKER_ENVIRONMENT.items() if k not in os.environ} | dict(more)
    # The fork server does not inherit sys.path (https://github.com/python/cpython/issues/117378).
    values["PYTHONPATH"] = os.pathsep.join(sys.path)
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def hidden_main_module() -> Iterator[None]:
    """Hide the caller's main module from processes that are started in this block.

    multiprocessing imports the main module again in each new process. A user's script without
    `if __name__ == "__main__"` would start its sweep again in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started in this block, and from their children.

    The terminal sends SIGINT to the whole process group, but only the coordinator should act on it.
    A blocked signal stays blocked in child processes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the worker ----


def run_worker(
    assignments: list[Assignment], execution: Execution, run_function: str, link: Connection
) -> None:
    """Train a group of runs and report its progress. This is the main function of a worker.

    Args:
        assignments: The runs of the group.
        execution: How they are carried out.
        run_function: The function that trains one run, as `module:function`.
        link: The pipe to the engine. It closes when the engine's process ends.
    """
    # A signal mask can be changed by any library, so SIGINT is ignored as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(link)
    try:
        # Importing torch and the plugins may print, so the output is redirected first.
        _redirect_output(assignments[0].folder)
        _train_group(assignments, execution, run_function, link)
    except BaseException as error:  # noqa: BLE001 - the coordinator must hear of every error
        traceback.print_exc()
        _send(link, "failed", "", _describe_error(error))
        sys.exit(1)
    finally:
        with suppress(OSError, ValueError):
            _delete_empty_log(assignments[0].folder)


def _train_group(
    assignments: list[Assignment], execution: Execution, run_function: str, link: Connection
) -> None:
    """Train the runs of a group: stacked if possible, else one after the other."""
    import torch

    # OMP_NUM_THREADS is not enough if the user has set it. The number of threads can change the
    # last bits of a result, so it must not depend on the user's environment.
    torch.set_num_threads(1)
    module_name, _, name = run_function.partition(":")
    module = importlib.import_module(module_name)
    run_one, train_stacked = getattr(module, name), getattr(module, GROUP_FUNCTION, None)
    asks_questions = any(assignment.downstream for assignment in assignments)
    if train_stacked and len(assignments) > 1 and not asks_questions:
        _train_stacked(train_stacked, assignments, execution, link)
        return
    for assignment in assignments:
        _redirect_output(assignment.folder)
        key = assignment.folder.parent.name
        _send(link, "started", key, {"pid": os.getpid()})
        run_one(assignment, execution, _step_reporter(link, key))
        _delete_empty_log(assignment.folder)


def _train_stacked(
    train_stacked: Callable[..., Any],
    assignments: list[Assignment],
    execution: Execution,
    link: Connection,
) -> None:
    """Train a group in one pass. Its output goes to the log of the first run."""
    keys = [assignment.folder.parent.name for assignment in assignments]
    for key in keys:
        _send(link, "started", key, {"pid": os.getpid()})
    train_stacked(assignments, execution, [_step_reporter(link, key) for key in keys])
    _delete_empty_log(assignments[0].folder)


def _step_reporter(link: Connection, key: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that sends the progress of one run to the engine."""
    return lambda details: _send(link, "step", key, details)


def _describe_error(error: BaseException) -> dict[str, Any]:
    """Return the details of a failure: its first line, and whether the disk is full."""
    lines = str(error).strip().splitlines()
    return {
        "error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300],
        # A full disk is not the run's fault, and the next run would fail as well.
        "disk_full": isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT),
        # An error that knows more, such as which process was lost, overrides what is above.
        **getattr(error, "details", {}),
    }


def _send(link: Connection, kind: str, key: str, details: dict[str, Any]) -> None:
    try:
        link.send((kind, key, details))
    except OSError:
        # The coordinator is gone. A normal exit would run handlers that may hang.
        os._exit(1)


def end_with_parent(link: Connection) -> None:
    """Make sure that this process ends when the process at the other end of `link` ends.

    There are two ways, because neither is enough. A thread waits for the link to close; it cannot
    run while a C function holds the interpreter's lock. The kernel sends SIGKILL when the parent
    dies; but the parent of a worker is the fork server, not the coordinator.
    """
    with suppress(AttributeError, TypeError, OSError):
        # The fork server ends when nobody holds this descriptor any more, and workers inherit it.
        # They close it, so that the fork server ends with the coordinator, and they end with it.
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    with suppress(AttributeError, OSError):
        # Only Linux has prctl. Elsewhere the thread must be enough.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait_for_end() -> None:
        # Nothing is ever sent to a worker: recv returns only when the other end is closed.
        with suppress(EOFError, OSError):
            link.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def _redirect_output(folder: Path) -> None:
    """Write all that is printed from now on to `log.txt` in a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # What is buffered belongs to the run before.
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # The descriptors are replaced, not sys.stdout: C libraries print as well.
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    # A worker may be killed at any moment, and a buffered line would be lost.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # A segmentation fault then leaves a Python traceback in the log.
    faulthandler.enable()


def _delete_empty_log(folder: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if (folder / "log.txt").stat().st_size == 0:
        (folder / "log.txt").unlink()
