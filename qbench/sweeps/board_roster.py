"""A plan to the list of members of its board."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qbench.plugins.registry import load
from qbench.store.board_members import ROSTER_VERSION
from qbench.util.redact_paths import unplaced

if TYPE_CHECKING:
    from qbench.sweeps.cells import Cell, Plan


def roster_of(plan: Plan) -> dict[str, Any]:
    """A plan as plain data. Cells that only others go on from are not the board's; one that waits for its choice has no keys yet."""
    from qbench.plugins.describe import defaults

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
        "defaults": {
            name: defaults(load("methods" if kind == "methods" else "tasks", name))
            for kind, name in sorted(names)
        },
        "cells": [_cell(cell, plan, True) for cell in runnable]
        + [_cell(cell, plan, False) for cell in others]
        + [{**_cell(cell, plan, True), "retired": cell.retired} for cell in plan.retired],
    }


def _cell(cell: Cell, plan: Plan, runs: bool) -> dict[str, Any]:
    from qbench.api.load import load_method

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
        "provenance": load_method(cell.example.method).provenance,
        "refusal": cell.refusal and unplaced(cell.refusal),
        "spec": (cell.whole or cell.example).to_json(),
        "keys": [cell.key(seed) for seed in seeds] if runs else [],
        **(tuned if cell.stage else {}),
    }
