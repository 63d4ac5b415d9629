"""How the runs of a board did downstream: what each answered, and the mean over seeds of each cell.

A run's answers travel as JSON by task, in the column `downstream` of its row. Numbers belong together only where the hash of the definition is
the same, its documents included: the columns here are exams, and two definitions under one name are two of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qbench.boards.board import Exam, Grade
from qbench.boards.cell_rows import Part
from qbench.errors import QbenchError
from qbench.stats import intervals
from qbench.util import text

__all__ = ["STORED", "Answer", "answers_by_exam", "exams_of", "grades_of", "spelled", "united"]


STORED = ("sha256", "items", "metric", "value", "stderr", "better", "chance", "ceiling")
"""What a run's answers to a task say."""


def spelled(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """A run's answers as its row has them."""
    return json.dumps(tasks, sort_keys=True)


# ---- numbers ----


class Answer(NamedTuple):
    """What one run answered in an exam."""

    exam: Exam
    value: float
    """NaN where there is none."""
    key: str
    attempt: int


Answers = Mapping[str, Mapping[int, Answer]]
"""Of a cell, by exam and seed."""


def answers_by_exam(part: Part, words: Sequence[str]) -> Answers:
    """Those of the runs whose score counts, in the order of seeds; of two runs with one seed, the first by key."""
    found: dict[str, dict[int, Answer]] = {}
    which = np.flatnonzero((part["downstream"] > 0) & part["good"] & np.isfinite(part["seed"]))
    for i in which[np.argsort(part["seed"][which], kind="stable")]:
        for task, told in read(words[part["downstream"][i]]).items():
            exam = exam_of(task, told)
            answer = Answer(
                exam,
                number(told.get("value"), math.nan),
                str(part["key"][i]),
                int(part["attempt"][i]),
            )
            found.setdefault(exam.id, {}).setdefault(int(part["seed"][i]), answer)
    return found


def read(word: str) -> dict[str, Mapping[str, Any]]:
    try:
        found = json.loads(word)
        return {str(task): told for task, told in found.items() if told["sha256"]}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise QbenchError(
            f"the column downstream holds no answers: {text.plain(word, 60)}"
        ) from None


def exam_of(task: str, told: Mapping[str, Any]) -> Exam:
    sha256, metric, better = (str(told.get(name) or "") for name in ("sha256", "metric", "better"))
    items, chance, ceiling = (number(told.get(name)) for name in ("items", "chance", "ceiling"))
    return Exam(
        f"{task} {metric} {sha256}",
        task,
        sha256,
        metric,
        better,
        None if items is None else int(items),
        chance,
        ceiling,
    )


def number(value: Any, otherwise: Any = None) -> Any:
    return value if type(value) in (int, float) and math.isfinite(value) else otherwise


def exams_of(cells: Sequence[Answers]) -> tuple[Exam, ...]:
    """Everything that was asked, each once, by its id."""
    return united(
        [answer.exam for seeds in cell.values() for answer in seeds.values()] for cell in cells
    )


def united(exams: Iterable[Iterable[Exam]]) -> tuple[Exam, ...]:
    found = {exam.id: exam for each in exams for exam in each}
    return tuple(found[name] for name in sorted(found))


def grades_of(cell: Answers) -> dict[str, Grade]:
    return {
        exam: grade([a.value for a in seeds.values() if math.isfinite(a.value)])
        for exam, seeds in sorted(cell.items())
    }


def grade(values: Sequence[float]) -> Grade:
    return Grade(intervals.mean_interval(values) if values else None, len(values))
