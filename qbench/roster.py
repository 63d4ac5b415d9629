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

from qbench.config import RunConfig, cell_title
from qbench.errors import QbenchError, UsageError, unknown
from qbench.places import unplaced
from qbench.record import write_atomically

if TYPE_CHECKING:
    from qbench.plan import Cell, Plan

ROSTER_VERSION = 1
NEEDED = ("board", "version", "title", "made", "sweep", "seeds", "defaults", "cells")


def roster_of(plan: Plan) -> dict[str, Any]:
    """A plan as plain data. Cells that only others go on from are not the board's; one that waits for its choice has no keys yet."""
    from qbench import registry
    from qbench.catalogue import defaults

    runnable = [cell for cell in plan.cells if not cell.extra]
    others = [*plan.skipped, *(w.cell for w in plan.waiting), *plan.failed]
    examples = [cell.example for cell in (*runnable, *others)]
    names = {("methods", c.method) for c in examples} | {("tasks", c.task) for c in examples}
    return {
        "roster_version": ROSTER_VERSION,
        "board": plan.sweep.board,
        "version": plan.sweep.version,
        "title": plan.sweep.title,
        "track": plan.sweep.track,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "sweep": plan.sweep.text,
        "tuning": plan.sweep.tuning.to_json() if plan.sweep.tuning else None,
        "seeds": list(plan.sweep.seeds),
        "defaults": {name: defaults(registry.load("methods" if kind == "methods" else "tasks", name)) for kind, name in sorted(names)},
        "cells": [_cell(cell, plan, True) for cell in runnable]
        + [_cell(cell, plan, False) for cell in others]
        + [{**_cell(cell, plan, True), "retired": cell.retired} for cell in plan.retired],
    }


def _cell(cell: Cell, plan: Plan, runs: bool) -> dict[str, Any]:
    from qbench import registry

    seeds = list(plan.seeds(cell))
    tuned = {
        "stage": cell.stage,
        "rung": cell.rung,
        "trial": cell.trial,
        "chosen": dict(cell.chosen),
        "failure": cell.failure,
        "seeds": seeds,
    }
    return {
        "label": cell.label,
        "variant": cell.variant,
        "provenance": registry.load_method(cell.example.method).provenance,
        "refusal": cell.refusal and unplaced(cell.refusal),
        "spec": (cell.whole or cell.example).to_json(),
        "keys": [cell.key(seed) for seed in seeds] if runs else [],
        **(tuned if cell.stage else {}),
    }


def write(results: Path, roster: Mapping[str, Any]) -> None:
    folder = results / "boards"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{roster['board']}.json", json.dumps(roster, allow_nan=False) + "\n")


def keys_of_cell(results: Path, title: str, board: str | None = None) -> list[str]:
    """The keys of a cell's runs, the cell named as sweeps name it: `ste int4 grammar/xs`. Several boards may share it."""
    rosters = [roster for roster in read_all(results) if board in (None, roster["board"])]
    if board and not rosters:
        raise unknown("board", board, [roster["board"] for roster in read_all(results)])
    cells = [cell for roster in rosters for cell in _titles(roster)]
    chosen = {tuple(keys) for name, keys in cells if name == " ".join(title.split())}
    if not chosen:
        raise unknown("run or cell", title, {name for name, _ in cells})
    if len(chosen) > 1:
        raise UsageError(f"{title!r} stands for {len(chosen)} cells with other runs in each: name a board (--board), or a run by its key")
    return list(next(iter(chosen)))


def _titles(roster: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for cell in roster["cells"]:
        if cell["keys"]:
            yield cell_title(cell["label"], RunConfig.from_json(cell["spec"]), cell["variant"]), cell["keys"]


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
