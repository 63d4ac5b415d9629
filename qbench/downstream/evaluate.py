"""Downstream evaluation: a finished run's artefact is loaded again and asked downstream tasks.

The answers are kept in the attempt's folder:

    <attempt>/downstream.json            for each task: the hash of what was asked, the number of
                                         items, each metric with its standard error
    <attempt>/downstream/<task>.jsonl    one line per item: the document's hash, the
                                         log-likelihoods, the choice, whether it is right

A task is asked again only if its hash or the artefact has changed. Asking twice writes the same
bytes, because the files contain no times.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from torch import nn

from qbench.api.language_model import Quiz, Tokenizer
from qbench.api.problem import Problem
from qbench.api.task import Task
from qbench.artefact.finished_run import require_artefact, require_finished
from qbench.artefact.pack import load_into_model
from qbench.downstream import hf_folder
from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.attempts import Attempt, mark_new_answers
from qbench.runs.config import RunConfig
from qbench.runs.lookup import read_latest_attempt
from qbench.training.devices import parse_device
from qbench.training.setup import open_problem
from qbench.util.json_files import write_atomically
from qbench.util.text import format_count

if TYPE_CHECKING:
    from qbench.downstream.lm_eval_tasks import LoadedTask

__all__ = ["check_names", "evaluate_attempt", "evaluate_folder", "evaluate_run"]


ReportLine = Callable[[str], None]
HUB_TIMEOUT_S = 3.0


def evaluate_run(
    results: Path,
    key_prefix: str,
    names: Sequence[str],
    device: str = "auto",
    force: bool = False,
    report: ReportLine = lambda _: None,
) -> dict[str, Any]:
    """Ask the artefact of a finished run downstream tasks, and return all answers of the run.

    Args:
        results: The results folder.
        key_prefix: The run's key, or its beginning.
        names: Names of quizzes or lm-eval tasks, or paths of task files.
        device: auto, cpu, cuda or cuda:N.
        force: Whether tasks that have been answered are asked again.
        report: Called with one line of text for each task.
    """
    attempt, config = require_finished(read_latest_attempt(results, key_prefix))
    return evaluate_attempt(attempt, config, names, device, force, report)


def evaluate_attempt(
    attempt: Attempt,
    config: RunConfig,
    names: Sequence[str],
    device: str,
    force: bool = False,
    report: ReportLine = lambda _: None,
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do the same as `evaluate_run` for an attempt. `heartbeat` is called after every batch."""
    env, result = attempt.read("env") or {}, attempt.read("result")
    assert result is not None
    # The number of threads can change the last bits, so it is that of the training.
    with torch_threads(env.get("threads")):
        task, problem = open_language_model(config, device)
        tasks = load_downstream_tasks(names, task)
        load_into_model(require_artefact(attempt, result), problem.model)
        assert problem.tokenizer is not None
        model = EvaluatedModel(
            attempt.folder, problem.model.eval(), problem.tokenizer, result["artefact_sha256"]
        )
        try:
            return answer_tasks(model, tasks, force, report, heartbeat)
        finally:
            # If a task fails, the answers to those before it have been written.
            mark_new_answers(attempt)


def evaluate_folder(
    folder: Path,
    names: Sequence[str],
    device: str = "auto",
    force: bool = False,
    report: ReportLine = lambda _: None,
) -> dict[str, Any]:
    """Do the same as `evaluate_run` for a folder of transformers; it keeps the answers itself.

    A folder that `qbench export` wrote names its task, so it can be asked that task's quizzes.
    """
    spec = (Attempt(folder).read("qbench") or {}).get("spec")
    task = registry.build("tasks", spec["task"], spec["task_params"]) if spec else None
    tasks = load_downstream_tasks(names, task)
    network, tokenizer = hf_folder.open_folder(folder, parse_device(device))
    model = EvaluatedModel(folder, network, tokenizer, hf_folder.hash_folder(folder))
    with torch_threads(1):
        return answer_tasks(model, tasks, force, report)


@dataclass(frozen=True)
class EvaluatedModel:
    """A language model with its tokenizer, and the folder that keeps its answers."""

    folder: Path
    model: nn.Module
    tokenizer: Tokenizer
    artefact_sha256: str


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's threads, because it can change the last bits. None leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_language_model(config: RunConfig, device: str) -> tuple[Task, Problem]:
    """Return the task and the problem of a run, or raise UsageError if it is no language model."""
    with hf_folder.unchanged_generator():
        task, problem = open_problem(config, parse_device(device))
    if problem.tokenizer is None:
        raise UsageError(
            f"task {config.task} trains no language model,"
            " so no downstream task can be asked of its runs"
        )
    return task, problem


# ---- the tasks ----


def load_downstream_tasks(names: Sequence[str], task: Task | None) -> list[LoadedTask]:
    """Return the downstream tasks with these names. `task` is the model's own, for its quizzes."""
    quizzes = task.quizzes() if task else {}
    # This comes first: it sets variables that the libraries below read when they are imported.
    check_names(names, quizzes)
    from qbench.downstream import lm_eval_tasks

    return lm_eval_tasks.load_tasks(names, quizzes)


def check_names(names: Sequence[str], quizzes: Mapping[str, Quiz]) -> None:
    """Raise UsageError for a downstream task that does not exist.

    Afterwards the libraries below lm-eval use the network only if that is necessary.
    """
    only_quizzes = bool(names) and all(name in quizzes for name in names)
    if only_quizzes or not is_hub_reachable():
        set_offline()
    if not only_quizzes:
        from qbench.downstream import lm_eval_tasks

        lm_eval_tasks.check_task_names(names, quizzes)


def is_hub_reachable() -> bool:
    """Return whether the Hugging Face hub can be reached, or may be."""
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if any(os.environ.get(name) for name in proxies):
        # Only a download through the proxy could tell.
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = address.hostname or "", address.port or 443
    try:
        socket.create_connection((host, port), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def set_offline() -> None:
    """Keep the libraries below lm-eval from using the network.

    They read these variables when they are imported. Without a network, each of their requests
    would take many seconds to fail.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")


# ---- the answers ----


def answer_tasks(
    model: EvaluatedModel,
    tasks: Sequence[LoadedTask],
    force: bool,
    report: ReportLine,
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Ask the tasks that have not been answered, write the answers, and return all of them."""
    folder = Attempt(model.folder)
    answers = folder.read("downstream") or {}
    if answers.get("artefact_sha256") != model.artefact_sha256:
        # They are the answers of another artefact.
        answers = {"downstream_version": 1, "artefact_sha256": model.artefact_sha256, "tasks": {}}
    for task in tasks:
        earlier = answers["tasks"].get(task.name)
        asked_as = sorted({task.asked_as, *((earlier or {}).get("asked_as") or ())})
        if earlier is not None and earlier["sha256"] == task.sha256 and not force:
            summary = {**earlier, "asked_as": asked_as}
            report(f"{task.name}: answered before")
        else:
            summary = answer_task(model, task, asked_as, heartbeat)
            report(f"{task.name}: {format_count(summary['items'], 'item')}")
        answers["tasks"] = dict(sorted({**answers["tasks"], task.name: summary}.items()))
        # The file is written after every task, so that an error in the next one loses nothing.
        folder.write("downstream", answers)
    return answers


def answer_task(
    model: EvaluatedModel, task: LoadedTask, asked_as: list[str], heartbeat: Callable[[], None]
) -> dict[str, Any]:
    """Ask one task, write the file of its items, and return its summary.

    `asked_as` lists the names by which the task has been found.
    """
    from qbench.downstream.lm_eval_evaluation import evaluate_task

    summary, lines = evaluate_task(task, model.model, model.tokenizer, heartbeat)
    return {
        **summary,
        **write_item_lines(model.folder, task.name, lines),
        "asked_as": asked_as,
        "device": next(model.model.parameters()).device.type,
        "threads": torch.get_num_threads(),
    }


def write_item_lines(
    folder: Path, task_name: str, lines: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Write one line per item, and return the name and the hash of the file."""
    text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    # The name of a task may contain characters that a file name must not.
    file_name = re.sub(r"[^A-Za-z0-9._-]", "-", task_name)
    path = folder / "downstream" / f"{file_name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
    return {
        "file": f"downstream/{path.name}",
        "answers_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
