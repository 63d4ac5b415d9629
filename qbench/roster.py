"""Who belongs to a board: `boards/<board>.json`, written by a sweep and read by whoever shows it.

It holds the sweep file, the cells that it came to with the keys of their runs, the cells that were skipped and why, and the default
parameters of the methods and tasks in it, so that a board can be put together without importing a plugin, and with what is missing in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError
from qbench.record import write_atomically

if TYPE_CHECKING:
    from qbench.plan import Cell, Plan

ROSTER_VERSION = 1
NEEDED = ("board", "version", "title", "made", "sweep", "seeds", "defaults", "cells")


def roster_of(plan: Plan) -> dict[str, Any]:
    """A plan as plain data. Cells that only others go on from are not the board's."""
    from qbench import registry
    from qbench.catalogue import defaults

    cells = [cell for cell in (*plan.cells, *plan.skipped) if not cell.extra]
    names = {("methods", c.example.method) for c in cells} | {("tasks", c.example.task) for c in cells}
    return {
        "roster_version": ROSTER_VERSION,
        "board": plan.sweep.board,
        "version": plan.sweep.version,
        "title": plan.sweep.title,
        "track": plan.sweep.track,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "sweep": plan.sweep.text,
        "seeds": list(plan.sweep.seeds),
        "defaults": {name: defaults(registry.load("methods" if kind == "methods" else "tasks", name)) for kind, name in sorted(names)},
        "cells": [_cell(cell, plan) for cell in cells],
    }


def _cell(cell: Cell, plan: Plan) -> dict[str, Any]:
    from qbench import registry

    return {
        "label": cell.label,
        "variant": cell.variant,
        "provenance": registry.load_method(cell.example.method).provenance,
        "refusal": cell.refusal,
        "spec": cell.example.to_json(),
        "keys": [] if cell.refusal else [cell.key(seed) for seed in plan.sweep.seeds],
    }


def write(results: Path, roster: Mapping[str, Any]) -> None:
    folder = results / "boards"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{roster['board']}.json", json.dumps(roster, allow_nan=False) + "\n")


def read_all(results: Path) -> Iterator[dict[str, Any]]:
    """Every board's roster in a results folder."""
    for file in sorted((results / "boards").glob("*.json")):
        try:
            roster = json.loads(file.read_bytes())
            if roster["roster_version"] != ROSTER_VERSION:
                raise QbenchError(f"{file}: roster version {roster['roster_version']}; this qbench reads {ROSTER_VERSION}")
            [roster[word] for word in NEEDED]
        except (ValueError, KeyError, TypeError):
            raise QbenchError(f"{file}: damaged; sweep the board's file again, or delete it") from None
        yield roster
