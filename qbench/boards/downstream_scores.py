"""The downstream scores of a board: what each run answered, and the mean over seeds of each cell.

A run's answers are stored as JSON by task in the column `downstream` of its row. Two scores may
be compared only if they come from the same definition of a task, documents included. So the hash
of the definition is part of a task's identity, and two definitions under one name are two tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qbench.boards.board import DownstreamScore, DownstreamTask
from qbench.boards.cell_rows import CellRows
from qbench.errors import QbenchError
from qbench.stats import intervals
from qbench.util import text

__all__ = [
    "ANSWER_FIELDS",
    "DownstreamAnswer",
    "answers_to_json",
    "collect_answers",
    "list_downstream_tasks",
    "merge_downstream_tasks",
    "score_downstream_tasks",
]


ANSWER_FIELDS = ("sha256", "items", "metric", "value", "stderr", "better", "chance", "ceiling")
"""What is stored for each task that a run has answered."""


class DownstreamAnswer(NamedTuple):
    """What one run scored on a downstream task."""

    task: DownstreamTask
    value: float
    """NaN where there is no score."""
    key: str
    attempt: int


CellAnswers = Mapping[str, Mapping[int, DownstreamAnswer]]
"""The answers of a cell's runs, by the id of the task and then by seed."""


def answers_to_json(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a run's answers by task as the text in the column `downstream`."""
    return json.dumps(tasks, sort_keys=True)


def collect_answers(rows: CellRows, texts: Sequence[str]) -> CellAnswers:
    """Return the answers of a cell's runs that have a score, in the order of seeds.

    `texts` are the different texts of the column `downstream`, in which `rows` holds indices. Of
    two runs with one seed the first by key counts.
    """
    found: dict[str, dict[int, DownstreamAnswer]] = {}
    which = np.flatnonzero((rows["downstream"] > 0) & rows["good"] & np.isfinite(rows["seed"]))
    # The sort must be stable: rows of one seed stay in the order of their keys.
    for i in which[np.argsort(rows["seed"][which], kind="stable")]:
        for name, fields in _parse_answers(texts[rows["downstream"][i]]).items():
            task = _make_downstream_task(name, fields)
            value = _finite_or(fields.get("value"), math.nan)
            key, attempt = str(rows["key"][i]), int(rows["attempt"][i])
            answer = DownstreamAnswer(task, value, key, attempt)
            found.setdefault(task.id, {}).setdefault(int(rows["seed"][i]), answer)
    return found


def list_downstream_tasks(cells: Sequence[CellAnswers]) -> tuple[DownstreamTask, ...]:
    """Return each task that some cell has answered once, sorted by id."""
    return merge_downstream_tasks(
        [answer.task for seeds in cell.values() for answer in seeds.values()] for cell in cells
    )


def merge_downstream_tasks(
    groups: Iterable[Iterable[DownstreamTask]],
) -> tuple[DownstreamTask, ...]:
    """Return the tasks of all groups, each once, sorted by id."""
    found = {task.id: task for group in groups for task in group}
    return tuple(found[id_] for id_ in sorted(found))


def score_downstream_tasks(cell: CellAnswers) -> dict[str, DownstreamScore]:
    """Return the mean over seeds for each task that a cell has answered."""
    return {
        id_: _average([a.value for a in seeds.values() if math.isfinite(a.value)])
        for id_, seeds in sorted(cell.items())
    }


def _average(values: Sequence[float]) -> DownstreamScore:
    return DownstreamScore(intervals.mean_interval(values) if values else None, len(values))


def _parse_answers(word: str) -> dict[str, Mapping[str, Any]]:
    try:
        found = json.loads(word)
        return {str(task): fields for task, fields in found.items() if fields["sha256"]}
    except (ValueError, AttributeError, TypeError, KeyError):
        shown = text.clean_line(word, 60)
        raise QbenchError(f"the column downstream holds no answers: {shown}") from None


def _make_downstream_task(task: str, fields: Mapping[str, Any]) -> DownstreamTask:
    sha256, metric, better = (
        str(fields.get(name) or "") for name in ("sha256", "metric", "better")
    )
    items, chance, ceiling = (
        _finite_or(fields.get(name), None) for name in ("items", "chance", "ceiling")
    )
    count = None if items is None else int(items)
    id_ = f"{task} {metric} {sha256}"
    return DownstreamTask(id_, task, sha256, metric, better, count, chance, ceiling)


def _finite_or(value: Any, otherwise: Any) -> Any:
    # `type` and not `isinstance`: True is an int, but no number in an answer.
    return value if type(value) in (int, float) and math.isfinite(value) else otherwise
