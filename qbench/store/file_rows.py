"""Turn the files of an attempt, and the members of a board, into rows of the store.

A file may come from anybody, so nothing in it is taken on trust: an attempt whose files contradict
each other is refused with the reason, and a value of the wrong type becomes NULL.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt
from qbench.runs.config import canonical_json
from qbench.runs.downstream_answers import read_answers
from qbench.runs.state import belongs_to_attempt
from qbench.store.schema import (
    ANSWER_COLUMNS,
    CURVE_COLUMNS,
    RUN_COLUMNS,
    SHARED_COLUMNS,
    StoreColumn,
)
from qbench.util.redact_paths import redact_paths

__all__ = [
    "IncomingRows",
    "InvalidRunFolder",
    "make_answer_rows",
    "make_board_rows",
    "make_run_row",
]


class InvalidRunFolder(QbenchError):
    """A folder whose files claim to be a finished attempt, but contradict each other."""


@dataclass
class IncomingRows:
    """The rows of some attempts on their way into the store."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("key", "attempt", *CURVE_COLUMNS, "more")}
    )
    """By column, because there are many points."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Why each attempt was refused that is not here."""

    def add_attempt(self, attempt: Attempt) -> None:
        """Add the row, curve and answers of a finished attempt; an unfinished one adds nothing."""
        try:
            row = make_run_row(attempt)
        except InvalidRunFolder as error:
            self.refused.append(str(error))
            return
        if row is None:
            return
        self.runs.append(row)
        points = read_curve(attempt)
        self.curves["key"] += [attempt.key] * len(points)
        self.curves["attempt"] += [attempt.number] * len(points)
        for name in CURVE_COLUMNS:
            self.curves[name] += [finite_number(point.get(name)) for point in points]
        self.curves["more"] += [encode_extra_terms(point) for point in points]
        self.answers += make_answer_rows(attempt)


# ---- rows ----


def make_run_row(attempt: Attempt) -> dict[str, Any] | None:
    """Return the row of a finished attempt, or None while it has no result.

    Raises:
        InvalidRunFolder: if the key is not the hash of spec.json, or result.json is not this
            attempt's.
    """
    if (result := attempt.read("result")) is None:
        return None
    if (spec := attempt.read("spec")) is None:
        raise InvalidRunFolder(f"{attempt.folder}: a result without a spec.json")
    _require_own_files(attempt, spec, result)
    files = {
        "spec": spec,
        "result": result,
        "env": attempt.read("env") or {},
        "trust": attempt.read("trust") or {},
    }
    row = {"key": attempt.key, "attempt": attempt.number}
    row |= {column.name: read_column(column, files) for column in RUN_COLUMNS}
    # Records that were made elsewhere may still hold paths of their machine.
    row["message"] = row["message"] and redact_paths(str(row["message"]))
    checks = (result.get("audit") or {}).get("checks") or ()
    failures = [str(check.get("name")) for check in checks if not check.get("passed")]
    row["audit_failures"] = ", ".join(failures) or None
    return row


def _require_own_files(
    attempt: Attempt, spec: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """Raise InvalidRunFolder if spec.json or result.json belongs to another attempt."""
    folder = attempt.folder
    # The whole file is hashed, so that no part of it goes unchecked.
    if hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:32] != attempt.key:
        raise InvalidRunFolder(f"{folder}: spec.json is not the configuration of this key")
    if not belongs_to_attempt(result, attempt):
        raise InvalidRunFolder(
            f"{folder}: result.json belongs to attempt {result.get('attempt')} of "
            f"{result.get('key')}"
        )
    if result.get("state") not in ("ok", "failed"):
        raise InvalidRunFolder(f"{folder}: result.json has the state {result.get('state')!r}")


def make_answer_rows(attempt: Attempt) -> list[dict[str, Any]]:
    """Return a row for each downstream task that an attempt has answered, with its main metric."""
    rows = []
    for name, task in sorted(read_answers(attempt).items()):
        metrics = task.get("metrics")
        number = metrics.get(str(task.get("metric"))) if isinstance(metrics, Mapping) else None
        files = {"task": task, "number": number}
        row = {"key": attempt.key, "attempt": attempt.number, "task": name}
        row |= {column.name: read_column(column, files) for column in ANSWER_COLUMNS}
        # Without the hash of its task an answer cannot be compared with any other.
        if row["sha256"]:
            rows.append(row)
    return rows


def make_board_rows(
    members: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Return the rows of a board's cells, and by column the entries: the runs of each cell.

    A cell without keys is one whose hyper-parameters are not chosen yet, or that is skipped; it
    has an entry without a key for each seed.
    """
    board = members["board"]
    cells: list[dict[str, Any]] = []
    entries: dict[str, list[Any]] = {name: [] for name in ("board", "cell", "seed", "key")}
    for number, cell in enumerate(members["cells"]):
        row = {"board": board, "cell": number}
        row |= {name: cell[name] for name in ("label", "variant", "provenance", "refusal")}
        # Files of older versions lack these.
        optional = ("stage", "rung", "trial", "failure", "retired")
        row |= {name: cell.get(name) for name in optional}
        chosen = cell.get("chosen")
        row["chosen"] = json.dumps(chosen, sort_keys=True) if chosen else None
        cells.append(row | make_cell_row(cell["spec"]))
        seeds = cell.get("seeds", members["seeds"])
        keys = cell["keys"] or [None] * len(seeds)
        entries["board"] += [board] * len(keys)
        entries["cell"] += [number] * len(keys)
        entries["seed"] += seeds
        entries["key"] += keys
    return cells, entries


def make_cell_row(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that a cell shares with its runs."""
    return {column.name: read_column(column, {"spec": spec}) for column in SHARED_COLUMNS}


# ---- values ----


def read_column(column: StoreColumn, files: Mapping[str, Any]) -> Any:
    """Return the value of a column, looked up by its path in `files`.

    A value that is missing, of another type or not finite becomes None.
    """
    value: Any = files
    for name in column.path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if column.kind is dict:
        return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else None
    if column.kind is float or column.kind is int:
        return finite_number(value)
    return value if isinstance(value, column.kind) else None


def finite_number(value: Any) -> float | None:
    """Return a number if it is finite, else None."""
    # `type` and not `isinstance`, because a bool is an instance of int.
    return value if type(value) in (int, float) and math.isfinite(value) else None


def read_curve(attempt: Attempt) -> list[dict[str, Any]]:
    """Return the points of a curve. A line that was cut short is left out."""
    try:
        lines = attempt.curve.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    # One call for all lines is faster than a call for each, so that is the fallback only.
    try:
        points = json.loads(f"[{','.join(lines)}]")
    except ValueError:
        points = list(_parse_complete_lines(lines))
    return [p for p in points if isinstance(p, dict) and finite_number(p.get("step")) is not None]


def _parse_complete_lines(lines: Iterable[str]) -> Iterable[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def encode_extra_terms(point: Mapping[str, Any]) -> str | None:
    """Return the terms of a composite loss and a method's own metrics as JSON, if there are any."""
    terms, metrics = point.get("terms") or {}, point.get("metrics") or {}
    if len(terms) < 2 and not metrics:
        return None
    return json.dumps({"terms": terms, "metrics": metrics})
