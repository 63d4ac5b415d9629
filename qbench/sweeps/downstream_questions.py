"""Downstream questions of a sweep: find finished runs with unanswered ones, and have them answered.

Answers cannot change a score, so they are in no key, and a run that was finished long ago is asked
without being trained again. What is unanswered is read from the board's member file and the run
folders, so this sweep or the next one asks for it. A run that cannot answer does not fail, and does
not affect the others.

A quiz that a task defines itself is asked again when its definition has changed, because its hash
can be computed here. The hash of an lm-eval task cannot, without loading lm-eval and the data:
`qbench eval RUN --tasks NAME` compares that one, and asks again if it has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from qbench.downstream.quiz_definition import hash_quiz, make_quiz_rows
from qbench.engines.base import Engine, Event
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig, canonical_json, format_cell_title
from qbench.runs.downstream_answers import list_unanswered_tasks
from qbench.runs.state import read_run_state
from qbench.store.board_members import read_all_board_members
from qbench.sweepfile.config import SweepConfig, SweepEntry
from qbench.util.text import format_count

TICK_S = 0.25
"""How long one poll of the engine waits."""
FIRST_GROUP = 1 << 30
"""Group numbers from here on are used for questions. Training numbers its groups from one, and the
engine must not confuse the two."""


@dataclass
class QuestionSummary:
    """How many runs were asked, and which of them failed to answer."""

    asked: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Title and message of each run that left a question unanswered."""


@dataclass(frozen=True)
class PendingQuestions:
    """A finished run with the downstream tasks that it has not answered."""

    title: str
    attempt: Attempt
    config: RunConfig
    names: tuple[str, ...]


def check_downstream_names(config: SweepConfig) -> None:
    """Raise UsageError if a downstream task of the file is unknown or no run can answer it.

    It is called before anything is trained, because questions are asked at the very end.
    """
    _check_tables_of_one_task(config)
    places = {name: entry.where for entry in config.tasks for name in entry.downstream or ()}
    places |= dict.fromkeys(config.downstream, f"{config.file}: [downstream]")
    if not places:
        return
    _check_language_models(config)
    from qbench.downstream.evaluate import check_names

    known = {
        name: quiz
        for entry in config.tasks
        for name, quiz in load_quizzes(entry.name, entry.params).items()
    }
    for name, where in places.items():
        try:
            check_names([name], known)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def ask_finished_runs(
    sweep: SweepConfig,
    results: Path,
    engine: Engine,
    execution: Execution,
    report: Callable[[str], None] = lambda _: None,
) -> QuestionSummary:
    """Ask finished runs what they have not answered, as many at once as the engine can hold."""
    waiting = list(find_unanswered(sweep, results))[::-1]  # reversed, to pop from the end
    running: dict[int, PendingQuestions] = {}
    summary, group = QuestionSummary(), FIRST_GROUP
    while waiting or running:
        while waiting and len(running) < engine.capacity:
            pending, group = waiting.pop(), group + 1
            running[group] = pending
            assignment = Assignment(
                pending.config, pending.attempt.folder, downstream=pending.names
            )
            engine.submit(group, [assignment], execution)
        for event in engine.poll(TICK_S):
            if event.kind == "ended" and event.group in running:
                record_answer(running.pop(event.group), event, summary)
                total = summary.asked + len(waiting) + len(running)
                report(f"asked {summary.asked} of {total}")
    return summary


def find_unanswered(sweep: SweepConfig, results: Path) -> Iterator[PendingQuestions]:
    """Yield the finished runs of a sweep's board that have unanswered questions.

    Runs of other people and runs whose artefact was deleted are left out.
    """
    if not sweep.downstream and not any(entry.downstream for entry in sweep.tasks):
        return
    boards = (m for m in read_all_board_members(results) if m["board"] == sweep.board)
    members = next(boards, None)
    for cell in members["cells"] if members else ():
        config = RunConfig.from_json(cell["spec"])
        # Trials are not reported, so nobody would read their answers.
        names = () if cell.get("stage") == "trial" else questions_for_run(sweep, config)
        for key in cell["keys"] if names else ():
            attempt = read_run_state(results, key).attempt
            if attempt is None or attempt.merged or not attempt.artefact.is_file():
                continue
            result = attempt.read("result")
            if not result or result.get("state") != "ok":
                continue
            if left := list_unanswered_tasks(attempt, names, quiz_hashes(config)):
                spec = RunConfig.from_json(attempt.read("spec") or {})
                title = format_cell_title(cell["label"], config, cell["variant"])
                yield PendingQuestions(f"{title} seed {spec.seed}", attempt, spec, tuple(left))


def unanswered_by_key(sweep: SweepConfig, results: Path) -> dict[str, tuple[str, ...]]:
    """Return the unanswered downstream tasks of each finished run, by its key."""
    return {pending.attempt.key: pending.names for pending in find_unanswered(sweep, results)}


def record_answer(pending: PendingQuestions, event: Event, summary: QuestionSummary) -> None:
    """Count a run that was asked, and add a failure if it left something unanswered."""
    summary.asked += 1
    # The files decide, not the exit code: answers are written one by one, and those that were
    # written before a worker crashed are valid.
    hashes = quiz_hashes(pending.config)
    if left := list_unanswered_tasks(pending.attempt, pending.names, hashes):
        code = event.details.get("exitcode")
        message = event.details.get("error") or f"the worker ended with exit code {code}"
        summary.failures.append((pending.title, f"{', '.join(left)}: {message}"))


def make_failure_error(failures: Sequence[tuple[str, str]]) -> QbenchError:
    """Return an error with the first failure and the number of the others."""
    title, message = failures[0]
    more = f" (and {format_count(len(failures) - 1, 'more run')})" if len(failures) > 1 else ""
    return QbenchError(
        f"downstream: {title}: {message}{more}; the scores stand, and the next sweep asks again"
    )


# ---- what a run is asked ----


def questions_for_run(sweep: SweepConfig, config: RunConfig) -> tuple[str, ...]:
    """Return the downstream tasks that a run is asked; none if it is no language model.

    They are those of its [[task]] table, or else those of the sweep. A quiz that another task
    defines is left out.
    """
    from qbench.execution.workload import is_language_model

    entry = next(
        (e for e in sweep.tasks if e.name == config.task and e.downstream is not None), None
    )
    names = sweep.downstream if entry is None or entry.downstream is None else entry.downstream
    if not names or not is_language_model(config):
        return ()
    own = load_quizzes(config.task, config.task_params)
    of_others = {name for e in sweep.tasks for name in load_quizzes(e.name, {})} - own.keys()
    return tuple(name for name in names if name not in of_others)


def load_quizzes(task: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the quizzes that a task defines, by name."""
    cls: Any = registry.load("tasks", task)
    try:
        return dict(cls(**params).quizzes())
    except (TypeError, ValueError):
        # A parameter may be a list of values here, an axis. The names do not depend on it.
        return dict(cls().quizzes())


def quiz_hashes(config: RunConfig) -> Callable[[str], str | None]:
    """Return a function from the name of a quiz to the hash of its present definition."""
    return partial(_hash_quiz, config.task, canonical_json(config.task_params))


@cache
def _hash_quiz(task: str, params: str, name: str) -> str | None:
    """Return the hash of a quiz, or None if the task does not define it.

    None is also returned if the quiz's data is not on this machine. The run could not be asked
    again here either.
    """
    try:
        quiz = registry.build("tasks", task, json.loads(params)).quizzes().get(name)
        return None if quiz is None else hash_quiz(name, quiz, make_quiz_rows(name, quiz))
    except QbenchError:
        return None


# ---- checks of the file ----


def may_train_language_model(entry: SweepEntry) -> bool:
    """Return whether a [[task]] table may train language models, or that cannot be said yet."""
    import torch

    if load_quizzes(entry.name, entry.params):
        return True
    cls: Any = registry.load("tasks", entry.name)
    try:
        # On the device `meta` a network takes no memory and no time.
        problem = cls().problem(next(iter(cls.sizes)), 0, 1, torch.device("meta"))
        return problem.tokenizer is not None
    except Exception:  # noqa: BLE001 - a task that needs options to be built may be anything
        return True


def _check_tables_of_one_task(config: SweepConfig) -> None:
    """Raise UsageError if two [[task]] tables of one task ask different questions.

    A run knows its task but not its table, so nobody could say which questions are for it.
    """
    for entry in config.tasks:
        same_task = [other for other in config.tasks if other.name == entry.name]
        if any(other.downstream != entry.downstream for other in same_task):
            raise UsageError(
                f"{entry.where}: downstream: all tables of the task {entry.name} must ask the same"
                " questions, because a run does not know which table it belongs to"
            )


def _check_language_models(config: SweepConfig) -> None:
    """Raise UsageError if questions are asked of a task that trains no language model."""
    for entry in config.tasks:
        if entry.downstream and not may_train_language_model(entry):
            raise UsageError(
                f"{entry.where}: the task {entry.name} has no downstream questions:"
                " it trains no language model"
            )
    if not any(map(may_train_language_model, config.tasks)):
        names = ", ".join(dict.fromkeys(entry.name for entry in config.tasks))
        raise UsageError(
            f"{config.file}: [downstream]: no task here has downstream questions:"
            f" {names} trains no language model"
        )
