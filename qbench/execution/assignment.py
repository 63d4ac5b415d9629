"""Assignment and Execution: what to train, and how. Nothing of it is part of a run's key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qbench.runs.config import RunConfig


@dataclass(frozen=True)
class Execution:
    """How a run is carried out. Nothing in it may move a score."""

    device: str = "auto"
    compile: bool | None = None
    """Whether steps are compiled; None means on CUDA only."""
    graphs: bool = False
    """Whether steps are recorded once and repeated, where method and optimizer allow it."""
    accumulate: int = 1
    """Micro-batches a step."""
    timeout_s: float = 0.0
    """Longest life of an attempt; 0 is no limit."""
    silence_s: float = 600.0
    """Longest time without a sign of life, after which a worker counts as hung."""
    checkpoint_s: float = 60.0
    """Wall time between checkpoints."""
    gpus_per_run: int = 1
    """Processes that train a run together, each on a GPU of its own, or all on the CPU."""
    group: int | None = None
    """Largest number of stacked runs. None: as many as pay."""


@dataclass(frozen=True)
class Assignment:
    """What to train, and the folder of the attempt."""

    config: RunConfig
    folder: Path
    resume: Path | None = None
    """The folder of an earlier attempt whose checkpoint to go on from."""
    base: Path | None = None
    """The folder of the finished run that this one starts from."""
    downstream: tuple[str, ...] = ()
    """What to ask the finished run in `folder`. If there is anything, nothing is trained."""
