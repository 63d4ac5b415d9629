"""What a sweep file wants asked of its runs once they are finished: which runs lack which answers, and the workers that get them.

Answers cannot move a score, so they are in no key, and a run that was finished long ago is asked without being trained again. All of it is
read from the board's roster and the run folders: whatever is missing there is asked, by this sweep or the next. What cannot be answered
fails nothing but itself.

A quiz of a task's own that has changed since is asked again: its hash is known here. That of a file or a name of lm-eval's is not, without
loading lm-eval and the data: `qbench eval RUN --tasks NAME` compares it, and asks again what has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from qbench.downstream.quiz_definition import rows, sha256
from qbench.engines.base import Engine, Event
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.plugins import registry
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig, canonical, cell_title
from qbench.runs.downstream_answers import missing
from qbench.runs.state import standing
from qbench.store import board_members
from qbench.sweepfile.config import Entry, SweepConfig
from qbench.util.text import count

TICK_S = 0.25


@dataclass
class Asking:
    """How it ended."""

    asked: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Title and message of every run that gave no answer."""


@dataclass(frozen=True)
class Todo:
    title: str
    attempt: Attempt
    config: RunConfig
    names: tuple[str, ...]


def check(config: SweepConfig) -> None:
    """Every name that a sweep file asks for is known to somebody, and somebody can answer: said before anything is trained."""
    for entry in config.tasks:
        if any(
            other.downstream != entry.downstream
            for other in config.tasks
            if other.name == entry.name
        ):
            raise UsageError(
                f"{entry.where}: downstream: all tables of the task {entry.name} must ask the same, for a run knows its task alone"
            )
    asked = {name: entry.where for entry in config.tasks for name in entry.downstream or ()}
    asked |= dict.fromkeys(config.downstream, f"{config.file}: [downstream]")
    if not asked:
        return
    for entry in config.tasks:
        if entry.downstream and not may_read_text(entry):
            raise UsageError(
                f"{entry.where}: the task {entry.name} has no downstream questions: it trains no language model"
            )
    if not any(map(may_read_text, config.tasks)):
        names = ", ".join(dict.fromkeys(entry.name for entry in config.tasks))
        raise UsageError(
            f"{config.file}: [downstream]: no task here has downstream questions: {names} trains no language model"
        )
    from qbench.downstream.evaluate import check_names

    known = {
        name: quiz
        for entry in config.tasks
        for name, quiz in quizzes(entry.name, entry.params).items()
    }
    for name, where in asked.items():
        try:
            check_names([name], known)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def quizzes(task: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the task as it is with its own options: those that are axes here say nothing of the names."""
    cls: Any = registry.load("tasks", task)
    try:
        return dict(cls(**params).quizzes())
    except (TypeError, ValueError):
        return dict(cls().quizzes())


def may_read_text(entry: Entry) -> bool:
    """Whether a task trains language models, as far as can be told before its options are resolved."""
    import torch

    if quizzes(entry.name, entry.params):
        return True
    cls: Any = registry.load("tasks", entry.name)
    try:
        return (
            cls().problem(next(iter(cls.sizes)), 0, 1, torch.device("meta")).tokenizer is not None
        )
    except Exception:  # noqa: BLE001 - one that cannot be made without its options may be anything
        return True


def wanted(sweep: SweepConfig, config: RunConfig) -> tuple[str, ...]:
    """The names that a run is asked: those of its [[task]], or else those of the sweep that are not another task's own."""
    from qbench.execution.workload import reads_text

    entry = next(
        (e for e in sweep.tasks if e.name == config.task and e.downstream is not None), None
    )
    names = sweep.downstream if entry is None or entry.downstream is None else entry.downstream
    if not names or not reads_text(config):
        return ()
    own = quizzes(config.task, config.task_params)
    others = {name for e in sweep.tasks for name in quizzes(e.name, {})} - own.keys()
    return tuple(name for name in names if name not in others)


def hashes(config: RunConfig) -> Callable[[str], str | None]:
    """The present hashes of the quizzes of a run's task, by name."""
    return partial(_hash, config.task, canonical(config.task_params))


@cache
def _hash(task: str, params: str, name: str) -> str | None:
    """None for what is no quiz of the task's own, and where its data is not on this machine: then it cannot be asked again either."""
    try:
        quiz = registry.build("tasks", task, json.loads(params)).quizzes().get(name)
        return None if quiz is None else sha256(name, quiz, rows(name, quiz))
    except QbenchError:
        return None


def lacking(sweep: SweepConfig, results: Path) -> Iterator[Todo]:
    """Finished runs of the sweep's board whose artefact is there and has not answered everything."""
    if not sweep.downstream and not any(entry.downstream for entry in sweep.tasks):
        return
    members = next((r for r in board_members.read_all(results) if r["board"] == sweep.board), None)
    for cell in members["cells"] if members else ():
        config = RunConfig.from_json(cell["spec"])
        names = () if cell.get("stage") == "trial" else wanted(sweep, config)
        for key in cell["keys"] if names else ():
            attempt = standing(results, key).attempt
            result = (
                attempt.read("result")
                if attempt and not attempt.merged and attempt.artefact.is_file()
                else None
            )
            if (
                attempt
                and result
                and result.get("state") == "ok"
                and (left := missing(attempt, names, hashes(config)))
            ):
                spec = RunConfig.from_json(attempt.read("spec") or {})
                yield Todo(
                    f"{cell_title(cell['label'], config, cell['variant'])} seed {spec.seed}",
                    attempt,
                    spec,
                    tuple(left),
                )


def unanswered(sweep: SweepConfig, results: Path) -> dict[str, tuple[str, ...]]:
    """What each finished run, by its key, is still to be asked."""
    return {todo.attempt.key: todo.names for todo in lacking(sweep, results)}


def ask(
    sweep: SweepConfig,
    results: Path,
    engine: Engine,
    execution: Execution,
    report: Callable[[str], None] = lambda _: None,
) -> Asking:
    """Ask whatever is lacking, as many runs at once as the engine holds."""
    todo, going, found = list(lacking(sweep, results))[::-1], dict[int, Todo](), Asking()
    group = GROUPS
    while todo or going:
        while todo and len(going) < engine.capacity:
            one, group = todo.pop(), group + 1
            going[group] = one
            engine.submit(
                group, [Assignment(one.config, one.attempt.folder, downstream=one.names)], execution
            )
        for event in engine.poll(TICK_S):
            if event.kind == "ended" and event.group in going:
                ended(going.pop(event.group), event, found)
                report(f"asked {found.asked} of {found.asked + len(todo) + len(going)}")
    return found


GROUPS = 1 << 30
"""Groups of the engine from here on are ours; a sweep numbers its own from one."""


def ended(one: Todo, event: Event, found: Asking) -> None:
    found.asked += 1
    if left := missing(one.attempt, one.names, hashes(one.config)):
        message = (
            event.details.get("error")
            or f"the worker ended with exit code {event.details.get('exitcode')}"
        )
        found.failures.append((one.title, f"{', '.join(left)}: {message}"))


def complain(failures: Sequence[tuple[str, str]]) -> QbenchError:
    """The first failure in a line, and how many there are."""
    title, message = failures[0]
    more = f" (and {count(len(failures) - 1, 'more run')})" if len(failures) > 1 else ""
    return QbenchError(
        f"downstream: {title}: {message}{more}; the scores stand, and the next sweep asks again"
    )
