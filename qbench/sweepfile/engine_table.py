"""The table [engine] of a sweep file: over how many processes a run is spread.

It changes scores by no more than the order of floating-point sums, so no key contains it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qbench.errors import UsageError, unknown_name_error
from qbench.util.checked_values import check_integer

__all__ = ["RunProcesses", "read_engine_table"]


MAX_PROCESSES = 1024


@dataclass(frozen=True)
class RunProcesses:
    """How many processes train a run together."""

    gpus_per_run: int = 1


def read_engine_table(table: Any, where: str) -> RunProcesses:
    """Return the contents of the table [engine]."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: a table such as gpus_per_run = 2, not {table!r}")
    known = [field.name for field in dataclasses.fields(RunProcesses)]
    for key in table:
        if key not in known:
            raise unknown_name_error("key", key, known, where)
    return RunProcesses(
        check_integer(table.get("gpus_per_run", 1), 1, MAX_PROCESSES, f"{where}: gpus_per_run")
    )
