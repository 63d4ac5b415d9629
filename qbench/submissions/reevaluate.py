"""Compare submitted runs with the methods and tasks that are installed here.

For each run: are its method and task installed in the version that it names, does its artefact
reach the claimed score, and does training it again give the same result?
"""

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from qbench.api.load import load_task
from qbench.errors import QbenchError, UsageError
from qbench.plugins import registry
from qbench.runs.config import canonical_json
from qbench.submissions.bundle import RUN_FILES, Bundle, ManifestRun
from qbench.submissions.file_checks import ParsedRun
from qbench.submissions.strict_json import SubmissionError
from qbench.util.text import format_count

if TYPE_CHECKING:
    from qbench.submissions.report import VerificationReport


EVALUATION_TIMEOUT_S = 300.0
"""How long one evaluation may take."""
REEVALUATION_TOLERANCE = 1e-4
"""How far a score from another machine may differ from ours, relatively.

A tenth of the minimum effect is allowed as well, if that is more.
"""
OFFLINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Environment of every worker: a submission must not be able to cause downloads.

It is set before the process starts, because the libraries read it when they are imported.
"""
WorkerMode = Literal["evaluate", "train"]
WORKER_ENVIRONMENTS: dict[WorkerMode, dict[str, str]] = {
    "evaluate": {**OFFLINE_ENVIRONMENT, "OMP_NUM_THREADS": "1"},
    "train": OFFLINE_ENVIRONMENT,
}
ProgressCallback = Callable[[str], None]
PluginKind = Literal["methods", "tasks"]


# ---- Is the run's method and task installed here? ----


class UnavailablePlugin(Exception):
    """The method or task is not installed here in this version; nothing is wrong with the run."""


@dataclass
class KnownRuns:
    """The runs whose method and task are installed here in the version that they name."""

    runs: list[ManifestRun] = field(default_factory=list)
    unavailable: Counter[str] = field(default_factory=Counter)
    """How many runs need a plugin that is unavailable, by the reason."""
    contradictions: list[str] = field(default_factory=list)
    """Why runs of known methods and tasks are refused."""

    def add_run(self, run: ParsedRun) -> None:
        """Compare a run with the installed plugins and file it under the outcome."""
        try:
            check_against_plugins(run)
            self.runs.append(run.entry)
        except UnavailablePlugin as reason:
            self.unavailable[str(reason)] += 1
        except SubmissionError as reason:
            self.contradictions.append(str(reason))

    def add_to_report(self, report: VerificationReport) -> None:
        report.add_check(
            "plugins",
            f"the method and task of {len(self.runs)} of {format_count(report.runs, 'run')} "
            "are installed here",
            self.contradictions,
        )
        for reason, n in self.unavailable.items():
            report.add_note("plugins", f"{format_count(n, 'run')} left as claimed: {reason}")


def check_against_plugins(run: ParsedRun) -> None:
    """Compare a run with the installed task and method.

    Raise `UnavailablePlugin` if one of them is not installed in the version that the run names, and
    `SubmissionError` if both are and the run contradicts them.
    """
    config, where = run.config, f"run {run.entry}"
    _require_installed_version("tasks", config.task, config.task_version)
    task = load_task(config.task)
    if config.size not in task.sizes:
        raise SubmissionError(f"{where}: task {config.task} has no size {config.size}")
    metric = dict(run.result.get("metric", {}))
    metric.pop("worst", None)  # results of early versions have this field
    if metric and metric != dataclasses.asdict(task.metric):
        raise SubmissionError(f"{where}: its metric is not that of task {config.task}")
    _require_installed_version("methods", config.method, config.method_version)
    # Parameters are passed as canonical JSON, because the results are cached.
    for problem in (
        _find_parameter_problem("tasks", config.task, canonical_json(config.task_params)),
        _find_parameter_problem("methods", config.method, canonical_json(config.method_params)),
    ):
        if problem:
            raise SubmissionError(f"{where}: {problem}")


def _require_installed_version(kind: PluginKind, name: str, version: int) -> None:
    if name not in registry.plugins(kind):
        raise UnavailablePlugin(f"{kind[:-1]} {name} is not installed here")
    try:
        installed = registry.load(kind, name).version
    except QbenchError as error:
        raise UnavailablePlugin(str(error)) from None
    if installed != version:
        raise UnavailablePlugin(f"{kind[:-1]} {name} has version {installed} here, not {version}")


@cache
def _find_parameter_problem(kind: PluginKind, name: str, params: str) -> str | None:
    """Return why a method or task cannot have exactly these parameters, or None if it can."""
    try:
        plugin = registry.build(kind, name, json.loads(params))
        # This comes before `key_options`: a task may open the path to compute them.
        if kind == "tasks" and not plugin.portable:
            return (
                f"the parameters of task {name} name a place on the machine that trained the run; "
                "no such place is opened here"
            )
    except UsageError as error:
        return str(error)
    own = plugin.key_options() if kind == "tasks" else plugin.params
    if canonical_json(own) == params:
        return None
    return f"the parameters of {kind[:-1]} {name} are incomplete"


# ---- Does the artefact reach the claimed score? ----


def evaluate_artefacts(
    bundle: Bundle,
    report: VerificationReport,
    runs: Iterable[ManifestRun],
    on_progress: ProgressCallback,
) -> None:
    """Evaluate the artefacts of runs; those that reach their scores become verified."""
    contradictions, not_evaluated, verified = list[str](), Counter[str](), 0
    with (
        tempfile.TemporaryDirectory(prefix="qbench-verify-") as scratch,
        SubmissionWorker() as worker,
    ):
        for run in runs:
            evaluation = _evaluate_artefact(bundle, run, worker, Path(scratch))
            if evaluation is None:
                continue
            # An artefact that does not fit its network speaks against the run; other errors do not.
            if "error" in evaluation and not evaluation["misfit"]:
                not_evaluated[evaluation["error"]] += 1
            elif problem := find_contradiction(_read_json(bundle, run, "result.json"), evaluation):
                contradictions.append(f"run {run}: {problem}")
            else:
                report.trust[run.key] = "verified"
                verified += 1
            on_progress(f"{format_count(verified, 'artefact')} verified")
    report.add_check(
        "evaluation",
        f"{format_count(verified, 'artefact')} reached the claimed score",
        contradictions,
    )
    for reason, n in not_evaluated.items():
        report.add_note(
            "evaluation",
            f"{format_count(n, 'run')} left as claimed; "
            f"the artefact could not be evaluated: {reason}",
        )


def _evaluate_artefact(
    bundle: Bundle, run: ManifestRun, worker: SubmissionWorker, scratch: Path
) -> dict[str, Any] | None:
    """Return the worker's evaluation, or None if the bundle has no artefact of the run."""
    artefact = scratch / "weights.safetensors"
    data = bundle.read_file(run, artefact.name)
    if data is None:
        return None
    artefact.write_bytes(data)
    spec = _read_json(bundle, run, "spec.json")
    return worker.request_answer({"spec": spec, "artefact": str(artefact)})


def _read_json(bundle: Bundle, run: ManifestRun, name: str) -> Any:
    """Return a JSON file that `file_checks` has already accepted."""
    return json.loads(bundle.read_file(run, name) or b"")


def find_contradiction(result: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str | None:
    """Return what in an evaluation contradicts the result, or None if nothing does."""
    if "error" in evaluation:
        return f"its artefact does not fit its network: {evaluation['error']}"
    parameters = result["size"]["parameters"]
    if evaluation["parameters"] != parameters:
        return f"its result has {parameters} parameters, but its network {evaluation['parameters']}"
    names = ("name", "role", "format", "granularity", "shape")
    listed_sites = [{name: site[name] for name in names} for site in result["sites"]]
    if listed_sites != evaluation["sites"]:
        return "its sites are not those that its board quantizes"
    return _compare_scores(result, evaluation)


def _compare_scores(result: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str | None:
    claimed, reached = result["scores"]["packed"], evaluation["packed"]
    if claimed is None or reached is None:
        # A score that is not finite is null; its kind says whether it was nan, inf or -inf.
        if result["kinds"].get("packed") == evaluation["kind"]:
            return None
        return f"its score is {claimed}, but its artefact reaches {reached} here"
    # A task without a minimum effect has the last digit that it shows in its place.
    effect = result["metric"]["effect"] or 10.0 ** -result["metric"]["digits"]
    magnitude = max(abs(claimed), abs(reached))
    if abs(claimed - reached) > max(REEVALUATION_TOLERANCE * magnitude, effect / 10):
        return f"its score is {claimed:.8g}, but its artefact reaches {reached:.8g} here"
    return None


class SubmissionWorker:
    """A process that evaluates or trains submitted runs: see `qbench.submissions.worker`.

    It starts with the first question, and again with the next one after it has died.
    """

    def __init__(self, mode: WorkerMode = "evaluate", timeout_s: float | None = None) -> None:
        """Prepare a worker; `timeout_s` for one answer is that of an evaluation by default."""
        self.mode: WorkerMode = mode
        self.timeout_s = EVALUATION_TIMEOUT_S if timeout_s is None else timeout_s
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> SubmissionWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def request_answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the worker's answer, or an error if it dies or takes too long."""
        if self.process is None:
            self.process = self._start_process()
        requests, answers = self.process.stdin, self.process.stdout
        assert requests and answers
        try:
            requests.write(json.dumps(question) + "\n")
            requests.flush()
        except BrokenPipeError:
            pass  # the worker has died; reading its answer below finds the end of the file
        timeout = None if math.isinf(self.timeout_s) else self.timeout_s
        # `select` sees only the pipe, not what Python has buffered. That is safe here: the worker
        # writes one line for each question, so nothing is buffered before an answer.
        in_time = bool(select.select([answers], [], [], timeout)[0])
        line = answers.readline() if in_time else ""
        if line.endswith("\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        # No answer, or half of one: the process is dead or busy, so it cannot be used again.
        self.stop()
        died = f"the process that {self.mode}s died"
        late = f"it took more than {self.timeout_s:.0f} s"
        return {"error": died if in_time else late, "misfit": False}

    def _start_process(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            # -P keeps the current folder off the import path: it may hold a stranger's files.
            [sys.executable, "-P", "-m", "qbench.submissions.worker", self.mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **WORKER_ENVIRONMENTS[self.mode]},
        )

    def stop(self) -> None:
        """Kill the process, if one is running."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()  # close the pipes and reap the process
            self.process = None


# ---- Does training again give the same result? ----


def retrain_runs(
    bundle: Bundle,
    report: VerificationReport,
    runs: list[ManifestRun],
    limit: int | None,
    device: str,
    on_progress: ProgressCallback,
) -> None:
    """Train up to `limit` randomly chosen runs again, or all of them, and compare.

    The submitted artefacts are not used.
    """
    chosen = runs
    if limit is not None:
        # The system's randomness: a submitter must not be able to predict which runs are chosen.
        chosen = random.SystemRandom().sample(runs, min(limit, len(runs)))
    verdicts, contradictions = [], []
    with (
        tempfile.TemporaryDirectory(prefix="qbench-rerun-") as scratch,
        SubmissionWorker("train", math.inf) as worker,
    ):
        _write_run_records(bundle, Path(scratch))
        for run in chosen:
            on_progress(f"training run {run} again")
            answer = worker.request_answer({"results": scratch, "key": run.key, "device": device})
            if "error" in answer:
                report.add_note("rerun", f"run {run} cannot be trained here: {answer['error']}")
                continue
            verdicts.append(answer["verdict"])
            if answer["verdict"] == "different":
                contradictions.append(
                    f"run {run} reaches another result: {answer['recorded']} is claimed, "
                    f"{answer['found']} was reached here"
                )
            else:
                report.trust[run.key] = "reproduced"
    counts = ", ".join(f"{n} {verdict}" for verdict, n in Counter(verdicts).items()) or "none"
    detail = f"{len(verdicts)} of {format_count(report.runs, 'run')} trained again: {counts}"
    report.add_check("rerun", detail, contradictions)


def _write_run_records(bundle: Bundle, results: Path) -> None:
    """Write all runs into a results folder without their artefacts.

    All of them, because a chosen run may need the record of the run that it starts from.
    """
    for run in bundle.runs:
        folder = results / "runs" / run.key[:2] / run.key / str(run.attempt)
        folder.mkdir(parents=True)
        for name in run.files:
            if name != "weights.safetensors":
                data = bundle.read_file(run, name) or b""
                (folder / RUN_FILES[name]).write_bytes(data)
