"""Engines: where groups of runs are trained. `local` is built in; others register under `qbench.engines`.

An engine is told to train groups and asked what has happened; it knows nothing of sweeps, stores or boards. Results come
back as the files of a run in the attempt's folder (an engine without a shared disk writes them there itself).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qbench.config import RunConfig


@dataclass(frozen=True)
class Execution:
    """How a run is carried out. Nothing in it may move a score, so nothing in it is part of the key."""

    device: str = "auto"
    compile: bool | None = None
    """None: compiled on CUDA, and on a CPU where it pays (`grouping.compiling_pays`)."""
    graphs: bool = False
    """Record a step once and repeat it, where method and optimizer allow it: on CUDA as a graph."""
    accumulate: int = 1
    """Micro-batches a step."""
    timeout_s: float = 0.0
    """Longest life of an attempt; 0 is no limit."""
    silence_s: float = 600.0
    """Longest time without a sign of life before a worker counts as hung."""
    checkpoint_s: float = 60.0
    """Wall time between checkpoints."""
    gpus_per_run: int = 1
    """Processes that train a run together, each on a GPU of its own, or all on the CPU."""
    fsdp: bool = False
    """Whether they divide the parameters and the optimizer's state among them, too."""
    group: int | None = None
    """Runs that train side by side at most. None: as many as pay."""


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
class Assignment:
    """One run of a group: what to train and the folder of the attempt."""

    config: RunConfig
    folder: Path
    resume: Path | None = None
    """The folder of an earlier attempt whose checkpoint to go on from."""
    base: Path | None = None
    """The folder of the finished run that a post-training method takes."""
    downstream: tuple[str, ...] = ()
    """What to ask the finished run in `folder`; with it nothing is trained."""


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
