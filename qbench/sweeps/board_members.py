"""Describe the members of a board as plain data, for the file that the store keeps of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qbench.plugins.registry import load
from qbench.store.board_members import BOARD_MEMBERS_VERSION
from qbench.util.redact_paths import redact_paths

if TYPE_CHECKING:
    from qbench.sweeps.cells import Cell, Plan


def make_board_members(plan: Plan) -> dict[str, Any]:
    """Return the members of a plan's board as plain data.

    Cells that are only a base of others are left out. A cell whose values are not chosen yet has
    no keys.
    """
    from qbench.plugins.describe import list_defaults

    with_runs = [cell for cell in plan.cells if not cell.extra]
    without_runs = [*plan.skipped, *(pending.cell for pending in plan.waiting), *plan.failed]
    examples = [cell.example for cell in (*with_runs, *without_runs)]
    names = {("methods", c.method) for c in examples} | {("tasks", c.task) for c in examples}
    return {
        "roster_version": BOARD_MEMBERS_VERSION,
        "board": plan.sweep.board,
        "version": plan.sweep.version,
        "title": plan.sweep.title,
        "track": plan.sweep.track,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "sweep": plan.sweep.text,
        "tuning": plan.sweep.tuning.to_json() if plan.sweep.tuning else None,
        "seeds": list(plan.sweep.seeds),
        "defaults": {
            name: list_defaults(load("methods" if kind == "methods" else "tasks", name))
            for kind, name in sorted(names)
        },
        "cells": [_describe_cell(cell, plan, True) for cell in with_runs]
        + [_describe_cell(cell, plan, False) for cell in without_runs]
        + [{**_describe_cell(cell, plan, True), "retired": cell.retired} for cell in plan.retired],
    }


def _describe_cell(cell: Cell, plan: Plan, has_runs: bool) -> dict[str, Any]:
    """Return one cell as plain data, with the keys of its runs if it has any."""
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
        "refusal": cell.refusal and redact_paths(cell.refusal),
        # Trials of all rungs are stored with the full budget, so that they are of one cell.
        "spec": (cell.full_budget or cell.example).to_json(),
        "keys": [cell.key(seed) for seed in seeds] if has_runs else [],
        **(tuned if cell.stage else {}),
    }
