"""The files of an attempt → rows of the store. A file is somebody's until it is proved ours: what does not fit is refused, in words."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt
from qbench.runs.config import canonical
from qbench.runs.downstream_answers import answered
from qbench.store.schema import ANSWER, CURVE, IDENTITY, RUN, Column
from qbench.util.redact_paths import unplaced

__all__ = ["Batch", "NotARun", "answers_of", "cell_row", "row_of"]


class NotARun(QbenchError):
    """A folder that claims to be a finished attempt and is none."""


@dataclass
class Batch:
    """Rows on their way into the store, by columns."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("key", "attempt", *CURVE, "more")}
    )
    answers: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, attempt: Attempt) -> None:
        """A finished attempt's row, curve and answers; one that is not finished adds nothing."""
        try:
            row = row_of(attempt)
        except NotARun as error:
            self.refused.append(str(error))
            return
        if row is None:
            return
        self.runs.append(row)
        points = curve_of(attempt)
        self.curves["key"] += [attempt.key] * len(points)
        self.curves["attempt"] += [attempt.number] * len(points)
        for name in CURVE:
            self.curves[name] += [number(point.get(name)) for point in points]
        self.curves["more"] += [more(point) for point in points]
        self.answers += answers_of(attempt)


def row_of(attempt: Attempt) -> dict[str, Any] | None:
    """The row of a finished attempt, None while there is no result. The key must be the hash of the spec beside it."""
    if (result := attempt.read("result")) is None:
        return None
    if (spec := attempt.read("spec")) is None:
        raise NotARun(f"{attempt.folder}: a result without a spec.json")
    if hashlib.sha256(canonical(spec).encode()).hexdigest()[:32] != attempt.key:
        raise NotARun(f"{attempt.folder}: spec.json is not the configuration of this key")
    if (result.get("key"), result.get("attempt")) != (attempt.key, attempt.number):
        raise NotARun(
            f"{attempt.folder}: result.json belongs to attempt {result.get('attempt')} of {result.get('key')}"
        )
    if result.get("state") not in ("ok", "failed"):
        raise NotARun(f"{attempt.folder}: result.json has the state {result.get('state')!r}")
    files = {
        "spec": spec,
        "result": result,
        "env": attempt.read("env") or {},
        "trust": attempt.read("trust") or {},
    }
    row = {"key": attempt.key, "attempt": attempt.number} | {
        column.name: find(column, files) for column in RUN
    }
    row["message"] = row["message"] and unplaced(str(row["message"]))
    checks = (result.get("audit") or {}).get("checks") or ()
    row["audit_failures"] = (
        ", ".join(str(check.get("name")) for check in checks if not check.get("passed")) or None
    )
    return row


def answers_of(attempt: Attempt) -> list[dict[str, Any]]:
    """A row for each downstream task that an attempt's artefact has answered, in one definition and by its first metric."""
    rows = []
    for name, task in sorted(answered(attempt).items()):
        metrics = task.get("metrics")
        number = metrics.get(str(task.get("metric"))) if isinstance(metrics, Mapping) else None
        found = {column.name: find(column, {"task": task, "number": number}) for column in ANSWER}
        rows += (
            [{"key": attempt.key, "attempt": attempt.number, "task": name} | found]
            if found["sha256"]
            else []
        )
    return rows


def cell_row(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a cell shares with its runs."""
    return {column.name: find(column, {"spec": spec}) for column in IDENTITY}


def find(column: Column, files: Mapping[str, Any]) -> Any:
    """A value by its path, as its column's type; None for what is missing, of another type or not finite."""
    value: Any = files
    for name in column.path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if column.kind is dict:
        return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else None
    if column.kind is float or column.kind is int:
        return number(value)
    return value if isinstance(value, column.kind) else None


def number(value: Any) -> float | None:
    return value if type(value) in (int, float) and math.isfinite(value) else None


def curve_of(attempt: Attempt) -> list[dict[str, Any]]:
    """The points of a curve; a line that was cut short is left out."""
    try:
        lines = attempt.curve.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    try:
        points = json.loads(f"[{','.join(lines)}]")
    except ValueError:
        points = list(_whole(lines))
    return [p for p in points if isinstance(p, dict) and number(p.get("step")) is not None]


def _whole(lines: Iterable[str]) -> Iterable[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def more(point: Mapping[str, Any]) -> str | None:
    """The terms of a loss of several, and a method's own metrics, as JSON."""
    terms, metrics = point.get("terms") or {}, point.get("metrics") or {}
    if len(terms) < 2 and not metrics:
        return None
    return json.dumps({"terms": terms, "metrics": metrics})
