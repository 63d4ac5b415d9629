"""The [[retired]] tables of a sweep file: versions of methods that were withdrawn.

    [[retired]]
    method = "pege"
    version = 1
    reason = "its pull was measured on clipped weights"

Their rows stay on the board with the reason, below the others and outside every comparison. They
are not trained again: their runs are found by the keys that the board's cells would have with that
version. Each of them is compared with the controls alone, so it has its gap recovered and changes
no other row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qbench.errors import UsageError
from qbench.util.checked_values import check_integer, check_line

KEYS = ("method", "version", "reason")
CONTROLS = ("fp", "rtn")


@dataclass(frozen=True)
class RetiredVersion:
    """One [[retired]] table of a sweep file."""

    method: str
    version: int
    reason: str


def read_retired_tables(tables: Any, where: str) -> Iterator[RetiredVersion]:
    """Yield the contents of each [[retired]] table."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where} is a list of tables: write [[retired]]")
    for n, table in enumerate(tables, 1):
        if set(table) != set(KEYS):
            raise UsageError(f"{where} {n}: write {', '.join(KEYS)}, and nothing else")
        if table["method"] in CONTROLS:
            raise UsageError(
                f"{where} {n}: {table['method']} is a control, which every board needs"
            )
        name, reason = (
            check_line(table[key], f"{where} {n}: {key}") for key in ("method", "reason")
        )
        version = check_integer(table["version"], 1, 10**6, f"{where} {n}: version")
        yield RetiredVersion(name, version, reason)
