"""The task contract: data, model by size, loss, metric, splits, which layers are quantized, and the tuning space.

A task (its fields are options) makes a `Problem` for a size and a seed: one model, one data order, one loss. Everything
random in it comes from (task, seed), so that all methods meet the same start and the same batches, and every batch is a
pure function of its index, so that a run resumes at any step with nothing saved.

Losses reduce over trailing axes only: with runs side by side in front, `loss` returns one number a run.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from qbench.runs.config import Metric, Recipe

if TYPE_CHECKING:
    from qbench.api.language_model import Quiz
    from qbench.api.problem import Problem

__all__ = ["Task"]


@dataclass
class Task:
    """A benchmark task. Subclasses are dataclasses whose fields are options."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    metric: ClassVar[Metric]
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    """What each size means, smallest first."""
    tuning: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    """The space that every method is tuned over, unless a board gives its own."""
    exact_hessian: ClassVar[bool] = False
    activations: ClassVar[bool] = False
    """Whether quantized activations make sense."""
    unrecorded: ClassVar[str | None] = None
    """Why a step of its network cannot be recorded once and repeated (`qbench.recorded`), in a sentence: it asks for the value of a tensor, say."""

    @abstractmethod
    def recipe(self, size: str) -> Recipe:
        """Budget, optimizer and schedule, unless a board gives its own."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data that the task reads or makes."""

    @abstractmethod
    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> Problem:
        """The model, the data order in batches of `batch`, and the loss. Planning, which asks for shapes alone, gives the device `meta`:
        `.to(device)` is then all that a task needs, and one with large networks may leave their weights unmade."""

    def quizzes(self) -> Mapping[str, Quiz]:
        """Downstream tasks of its own by name, which begins with the task's: `grammar_recall`. They fit the smallest size's context."""
        return {}

    def check(self) -> str | None:
        """A sentence if an option is out of its domain."""
        return None

    @property
    def compiled_alike(self) -> bool:
        """Whether runs compiled side by side have the bits that each has compiled alone, on a CPU: `make bench ARGS=alike`. A sweep may then
        compile long ones by itself."""
        return False

    @property
    def keyed(self) -> bool:
        """Whether its options are those of a key. Of one that is not, `params` reads a place on this machine or the network to know what its
        options mean, so a stranger's word must not get there."""
        return True

    @property
    def params(self) -> dict[str, Any]:
        """What a run's key is made of; the options, or for one that names a place what lies there."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
