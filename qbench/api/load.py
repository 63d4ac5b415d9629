"""Load the class of a method or a task by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.plugins.registry import load

if TYPE_CHECKING:
    from qbench.api.method import Method
    from qbench.api.task import Task


def load_method(name: str) -> type[Method]:
    """Return the class of a method; its hyper-parameters are its keyword arguments."""
    found: type[Method] = load("methods", name)
    return found


def load_task(name: str) -> type[Task]:
    """Return the class of a task; its options are its keyword arguments."""
    found: type[Task] = load("tasks", name)
    return found
