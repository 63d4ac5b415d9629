"""Engines: where groups of runs are trained. `local` is built in; others register under `qbench.engines`.

An engine is told to train groups and asked what has happened; it knows nothing of sweeps, stores or boards. Results come
back as the files of a run in the attempt's folder (an engine without a shared disk writes them there itself).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qbench.execution.assignment import Assignment, Execution


@dataclass(frozen=True)
class Wishes:
    """What a command says of where to train. An engine takes what concerns it and refuses the rest."""

    workers: int | None = None
    """How many groups at once, at most."""
    device: str = "auto"
    preload: tuple[str, ...] = ()
    """Modules of the sweep's plugins, for workers to import once."""
    address: str | None = None
    """Of a cluster."""
    cpus: float | None = None
    gpus: float | None = None
    """CPUs and GPUs that a run takes; parts of one are allowed where the engine can share it."""
    processes: int = 1
    """That train a run together."""


@dataclass(frozen=True)
class Event:
    """What happened to a group: started, a step of one of its runs, or over (and how its process ended)."""

    group: int
    kind: Literal["started", "step", "ended"]
    key: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """step: step, steps, loss. ended: exitcode (0, or minus the signal), and `hung` or `late` if the engine killed it."""


class Engine(ABC):
    """Trains groups of runs somewhere."""

    @classmethod
    @abstractmethod
    def open(cls, wishes: Wishes) -> Engine:
        """The engine as a command wants it. One that cannot be had is an error here, before anything is written."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many groups run at once."""

    @property
    def remote_device(self) -> str | None:
        """The kind of device that its groups train on, `cpu` or `cuda`, where they do not train on this machine."""
        return None

    @abstractmethod
    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        """Start training a group, named by a number of the caller's."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Event]:
        """What has happened since the last call; waits up to `timeout_s` for something to."""

    @abstractmethod
    def cancel(self, group: int) -> None:
        """Stop a group now. Its end is still reported."""

    @abstractmethod
    def close(self) -> None:
        """Stop everything and free it."""
