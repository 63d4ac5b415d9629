"""Downstream tasks: finding them by name, loading them into lm-eval, and hashing what they ask.

A downstream task is one that a task of qbench defines (a `Quiz`), a task file in lm-eval's format,
or a task that lm-eval knows by name, whose data it downloads from the hub. Only this module,
`lm_eval_adapter` and `lm_eval_evaluation` import lm_eval.
"""

from __future__ import annotations

import difflib
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.tasks import TaskManager

from qbench.api.language_model import Quiz
from qbench.downstream.quiz_definition import Row, hash_json, hash_quiz, make_quiz_rows
from qbench.errors import QbenchError, UsageError, unknown_name_error

__all__ = ["LoadedTask", "check_task_names", "load_tasks"]


FEWSHOT_SEED = 1234
"""The seed that lm-eval itself uses to draw examples."""
TYPO_CUTOFF = 0.75
"""A wrong name this similar to a quiz's is taken for a typing error. Otherwise lm-eval would have
to read its list of ten thousand names first."""


@dataclass(frozen=True)
class LoadedTask:
    """A downstream task that is ready to be asked."""

    name: str
    task: Any
    """The task of lm-eval."""
    sha256: str
    """The hash of its definition, its documents and its examples."""
    asked_as: str = ""
    """The name, file or group by which it was found."""
    quiz: Quiz | None = None


def load_tasks(names: Sequence[str], quizzes: Mapping[str, Quiz]) -> list[LoadedTask]:
    """Return the downstream tasks with these names or paths. A group stands for its tasks."""
    loaded: dict[str, LoadedTask] = {}
    with silenced_libraries():
        for name in names:
            # A task that is found twice is asked once.
            loaded |= {task.name: task for task in load_tasks_of_name(name, quizzes)}
    return list(loaded.values())


def check_task_names(names: Sequence[str], quizzes: Mapping[str, Quiz]) -> None:
    """Raise UsageError if a name is unknown, or if there are no names."""
    if not names:
        raise UsageError(f"no downstream task is named; here are {', '.join(quizzes) or 'none'}")
    for name in names:
        if name in quizzes or is_path(name):
            continue
        if difflib.get_close_matches(name, quizzes, n=1, cutoff=TYPO_CUTOFF):
            raise unknown_name_error("downstream task", name, quizzes)
        if name not in index_all_tasks().all_tasks:
            # Comparing with all names would be slow. Typing errors are rare at the beginning.
            similar = [other for other in index_all_tasks().all_tasks if other[:2] == name[:2]]
            raise unknown_name_error("downstream task", name, [*quizzes, *similar])


def is_path(name: str) -> bool:
    """Return whether a name is the path of a file or folder.

    A plain word is a name, even if there is a folder of that name.
    """
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        return False
    if not Path(name).exists():
        raise UsageError(f"{name}: no such task file or folder")
    return True


@cache
def index_all_tasks() -> TaskManager:
    """Return an index of all tasks that lm-eval knows. Reading its files takes five seconds."""
    return TaskManager()


def load_tasks_of_name(name: str, quizzes: Mapping[str, Quiz]) -> list[LoadedTask]:
    """Return the task with this name, or all tasks of a group, a file or a folder."""
    if name in quizzes:
        return [load_quiz(name, quizzes[name])]
    try:
        tasks = load_path(Path(name)) if is_path(name) else index_all_tasks().load([name])["tasks"]
    except QbenchError:
        raise
    except Exception as error:
        raise QbenchError(f"downstream task {name}: {describe_error(error)}") from error
    if not tasks:
        raise UsageError(f"{name}: it contains no lm-eval task")
    return [
        LoadedTask(task_name, task, hash_task(task), name)
        for task_name, task in sorted(tasks.items())
    ]


def load_quiz(name: str, quiz: Quiz) -> LoadedTask:
    """Return a quiz as a downstream task."""
    items = make_quiz_rows(name, quiz)
    config = make_quiz_config(name, quiz, items)
    task = TaskManager(include_defaults=False).load([config])["tasks"][name]
    return LoadedTask(name, task, hash_quiz(name, quiz, items), name, quiz)


def load_path(path: Path) -> dict[str, Any]:
    """Return the lm-eval tasks of a file, or of all files in a folder."""
    # Without the defaults, lm-eval does not read its own thousands of files.
    if path.is_file():
        return dict(TaskManager(include_defaults=False).load([str(path)])["tasks"])
    manager = TaskManager(include_defaults=False, include_path=path)
    return dict(manager.load(manager.all_subtasks)["tasks"]) if manager.all_subtasks else {}


def make_quiz_config(name: str, quiz: Quiz, items: list[Row]) -> dict[str, Any]:
    """Return the definition of a quiz as lm-eval reads it.

    It refers to fields by name instead of by templates, which are a thousand times slower.
    """
    if "choices" in items[0]:
        kind = {
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "right",
        }
        metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    else:
        kind = {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "nothing",
            "doc_to_target": "text",
        }
        metric = {
            "metric": "bits_per_byte",
            "aggregation": "bits_per_byte",
            "higher_is_better": False,
        }
    return {
        "task": name,
        "test_split": "test",
        "metadata": {"version": quiz.version},
        "num_fewshot": 0,
        **kind,
        "metric_list": [metric],
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(items)},
    }


def hash_task(task: Any) -> str:
    """Return the hash of an lm-eval task's definition and documents.

    Where its file and its data are stored does not matter, because the documents are hashed.
    """
    config = task.dump_config()
    config.pop("metadata", None)
    config.pop("dataset_kwargs", None)
    examples = list(task.fewshot_docs() or ()) if config.get("num_fewshot") else []
    return hash_json(
        [config, task.VERSION, FEWSHOT_SEED, list(task.eval_docs), examples], to_plain_data
    )


def to_plain_data(value: Any) -> Any:
    """Convert what JSON does not know: NumPy's numbers and arrays, bytes, and other objects."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value.hex() if isinstance(value, bytes) else str(value)


def describe_error(error: Exception) -> str:
    """Return the first line of an error, or what to do if the network is missing."""
    line = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]
    # The libraries raise errors of many classes if they are offline, so their words must tell.
    if isinstance(error, ConnectionError) or any(
        word in line for word in ("Offline", "offline", "reach")
    ):
        return (
            "its data is not on this machine, and the hub cannot be reached (or HF_HUB_OFFLINE is"
            " set); once it is there no network is needed"
        )
    return line


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Discard what lm-eval and the libraries below it print; errors are raised anyway.

    Random numbers that they draw from global generators, for the names of temporary files, are
    undone: an evaluation must not change what the caller draws next.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
