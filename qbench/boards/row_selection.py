"""Which rows of a table of runs count on a board: one attempt of each run, newest versions only.

Both functions append to `notes` what readers of the board must know about rows that were dropped.
"""

from __future__ import annotations

import numpy as np

from qbench.boards.run_table import Array, RunTable
from qbench.util.text import format_count


def keep_one_attempt(table: RunTable, notes: list[str]) -> RunTable:
    """Return the table with one row for each run.

    An attempt that trained to an end (ok or diverged) is preferred to a mishap, and our own
    attempts to merged ones. Of our own attempts a successful one counts, else the last one; of
    merged ones the one that was merged first.
    """
    identity = _identify_runs(table)
    if len(set(identity)) == len(identity):
        return table
    attempt = np.nan_to_num(table.columns["attempt"])
    own = table.columns["trust"] == 0
    ok, has_outcome = _find_outcomes(table)
    # Compared from left to right. The sign makes the last own attempt and the first merged one
    # the largest.
    preference = list(
        zip(has_outcome, own, ok & own, np.where(own, attempt, -attempt), strict=True)
    )
    best: dict[str, int] = {}
    for i, run in enumerate(identity):
        # Rows without a key, such as cells that were skipped, are no attempts at one run.
        if run and (run not in best or preference[i] > preference[best[run]]):
            best[run] = i
    chosen = np.array([best.get(run, i) for i, run in enumerate(identity)], dtype=np.int64)
    _report_conflicts(table, identity, chosen, notes)
    return table.take(chosen == np.arange(len(identity)))


def _find_outcomes(table: RunTable) -> tuple[Array, Array]:
    """Return which rows are ok, and which have an outcome of training: ok or diverged."""
    ok = table.columns["state"] == table.get_code("state", "ok")
    return ok, ok | (table.columns["reason"] == table.get_code("reason", "diverged"))


def _report_conflicts(table: RunTable, identity: Array, chosen: Array, notes: list[str]) -> None:
    """Add a note if attempts at one run, which should agree, have different scores."""
    score, effect = table.columns["packed"], table.columns["effect"]
    last_digit = 10.0 ** -np.nan_to_num(table.columns["digits"], nan=3.0)
    tolerance = np.where(np.isfinite(effect), effect, last_digit)
    both_missing = np.isnan(score) & np.isnan(score[chosen])
    same = (np.abs(score - score[chosen]) <= tolerance) | both_missing
    _, has_outcome = _find_outcomes(table)
    if conflicts := sorted(set(identity[has_outcome & has_outcome[chosen] & ~same])):
        notes.append(
            f"conflict: {format_count(len(conflicts), 'run')} with attempts whose scores differ:"
            f" qbench show {conflicts[0][:12]}"
        )


def _identify_runs(table: RunTable) -> Array:
    """Return the text that attempts at one run share: its key.

    In a tuned board several trials may fall on the same values. They are one run and have one
    key, but each of them counts as a trial, so stage, rung and number are added.
    """
    key = table.columns["key"]
    if not any(table.vocabularies["stage"]):
        return key
    names = ("stage", "rung", "trial")
    trials = zip(key, *(table.columns[name] for name in names), strict=True)
    return np.array(
        [f"{k} {stage} {rung:g} {trial:g}" if k else "" for k, stage, rung, trial in trials],
        dtype=object,
    )


def drop_old_versions(table: RunTable, notes: list[str]) -> RunTable:
    """Return the rows of the newest version of the board and of each task and each method."""
    # In this order: the newest version of a task is looked for among rows of the newest board.
    for version, owner in (
        ("board_version", ""),
        ("task_version", "task"),
        ("method_version", "method"),
    ):
        number = np.nan_to_num(table.columns[version])
        code = table.columns[owner] if owner else np.zeros(len(table), dtype=np.int64)
        names = table.vocabularies[owner] if owner else ["board"]
        newest = np.zeros(len(names))
        # `maximum.at` and not `newest[code] = ...`: a code occurs in many rows, and plain
        # assignment would keep the last of them.
        np.maximum.at(newest, code, number)
        old = number < newest[code]
        if old.any():
            dropped = {(names[c], int(n)) for c, n in zip(code[old], number[old], strict=True)}
            listed = ", ".join(f"{name} version {n}" for name, n in sorted(dropped))
            notes.append(
                f"left out: {format_count(int(old.sum()), 'run')} of older versions: {listed}"
            )
            table = table.take(~old)
    return table
