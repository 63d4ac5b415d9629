"""qbench: the benchmark and leaderboard harness for quantization-aware training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qbench.version import __version__

if TYPE_CHECKING:
    from qbench.analysis.results import results
    from qbench.api import Format, Grid, Method, Quantizer, Site, Task, load_method, load_task
    from qbench.engines.dispatch import run_one

__all__ = [
    "Format",
    "Grid",
    "Method",
    "Quantizer",
    "Site",
    "Task",
    "__version__",
    "load_method",
    "load_task",
    "results",
    "run_one",
]

# Where the public names live. They are imported on first use: `import qbench` must not import
# torch.
MODULES = {
    "results": "qbench.analysis.results",
    "run_one": "qbench.engines.dispatch",
} | dict.fromkeys(
    ("Format", "Grid", "Method", "Quantizer", "Site", "Task", "load_method", "load_task"),
    "qbench.api",
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in MODULES:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)
