"""Assignment and Execution: what to train where; none of it is in a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qbench.runs.config import RunConfig


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
