"""What runs have answered downstream, as it lies in their folders (`evaluate` writes it): which tasks, how well, and item by item.

Numbers of one task belong together only where its hash is the same: two definitions are two tasks, whatever they are called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qbench.runs.attempts import Attempt
from qbench.util import text

__all__ = ["answered", "items_right", "missing", "table"]


NONE = "–"


def answered(attempt: Attempt) -> dict[str, Any]:
    """What is known of an attempt's artefact, by task; nothing where the answers are another artefact's."""
    found, result = attempt.read("downstream") or {}, attempt.read("result") or {}
    tasks = found.get("tasks")
    if not isinstance(tasks, dict) or found.get("artefact_sha256") != result.get("artefact_sha256"):
        return {}
    return {str(name): entry for name, entry in tasks.items() if isinstance(entry, dict)}


def missing(
    attempt: Attempt, names: Iterable[str], present: Callable[[str], str | None] = lambda name: None
) -> list[str]:
    """Those of the asked names that an attempt has no answers to. A file or a group stands for the tasks that it came to. `present` says which
    hash a task has now, where that is known: answers to another definition are none."""
    known = answered(attempt)
    asked = {name for entry in known.values() for name in entry.get("asked_as") or ()}

    def lacks(name: str) -> bool:
        if name not in known:
            return name not in asked
        return (now := present(name)) is not None and known[name].get("sha256") != now

    return [name for name in names if lacks(name)]


def items_right(folder: Path, entry: Mapping[str, Any]) -> list[bool] | None:
    """Right or wrong item by item, in their order; None for a task whose items are neither."""
    try:
        lines = [
            json.loads(line)
            for line in (folder / str(entry["file"])).read_text(encoding="utf-8").splitlines()
        ]
    except (OSError, ValueError, KeyError):
        return None
    values = [
        line.get("right")
        for line in lines
        if "filter" not in line or line["filter"] == lines[0].get("filter")
    ]
    return (
        [bool(value) for value in values]
        if values and all(value in (0.0, 1.0) for value in values)
        else None
    )


def table(found: Mapping[str, Any]) -> str:
    """One line a task and metric."""
    rows: list[tuple[str, ...]] = [("task", "metric", "value", "chance", "ceiling", "items")]
    for name, entry in found["tasks"].items():
        bounds = [
            NONE if entry[bound] is None else f"{entry[bound]:.3g}"
            for bound in ("chance", "ceiling")
        ]
        for metric, number in entry["metrics"].items():
            rows.append(
                (text.plain(name), text.plain(metric), value(number), *bounds, str(entry["items"]))
            )
    return "\n".join(aligned(rows))


def value(number: Mapping[str, Any]) -> str:
    """`0.398 ± 0.024`, a standard error; without one where none is known."""
    if number["value"] is None:
        return NONE
    return f"{number['value']:.4f}" + (
        "" if number["stderr"] is None else f" ± {number['stderr']:.4f}"
    )


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
