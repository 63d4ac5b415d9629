"""Versions of methods that were withdrawn. Their rows stay on the board with the reason, below the others and outside every comparison.

    [[retired]]
    method = "pege"
    version = 1
    reason = "its pull was measured on clipped weights"

Nothing of them is trained. Their runs are found by the keys that the board's cells would have at that version, and each such entrant is put
beside the controls alone, so that it has its gap recovered and moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qbench.errors import UsageError
from qbench.util.checked_values import line, whole

WORDS = ("method", "version", "reason")
CONTROLS = ("fp", "rtn")


@dataclass(frozen=True)
class Retired:
    """A [[retired]] table of a sweep file."""

    method: str
    version: int
    reason: str


def read_retired(tables: Any, where: str) -> Iterator[Retired]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where} is a list of tables: write [[retired]]")
    for n, table in enumerate(tables, 1):
        if set(table) != set(WORDS):
            raise UsageError(f"{where} {n}: write {', '.join(WORDS)}, and nothing else")
        if table["method"] in CONTROLS:
            raise UsageError(
                f"{where} {n}: {table['method']} is a control, without which nothing can be shown"
            )
        name, reason = (line(table[word], f"{where} {n}: {word}") for word in ("method", "reason"))
        yield Retired(name, whole(table["version"], 1, 10**6, f"{where} {n}: version"), reason)
