"""The table [engine] of a sweep file: how a run is spread over processes. It moves no score beyond the order of sums, so it is in no key."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qbench.errors import UsageError, unknown
from qbench.util.checked_values import coerce, whole

__all__ = ["Processes", "read_processes"]


MOST = 1024


@dataclass(frozen=True)
class Processes:
    """How many processes train a run, and whether they divide its weights, too."""

    gpus_per_run: int = 1
    fsdp: bool = False


def read_processes(table: Any, where: str) -> Processes:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: a table such as gpus_per_run = 2, not {table!r}")
    known = [field.name for field in dataclasses.fields(Processes)]
    for key in table:
        if key not in known:
            raise unknown("key", key, known, where)
    found = Processes(
        whole(table.get("gpus_per_run", 1), 1, MOST, f"{where}: gpus_per_run"),
        bool(coerce(table.get("fsdp", False), bool, f"{where}: fsdp")),
    )
    if found.fsdp and found.gpus_per_run == 1:
        raise UsageError(
            f"{where}: fsdp = true divides a run among several GPUs: write gpus_per_run, too"
        )
    return found
