"""Engines: where groups of runs are executed.

The engine `local` is built in; other engines are entry points of the group `qbench.engines`. An
engine is given groups of runs to execute and reports what happens to them. It knows nothing of
sweeps, stores or boards. Results arrive as the files of a run in the attempt's folder: an engine
whose workers share no disk with the coordinator writes these files there itself.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qbench.execution.assignment import Assignment, Execution


class Engine(ABC):
    """Executes groups of runs somewhere."""

    @classmethod
    @abstractmethod
    def open(cls, options: EngineOptions) -> Engine:
        """Return an engine that is ready to use.

        An engine that is not available raises an error here, before anything is written.
        """

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The number of groups that can run at once."""

    @property
    def remote_device(self) -> str | None:
        """The kind of device, `cpu` or `cuda`, that groups use; None if they use this machine."""
        return None

    @abstractmethod
    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        """Start a group. The caller chooses the number that identifies it in later events."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Event]:
        """Return what has happened since the last call, and wait up to `timeout_s` for it."""

    @abstractmethod
    def cancel(self, group: int) -> None:
        """Stop a group now. An `ended` event still follows."""

    @abstractmethod
    def close(self) -> None:
        """Stop all groups and free all resources."""


@dataclass(frozen=True)
class EngineOptions:
    """What the user asks of an engine. An engine refuses the options that it cannot honour."""

    workers: int | None = None
    """Largest number of groups at once."""
    device: str = "auto"
    preload: tuple[str, ...] = ()
    """Modules of the sweep's plugins, which workers import once."""
    address: str | None = None
    """Address of a cluster."""
    cpus: float | None = None
    gpus: float | None = None
    """CPUs and GPUs that a group takes; fractions are allowed if the engine can share devices."""
    processes: int = 1
    """Number of processes that train one run together."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a group.

    `started`: a run of the group has begun. `step`: a run of the group has made progress.
    `ended`: the worker of the group is gone, for whatever reason.
    """

    group: int
    kind: Literal["started", "step", "ended"]
    key: str = ""
    """The run's key; empty if the event is about the whole group."""
    details: dict[str, Any] = field(default_factory=dict)
    """For `step`: step, steps and loss. For `ended`: exitcode, which is minus the signal's number
    after a signal; `hung` or `late` if the engine killed the worker; `cancelled` if asked to."""


# ---- how a worker ended ----


def describe_ending(details: Mapping[str, Any], execution: Execution) -> tuple[str, str]:
    """Return the reason and the message of a failure for a worker that left no result.

    Args:
        details: The details of the group's `ended` event.
        execution: The execution that the worker was given, for its time limits.
    """
    code = int(details.get("exitcode") or 0)
    # The engine's own reasons come first: a worker that it killed also has the exit code of a
    # signal.
    if details.get("late"):
        return "timeout", f"not finished after {execution.timeout_s:g} s"
    if details.get("hung"):
        return "timeout", f"no sign of life for {execution.silence_s:g} s"
    if details.get("gone"):
        return "signal", str(details["gone"])
    if code < 0:
        has_name = -code in signal.Signals.__members__.values()
        name = signal.Signals(-code).name if has_name else str(-code)
        # The kernel's out-of-memory killer sends SIGKILL and says nothing to the process.
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        return "signal", f"{details.get('who', 'the worker')} was killed by {name}{hint}"
    message = f"the worker ended with exit code {code} and left no result; see log.txt"
    return "plugin", str(details.get("error") or message)


def max_tries(details: Mapping[str, Any]) -> int:
    """Return how often a sweep tries a run whose worker was ended from outside.

    The loss of a node says nothing against the run, so it may happen more often. There is still a
    limit, because a run may be what brings its nodes down.
    """
    return 10 if details.get("node") else 2
