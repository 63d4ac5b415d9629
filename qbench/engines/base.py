"""Engines: where groups of runs are executed.

The engine `local` is built in; other engines are entry points of the group `qbench.engines`. An
engine is given groups of runs to execute and reports what happens to them. It knows nothing of
sweeps, stores or boards. Results arrive as the files of a run in the attempt's folder: an engine
whose workers share no disk with the coordinator writes these files there itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
