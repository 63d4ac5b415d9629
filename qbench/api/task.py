"""Task: data, networks by size, a metric and a recipe.

A task is a dataclass whose fields are its options. It makes a `Problem` for a size and a seed.
Everything random in a problem follows from (task, seed), so that all methods meet the same start
and the same batches, and a batch is a pure function of its index, so that a run resumes at any
step.
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


@dataclass
class Task:
    """Data, networks by size, a metric and a recipe. The dataclass fields are options."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    metric: ClassVar[Metric]
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    """What each size means, smallest first."""
    activations: ClassVar[bool] = False
    """Whether quantized layer inputs make sense."""

    @abstractmethod
    def recipe(self, size: str) -> Recipe:
        """Return budget, optimizer and schedule, unless the board sets its own."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the data that the task reads or makes."""

    @abstractmethod
    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> Problem:
        """Return model, data order and loss.

        Planning asks for shapes alone, on the device `meta`: `.to(device)` is then all that a task
        needs, and a task with large networks may leave their weights unmade.
        """

    def key_options(self) -> Mapping[str, Any]:
        """Return the options that go into a run's key.

        Override it if an option is a path or another name of something outside, and return what
        lies there instead: a key must mean the same on every machine.
        """
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def portable(self) -> bool:
        """Whether the options mean the same on every machine, as those of a key do.

        It is false if an option names a file or a place on the network. Options from somebody
        else's run are used only if it is true.
        """
        return True

    def quizzes(self) -> Mapping[str, Quiz]:
        """Return downstream questions of the task's own, by a name that begins with the task's.

        They fit into the context of the smallest size.
        """
        return {}

    def check(self) -> str | None:
        """Return a sentence if an option is out of range."""
        return None
