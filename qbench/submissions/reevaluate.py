"""Submitted runs held against the methods and tasks that are installed here: known at all, evaluated, trained again."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from qbench.api.load import load_task
from qbench.errors import QbenchError, UsageError
from qbench.plugins import registry
from qbench.runs.config import canonical
from qbench.submissions.bundle import FILES, Bundle, Entry
from qbench.submissions.file_checks import Record
from qbench.submissions.strict_json import Refused
from qbench.util.text import count

if TYPE_CHECKING:
    from qbench.submissions.report import Report


PATIENCE_S = 300.0
"""For one evaluation."""
AGREEMENT = 1e-4
"""How far a score from another machine may be from ours, relatively; or by a tenth of the minimum effect, if that is more."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""Of the processes that evaluate and train: no stranger's word makes them fetch anything. Libraries read these when they are imported."""
MODES = {"evaluate": {**OFFLINE, "OMP_NUM_THREADS": "1"}, "train": OFFLINE}
Say = Callable[[str], None]
Kind = Literal["methods", "tasks"]


# ---- known here ----


class Strange(Exception):
    """Something is not known here; nothing is wrong with it."""


@dataclass
class Known:
    """Runs whose method and task are installed here in the version that they name."""

    runs: list[Entry] = field(default_factory=list)
    strange: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def look(self, record: Record) -> None:
        try:
            fit(record)
            self.runs.append(record.entry)
        except Strange as reason:
            self.strange[str(reason)] += 1
        except Refused as reason:
            self.wrong.append(str(reason))

    def tell(self, report: Report) -> None:
        report.add(
            "plugins",
            f"method and task of {len(self.runs)} of {count(report.runs, 'run')} are known here",
            self.wrong,
        )
        for reason, n in self.strange.items():
            report.add("plugins", f"{count(n, 'run')} left as claimed: {reason}", verdict="note")


def fit(record: Record) -> None:
    """Strange if task, method or version are others here; Refused if they are known and the run contradicts them."""
    config, where = record.config, f"run {record.entry}"
    _plugin("tasks", config.task, config.task_version)
    task = load_task(config.task)
    if config.size not in task.sizes:
        raise Refused(f"{where}: task {config.task} has no size {config.size}")
    told = {
        name: value for name, value in record.result.get("metric", {}).items() if name != "worst"
    }  # which early results have
    if told and told != dataclasses.asdict(task.metric):
        raise Refused(f"{where}: its metric is not that of task {config.task}")
    _plugin("methods", config.method, config.method_version)
    for problem in (
        _parameters("tasks", config.task, canonical(config.task_params)),
        _parameters("methods", config.method, canonical(config.method_params)),
    ):
        if problem:
            raise Refused(f"{where}: {problem}")


def _plugin(kind: Kind, name: str, version: int) -> None:
    if name not in registry.plugins(kind):
        raise Strange(f"no {kind[:-1]} {name} here")
    try:
        here = registry.load(kind, name).version
    except QbenchError as error:
        raise Strange(str(error)) from None
    if here != version:
        raise Strange(f"{kind[:-1]} {name} is at version {here} here, not {version}")


@cache
def _parameters(kind: Kind, name: str, params: str) -> str | None:
    """Why these are not the parameters of a method or task, each of them and no other."""
    try:
        built = registry.build(kind, name, json.loads(params))
        if kind == "tasks" and not built.keyed:
            return f"the parameters of task {name} name a place on the machine that made it, which is not looked at here"
    except UsageError as error:
        return str(error)
    return (
        None
        if canonical(built.params) == params
        else f"the parameters of {kind[:-1]} {name} are not all there"
    )


# ---- evaluated ----


def evaluate(bundle: Bundle, report: Report, known: Iterable[Entry], say: Say) -> None:
    """Put the artefacts of known runs into their networks; those that come to their scores are verified."""
    wrong, mute, done = list[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="qbench-verify-") as scratch, Worker() as worker:
        artefact = Path(scratch) / "weights.safetensors"
        for run in known:
            if (data := bundle.read(run, artefact.name)) is None:
                continue
            artefact.write_bytes(data)
            spec, result = (
                json.loads(bundle.read(run, name) or b"") for name in ("spec.json", "result.json")
            )
            found = worker.ask({"spec": spec, "artefact": str(artefact)})
            if "error" in found and not found["misfit"]:
                mute[found["error"]] += 1
            elif problem := differs(result, found):
                wrong.append(f"run {run}: {problem}")
            else:
                report.trust[run.key] = "verified"
                done += 1
            say(f"{count(done, 'artefact')} evaluated")
    report.add("evaluation", f"{done} artefacts come to their scores here", wrong)
    for sentence, n in mute.items():
        report.add(
            "evaluation",
            f"{count(n, 'run')} left as claimed, whose artefacts could not be evaluated: {sentence}",
            verdict="note",
        )


def differs(result: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """What of an evaluation contradicts the result."""
    if "error" in found:
        return f"its artefact does not fit its network: {found['error']}"
    if found["parameters"] != result["size"]["parameters"]:
        return f"{result['size']['parameters']} parameters, its network has {found['parameters']}"
    told = [
        {name: site[name] for name in ("name", "role", "format", "granularity", "shape")}
        for site in result["sites"]
    ]
    if told != found["sites"]:
        return "its sites are not those that its board quantizes"
    claimed, here, effect = (
        result["scores"]["packed"],
        found["packed"],
        result["metric"]["effect"] or 10.0 ** -result["metric"]["digits"],
    )
    if claimed is None or here is None:
        return (
            None
            if result["kinds"].get("packed") == found["kind"]
            else f"its score is {claimed}, its artefact comes to {here} here"
        )
    if abs(claimed - here) > max(AGREEMENT * max(abs(claimed), abs(here)), effect / 10):
        return f"its score is {claimed:.8g}, its artefact comes to {here:.8g} here"
    return None


class Worker:
    """A process that evaluates, or trains, started when it is asked and again if it has died."""

    def __init__(
        self, mode: Literal["evaluate", "train"] = "evaluate", patience_s: float | None = None
    ) -> None:
        """`patience_s` for one answer; that of an evaluation by default."""
        self.mode, self.patience_s = mode, PATIENCE_S if patience_s is None else patience_s
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qbench.submissions.worker", self.mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **MODES[self.mode]},
            )
        pipe, answers = self.process.stdin, self.process.stdout
        assert pipe and answers
        try:
            pipe.write(json.dumps(question) + "\n")
            pipe.flush()
        except BrokenPipeError:
            pass
        limit = None if math.isinf(self.patience_s) else self.patience_s
        line = answers.readline() if select.select([answers], [], [], limit)[0] else "late"
        if line.endswith("\n"):
            found: dict[str, Any] = json.loads(line)
            return found
        self.stop()
        return {
            "error": f"took more than {self.patience_s:.0f} s"
            if line
            else f"the process that {self.mode}s died",
            "misfit": False,
        }

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


# ---- trained again ----


def train_again(
    bundle: Bundle, report: Report, known: list[Entry], most: int | None, device: str, say: Say
) -> None:
    """Train `most` of the runs that are known here, drawn by chance, or all, and compare. Submitted artefacts are no part of it."""
    drawn = known if most is None else random.SystemRandom().sample(known, min(most, len(known)))
    verdicts, wrong = [], []
    with (
        tempfile.TemporaryDirectory(prefix="qbench-rerun-") as scratch,
        Worker("train", math.inf) as worker,
    ):
        for run, data in records_of(bundle):
            folder = Path(scratch) / "runs" / run.key[:2] / run.key / str(run.attempt)
            folder.mkdir(parents=True)
            for name in data:
                (folder / FILES[name]).write_bytes(data[name])
        for run in drawn:
            say(f"training run {run} again")
            found = worker.ask({"results": scratch, "key": run.key, "device": device})
            if "error" in found:
                report.add(
                    "rerun", f"run {run} cannot be trained here: {found['error']}", verdict="note"
                )
                continue
            verdicts.append(found["verdict"])
            if found["verdict"] == "different":
                wrong.append(
                    f"run {run} comes to something else: {found['recorded']}, here {found['found']}"
                )
            else:
                report.trust[run.key] = "reproduced"
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)) or "none"
    report.add(
        "rerun", f"{len(verdicts)} of {count(report.runs, 'run')} trained again: {counts}", wrong
    )


def records_of(bundle: Bundle) -> Iterator[tuple[Entry, dict[str, bytes]]]:
    """The small files of each run: its record, without its artefact."""
    for run in bundle.runs:
        names = [name for name in run.files if name != "weights.safetensors"]
        yield run, {name: bundle.read(run, name) or b"" for name in names}
