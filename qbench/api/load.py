"""Load_method and load_task by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.plugins.registry import load

if TYPE_CHECKING:
    from qbench.api.method import Method
    from qbench.api.task import Task


def load_method(name: str) -> type[Method]:
    """The class of a method; its hyper-parameters are constructor arguments by name."""
    found: type[Method] = load("methods", name)
    return found


def load_task(name: str) -> type[Task]:
    """The class of a task; its options are constructor arguments by name."""
    found: type[Task] = load("tasks", name)
    return found
