"""qbench: the benchmark and leaderboard harness for quantization-aware training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.formats import Format, Site
    from qbench.frames import results
    from qbench.grid import Grid
    from qbench.making import run_one
    from qbench.method import Method
    from qbench.quantizer import Quantizer
    from qbench.registry import load_method, load_task
    from qbench.task import Task

__version__ = "0.1.0"
__all__ = ["Format", "Grid", "Method", "Quantizer", "Site", "Task", "load_method", "load_task", "results", "run_one"]

_HOMES = {
    "Format": "formats", "Site": "formats", "Grid": "grid", "Method": "method", "Quantizer": "quantizer", "Task": "task",
    "load_method": "registry", "load_task": "registry", "results": "frames", "run_one": "making",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported when they are asked for: `import qbench` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}")
    return getattr(import_module(f"qbench.{_HOMES[name]}"), name)
