"""A finished run's artefact, loaded again and asked downstream tasks; what it answered is kept in the attempt's folder.

    <attempt>/downstream.json            by task: the hash of what was asked, the number of items, each metric with its standard error
    <attempt>/downstream/<task>.jsonl    a line for each item: its document's hash, the log-likelihoods, the choice, right or not

A task whose hash and artefact are the same is not asked again. The same twice writes the same bytes: what a clock says is not in them.
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
from qbench.artefact.finished import finished, the_artefact
from qbench.artefact.pack import load_into_model
from qbench.downstream import hf_folder
from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.attempts import Attempt, mark_new_answers
from qbench.runs.config import RunConfig
from qbench.runs.lookup import read_latest_attempt
from qbench.training.devices import device_named
from qbench.training.setup import open_problem
from qbench.util.json_files import write_atomically
from qbench.util.text import count

if TYPE_CHECKING:
    from qbench.downstream.lm_eval_tasks import Asked

__all__ = ["evaluate_folder", "evaluate_run"]


Report = Callable[[str], None]
HUB_TIMEOUT_S = 3.0


def evaluate_run(
    results: Path,
    beginning: str,
    names: Sequence[str],
    device: str = "auto",
    force: bool = False,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Ask a finished run's artefact and keep the answers. Returns all that is known of the run downstream."""
    attempt, config = finished(read_latest_attempt(results, beginning))
    return evaluate_attempt(attempt, config, names, device, force, report)


def evaluate_attempt(
    attempt: Attempt,
    config: RunConfig,
    names: Sequence[str],
    device: str,
    force: bool = False,
    report: Report = lambda _: None,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    env, result = attempt.read("env") or {}, attempt.read("result")
    assert result is not None
    with threads(env.get("threads")):
        task, problem = language_model(config, device)
        found = asked(names, task)
        load_into_model(the_artefact(attempt, result), problem.model)
        assert problem.tokenizer is not None
        subject = Subject(
            attempt.folder, problem.model.eval(), problem.tokenizer, result["artefact_sha256"]
        )
        try:
            return answers(subject, found, force, report, beat)
        finally:
            mark_new_answers(attempt)


def evaluate_folder(
    folder: Path,
    names: Sequence[str],
    device: str = "auto",
    force: bool = False,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """The same of a folder of Hugging Face's transformers, and the answers are kept in it. One that `qbench export` wrote knows its task."""
    spec = (Attempt(folder).read("qbench") or {}).get("spec")
    found = asked(
        names, registry.build("tasks", spec["task"], spec["task_params"]) if spec else None
    )
    model, words = hf_folder.open_folder(folder, device_named(device))
    with threads(1):
        return answers(
            Subject(folder, model, words, hf_folder.sha256(folder)), found, force, report
        )


@dataclass(frozen=True)
class Subject:
    """Whom to ask, and where the answers are kept."""

    folder: Path
    model: nn.Module
    tokenizer: Tokenizer
    artefact_sha256: str


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for torch: their number moves the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def language_model(config: RunConfig, device: str) -> tuple[Task, Problem]:
    with hf_folder.unchanged_generator():
        task, problem = open_problem(config, device_named(device))
    if problem.tokenizer is None:
        raise UsageError(
            f"task {config.task} trains no language model, so no downstream task can be asked of its runs"
        )
    return task, problem


def asked(names: Sequence[str], task: Task | None) -> list[Asked]:
    """The downstream tasks; lm-eval is imported here and not before."""
    quizzes = task.quizzes() if task else {}
    check_names(names, quizzes)
    from qbench.downstream import lm_eval_tasks

    return lm_eval_tasks.find(names, quizzes)


def check_names(names: Sequence[str], quizzes: Mapping[str, Quiz]) -> None:
    """An error for a name that nobody knows. Afterwards the libraries under lm-eval ask the network for nothing that need not come from it."""
    own = bool(names) and all(name in quizzes for name in names)
    if own or not hub_answers():
        stay_offline()
    if not own:
        from qbench.downstream import lm_eval_tasks

        lm_eval_tasks.check(names, quizzes)


def hub_answers() -> bool:
    """Whether there is a hub to fetch from. Behind a proxy nobody can tell, so it is tried."""
    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection(
            (address.hostname or "", address.port or 443), timeout=HUB_TIMEOUT_S
        ).close()
    except OSError:
        return False
    return True


def stay_offline() -> None:
    """What the libraries under lm-eval read when they are imported: without a network each question to it takes them many seconds."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")


def answers(
    subject: Subject,
    found: Sequence[Asked],
    force: bool,
    report: Report,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Ask what is not answered yet and write it all down."""
    from qbench.downstream import lm_eval_tasks

    place = Attempt(subject.folder)
    known = place.read("downstream") or {}
    if known.get("artefact_sha256") != subject.artefact_sha256:
        known = {"downstream_version": 1, "artefact_sha256": subject.artefact_sha256, "tasks": {}}
    for one in found:
        was = known["tasks"].get(one.name)
        asked_as = sorted({one.asked_as, *((was or {}).get("asked_as") or ())})
        if was is not None and was["sha256"] == one.sha256 and not force:
            summary = {**was, "asked_as": asked_as}
            report(f"{one.name}: answered before")
        else:
            summary, lines = lm_eval_tasks.ask(one, subject.model, subject.tokenizer, beat)
            summary |= keep_lines(subject.folder, one.name, lines) | {"asked_as": asked_as}
            summary |= {
                "device": next(subject.model.parameters()).device.type,
                "threads": torch.get_num_threads(),
            }
            report(f"{one.name}: {count(summary['items'], 'item')}")
        known["tasks"] = dict(sorted({**known["tasks"], one.name: summary}.items()))
        place.write("downstream", known)
    return known


def keep_lines(folder: Path, name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    path = folder / "downstream" / f"{file_name(name)}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
    return {
        "file": f"downstream/{path.name}",
        "answers_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def file_name(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", task)
