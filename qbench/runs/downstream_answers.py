"""The answers of a run's artefact to downstream tasks, as `qbench eval` stores them in its folder.

The answers say which tasks were asked and how well the artefact did, and hold each item's result.
Numbers of a task are comparable only where its hash is the same: two definitions are two tasks,
even if they share a name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qbench.runs.attempts import Attempt
from qbench.util import text

__all__ = ["format_answers", "list_unanswered_tasks", "read_answers", "read_item_results"]


NO_VALUE = "–"


def read_answers(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt's answers by task; an empty dict if they are of another artefact."""
    answers, result = attempt.read("downstream") or {}, attempt.read("result") or {}
    tasks = answers.get("tasks")
    same_artefact = answers.get("artefact_sha256") == result.get("artefact_sha256")
    if not isinstance(tasks, dict) or not same_artefact:
        return {}
    return {str(name): entry for name, entry in tasks.items() if isinstance(entry, dict)}


def list_unanswered_tasks(
    attempt: Attempt,
    names: Iterable[str],
    current_hash: Callable[[str], str | None] = lambda name: None,
) -> list[str]:
    """Return those of `names` that an attempt has not answered.

    A name may also be a file or a group, which stands for the tasks in it. `current_hash` returns
    the hash of a task's present definition, or None if it is not known: an answer to another
    definition does not count.
    """
    answers = read_answers(attempt)
    asked = {name for entry in answers.values() for name in entry.get("asked_as") or ()}

    def is_unanswered(name: str) -> bool:
        if name not in answers:
            return name not in asked
        present = current_hash(name)
        return present is not None and answers[name].get("sha256") != present

    return [name for name in names if is_unanswered(name)]


def read_item_results(folder: Path, entry: Mapping[str, Any]) -> list[bool] | None:
    """Return whether each item of a task was answered correctly, in the order of the items.

    The result is None if the file cannot be read, or if items are scored otherwise.
    """
    try:
        content = (folder / str(entry["file"])).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in content.splitlines()]
    except (OSError, ValueError, KeyError):
        return None
    # lm-eval writes an item once for each of its filters: only the first filter is used.
    values = [
        line.get("right")
        for line in lines
        if "filter" not in line or line["filter"] == lines[0].get("filter")
    ]
    if not values or any(value not in (0.0, 1.0) for value in values):
        return None
    return [bool(value) for value in values]


def format_answers(answers: Mapping[str, Any]) -> str:
    """Return answers as a table of text, with one line for each task and metric."""
    rows: list[tuple[str, ...]] = [("task", "metric", "value", "chance", "ceiling", "items")]
    for name, entry in answers["tasks"].items():
        bounds = [
            NO_VALUE if entry[bound] is None else f"{entry[bound]:.3g}"
            for bound in ("chance", "ceiling")
        ]
        for metric, number in entry["metrics"].items():
            words = text.clean_line(name), text.clean_line(metric), format_metric(number)
            rows.append((*words, *bounds, str(entry["items"])))
    return "\n".join(align_columns(rows))


def format_metric(number: Mapping[str, Any]) -> str:
    """Return `0.398 ± 0.024`, value and standard error; the latter only where it is known."""
    if number["value"] is None:
        return NO_VALUE
    error = "" if number["stderr"] is None else f" ± {number['stderr']:.4f}"
    return f"{number['value']:.4f}{error}"


def align_columns(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yield each row as one line whose cells are padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
