"""Sweeps: what is trained, what becomes of each kind of failure, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qbench.engines.local import local_engine
from qbench.errors import QbenchError
from qbench.execution.assignment import Execution
from qbench.plugins import describe
from qbench.runs.attempts import Attempt, iterate_attempts
from qbench.store.consistency import check_store
from qbench.store.database import Store
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import SweepSummary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import read_sweep_status
from tests import SOAK
from tests.stage import ROOT, stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")

SMALL = """
board = "b"
methods = ["plain", "after", "actor"]
tasks = ["stage"]
formats = ["int4"]
seeds = 2
"""
EAGER = Execution(device="cpu", checkpoint_s=0)
"""A checkpoint after every step."""


def make_sweep_file(*roles: str, seeds: int = 1) -> str:
    """Return a sweep file with an actor for each role. TOML for its table may follow a role."""
    tables = []
    for i, text in enumerate(roles):
        role, _, more = text.partition(" ")
        tables.append(f'[[method]]\nname = "actor"\nlabel = "actor {i}"\nrole = "{role}"\n{more}\n')
    head = f'board = "b"\ntasks = ["stage"]\nformats = ["int4"]\nseeds = {seeds}\n'
    return head + "".join(tables)


@dataclass
class RecordingListener:
    """Records the events of a sweep."""

    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    on_retry: Callable[[], None] = lambda: None
    counts: tuple[int, int] = (0, 0)

    def start(self, total: int, cached: int) -> None:
        self.counts = (total, cached)

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        self.events.append((kind, run_label, details))
        if kind == "retry":
            self.on_retry()

    def stop(self, summary: SweepSummary) -> None:
        self.events.append(("stop", "", vars(summary)))

    def labels(self, kind: str) -> list[str]:
        """Return the runs that had an event of this kind."""
        return [label for k, label, _ in self.events if k == kind]

    @property
    def first_steps(self) -> list[int]:
        """The first step that each attempt reported."""
        steps, started = [], set()
        for kind, label, details in self.events:
            if kind == "started":
                started.add(label)
            elif kind == "step" and label in started:
                started.remove(label)
                steps.append(details["step"])
        return steps


def run_sweep_text(
    text: str,
    results: Path,
    execution: Execution = EAGER,
    listener: RecordingListener | None = None,
    **more: Any,
) -> tuple[SweepSummary, RecordingListener]:
    """Run the sweep of a file with two workers."""
    config, listener = parse_sweep(text, "s.toml"), listener or RecordingListener()
    with local_engine(config, execution, 2) as engine:
        return run_sweep(config, results, engine, execution, listener, **more), listener


def read_all_files(results: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(results)): f.read_bytes()
        for f in sorted((results / "runs").rglob("*"))
        if f.is_file()
    }


def list_outcomes(results: Path) -> list[tuple[Any, ...]]:
    """Return number, state and reason of every attempt, sorted, from the files."""
    results_by_number = [(a.number, a.read("result") or {}) for a in iterate_attempts(results)]
    return sorted((n, r.get("state"), r.get("reason")) for n, r in results_by_number)


def scores_in_files(results: Path) -> dict[str, float]:
    """Return the score of every run that has one, by key, from the files."""
    found = [(a.key, a.read("result") or {}) for a in iterate_attempts(results)]
    return {key: r["scores"]["packed"] for key, r in found if r.get("state") == "ok"}


def scores_in_store(results: Path) -> dict[str, float]:
    """Return the same from the store."""
    with open_snapshot(results) as connection:
        return dict(
            connection.execute("SELECT key, packed FROM runs WHERE state = 'ok'").fetchall()
        )


# ---- what is trained ----


def test_a_sweep_trains_only_missing_runs(tmp_path: Path) -> None:
    summary, listener = run_sweep_text(SMALL, tmp_path)
    assert (summary.ok, summary.failed, summary.cached, summary.left, summary.code) == (
        6,
        0,
        0,
        0,
        0,
    )
    assert listener.counts == (6, 0) and len(listener.labels("finished")) == 6
    plan = make_plan(parse_sweep(SMALL, "s.toml"))
    assert set(scores_in_files(tmp_path)) == set(plan.runs) and scores_in_store(
        tmp_path
    ) == scores_in_files(tmp_path)
    assert {line.run_state.state for line in read_sweep_status(plan.sweep, tmp_path)} == {"cached"}
    before = read_all_files(tmp_path)

    summary, listener = run_sweep_text(SMALL, tmp_path)
    assert (summary.ok, summary.cached, summary.code) == (6, 6, 0)
    assert not listener.labels("started") and read_all_files(tmp_path) == before

    summary, listener = run_sweep_text(SMALL.replace("seeds = 2", "seeds = [1, 2]"), tmp_path)
    assert sorted(listener.labels("started")) == [
        "actor int4 stage/xs seed 2",
        "after int4 stage/xs seed 2",
        "plain stage/xs seed 2",
    ]
    assert (summary.ok, summary.cached) == (6, 3)

    summary, listener = run_sweep_text(
        SMALL + '[[method]]\nname = "actor"\nlabel = "another"\nat = 6\n', tmp_path
    )
    assert sorted(listener.labels("started")) == [
        "another int4 stage/xs seed 0",
        "another int4 stage/xs seed 1",
    ]
    assert {
        name: content for name, content in read_all_files(tmp_path).items() if name in before
    } == before
    assert check_store(tmp_path).agrees and check_store(tmp_path).runs == 11


def test_a_run_waits_for_its_base(tmp_path: Path) -> None:
    _, listener = run_sweep_text(
        SMALL.replace('["plain", "after", "actor"]', '["after"]').replace("seeds = 2", "seeds = 3"),
        tmp_path,
    )
    order = [(kind, label) for kind, label, _ in listener.events if kind in ("started", "finished")]
    for seed in range(3):
        ended, began = (
            ("finished", f"plain stage/xs seed {seed}"),
            ("started", f"after int4 stage/xs seed {seed}"),
        )
        assert order.index(ended) < order.index(began)


def test_a_run_fails_with_a_reason_if_its_base_failed(tmp_path: Path) -> None:
    summary, listener = run_sweep_text(SMALL.replace('"plain", "after"', '"heir"'), tmp_path)
    bear = "RuntimeError: exit, pursued by a bear"
    assert sorted(summary.failures) == [
        ("heir int4 stage/xs seed 0", "plugin", f"the run that it goes on from failed: {bear}"),
        ("heir int4 stage/xs seed 1", "plugin", f"the run that it goes on from failed: {bear}"),
        ("villain stage/xs seed 0", "plugin", bear),
        ("villain stage/xs seed 1", "plugin", bear),
    ]
    assert (summary.ok, summary.failed, summary.left, summary.code) == (2, 4, 0, 3)
    assert sorted(listener.labels("started")) == [
        f"{name} seed {s}" for name in ("actor int4 stage/xs", "villain stage/xs") for s in (0, 1)
    ]
    assert check_store(tmp_path).agrees


def test_a_cell_without_a_rule_is_skipped_and_does_not_fail(tmp_path: Path) -> None:
    summary, _ = run_sweep_text(SMALL.replace("int4", "int1"), tmp_path)
    assert (summary.ok, summary.skipped, summary.code) == (4, 1, 0)


# ---- failures of a run ----


def test_a_diverged_run_is_not_tried_again(tmp_path: Path) -> None:
    summary, _ = run_sweep_text(make_sweep_file("nan", "good"), tmp_path)
    assert (summary.ok, summary.failed, summary.code) == (1, 1, 3)
    assert summary.failures[0][1:] == ("diverged", "the loss is nan at step 6 of 12")
    summary, listener = run_sweep_text(make_sweep_file("nan", "good"), tmp_path)
    assert not listener.labels("started") and (summary.cached, summary.code) == (2, 3)
    assert list_outcomes(tmp_path) == [(1, "failed", "diverged"), (1, "ok", None)]


def test_a_plugin_error_is_reported_by_its_first_line_and_the_next_sweep_retries(
    tmp_path: Path,
) -> None:
    text = make_sweep_file(f'raise once = "{tmp_path / "marker"}"')
    summary, listener = run_sweep_text(text, tmp_path)
    assert summary.failures == [
        ("actor 0 int4 stage/xs seed 0", "plugin", "ValueError: the actor forgot its lines")
    ]
    assert summary.code == 3 and not listener.labels("retry")
    (attempt,) = iterate_attempts(tmp_path)
    assert "forget_the_lines" in (attempt.folder / "log.txt").read_text()

    summary, listener = run_sweep_text(text, tmp_path, retry=False)
    assert not listener.labels("started") and (summary.cached, summary.code) == (1, 3)

    summary, listener = run_sweep_text(text, tmp_path)
    assert len(listener.labels("started")) == 1 and summary.code == 0
    assert (
        list_outcomes(tmp_path) == [(1, "failed", "plugin"), (2, "ok", None)]
        and check_store(tmp_path).agrees
    )


def test_a_plugin_that_cannot_be_imported_is_listed_with_a_one_line_error(tmp_path: Path) -> None:
    listed = {entry["name"]: entry["error"] for entry in describe.list_methods()}
    assert "No module named 'tests.no_such_module'" in listed["broken"] and listed["plain"] is None
    with pytest.raises(QbenchError, match="'broken' of qbench-stage 1 cannot be loaded") as caught:
        run_sweep_text(SMALL.replace('"plain"', '"broken"'), tmp_path / "results")
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()


def test_a_killed_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    """A killed run has the same score, bit by bit, as one that was not killed."""
    summary, listener = run_sweep_text(
        make_sweep_file(f'crash once = "{tmp_path / "marker"}"', "good"), tmp_path
    )
    assert summary.code == 0 and len(listener.labels("retry")) == 1
    assert sorted(listener.first_steps) == [1, 1, 6]
    assert len(set(scores_in_files(tmp_path).values())) == 1
    (again,) = [a for a in iterate_attempts(tmp_path) if a.number == 2]
    assert [json.loads(line)["step"] for line in again.curve.read_text().splitlines()] == list(
        range(1, 13)
    )


def test_a_run_killed_twice_fails_and_the_next_sweep_resumes_it(
    tmp_path: Path,
) -> None:
    marker = tmp_path / "marker"
    text = make_sweep_file(f'crash once = "{marker}"')
    summary, listener = run_sweep_text(
        text, tmp_path, listener=RecordingListener(on_retry=marker.unlink)
    )
    assert listener.first_steps == [1] and summary.code == 3, (
        "the second attempt is killed before its first step"
    )
    assert summary.failures[0][1:] == (
        "signal",
        "the worker was killed by SIGKILL (out of memory, perhaps)",
    )
    assert list_outcomes(tmp_path) == [(1, None, None), (2, "failed", "signal")]
    summary, listener = run_sweep_text(text, tmp_path)
    assert listener.first_steps == [6] and summary.code == 0


def test_a_hanging_worker_is_killed_and_its_run_retried_once(tmp_path: Path) -> None:
    text = make_sweep_file(f'stall once = "{tmp_path / "marker"}"', "stall")
    summary, listener = run_sweep_text(
        text, tmp_path, Execution(device="cpu", checkpoint_s=0, silence_s=1.5)
    )
    assert (summary.ok, summary.failed, summary.code) == (1, 1, 3)
    assert summary.failures[0][1:] == ("timeout", "no sign of life for 1.5 s")
    assert len(listener.labels("retry")) == 2
    assert list_outcomes(tmp_path) == [
        (1, None, None),
        (1, None, None),
        (2, "failed", "timeout"),
        (2, "ok", None),
    ]


def test_a_run_over_its_time_limit_fails_and_each_sweep_continues_it(tmp_path: Path) -> None:
    text, execution = (
        make_sweep_file("good seconds = 0.4"),
        Execution(device="cpu", checkpoint_s=0, timeout_s=1.6),
    )
    summary, listener = run_sweep_text(text, tmp_path, execution)
    assert summary.failures[0][1:] == (
        "timeout",
        "not finished after 1.6 s",
    ) and not listener.labels("retry")
    first = run_sweep_text(text, tmp_path, execution)[1].first_steps[0]
    assert first > 1
    summary, listener = run_sweep_text(text, tmp_path)
    assert summary.code == 0 and listener.first_steps[0] > first


def test_a_run_out_of_memory_is_retried_with_more_micro_batches(tmp_path: Path) -> None:
    summary, listener = run_sweep_text(make_sweep_file("oom"), tmp_path)
    assert summary.code == 0 and len(listener.labels("retry")) == 1
    assert list_outcomes(tmp_path) == [(1, "failed", "oom"), (2, "ok", None)]
    assert len(scores_in_files(tmp_path)) == 1 and check_store(tmp_path).agrees


# ---- damaged files ----


def truncate_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def claim_other_attempt(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "attempt": 7}))


def empty_folder(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()


DAMAGE: dict[str, Callable[[Attempt], object]] = {
    "result.json cut short": lambda a: truncate_file(a.folder / "result.json"),
    "result.json empty": lambda a: (a.folder / "result.json").write_text(""),
    "result.json of another attempt": lambda a: claim_other_attempt(a.folder / "result.json"),
    "spec.json missing": lambda a: (a.folder / "spec.json").unlink(),
    "spec.json cut short": lambda a: truncate_file(a.folder / "spec.json"),
    "nothing left": lambda a: empty_folder(a.folder / "result.json"),
}


def test_damaged_runs_are_lost_and_trained_again(tmp_path: Path) -> None:
    text = make_sweep_file("good", seeds=len(DAMAGE) + 1)
    run_sweep_text(text, tmp_path)
    before = scores_in_files(tmp_path)
    for damage, attempt in zip(DAMAGE.values(), list(iterate_attempts(tmp_path)), strict=False):
        damage(attempt)
    lines = read_sweep_status(parse_sweep(text, "s.toml"), tmp_path)
    assert sorted(line.run_state.state for line in lines) == ["cached"] + ["lost"] * len(DAMAGE)
    summary, listener = run_sweep_text(text, tmp_path)
    assert len(listener.labels("started")) == len(DAMAGE) and (summary.ok, summary.code) == (
        len(before),
        0,
    )
    (tmp_path / "qbench.duckdb").unlink()
    run_sweep_text(text, tmp_path)
    assert scores_in_store(tmp_path) == before


def test_a_run_with_a_removed_folder_is_stored_anew(tmp_path: Path) -> None:
    text = make_sweep_file("good", seeds=2)
    run_sweep_text(text, tmp_path)
    gone = next(iterate_attempts(tmp_path))
    finished = (gone.read("result") or {})["finished"]
    shutil.rmtree(gone.folder.parent)
    summary, listener = run_sweep_text(text, tmp_path)
    assert summary.code == 0 and len(listener.labels("started")) == 1
    assert (gone.read("result") or {})["finished"] > finished, "it was trained again, as attempt 1"
    assert check_store(tmp_path).agrees


def test_a_deleted_artefact_is_made_again_if_a_run_needs_it(tmp_path: Path) -> None:
    run_sweep_text(SMALL.replace('"plain", "after", "actor"', '"plain"'), tmp_path)
    for attempt in iterate_attempts(tmp_path):
        shutil.rmtree(attempt.export)
    text = SMALL.replace(', "actor"', "")
    summary, listener = run_sweep_text(text.replace("seeds = 2", "seeds = 1"), tmp_path)
    assert summary.code == 0 and listener.labels("started") == [
        "plain stage/xs seed 0",
        "after int4 stage/xs seed 0",
    ]
    assert not run_sweep_text(text.replace("seeds = 2", "seeds = 1"), tmp_path)[1].labels("started")


# ---- a full disk ----


def test_a_full_disk_stops_the_sweep_and_the_next_one_completes_it(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = make_sweep_file(f'full once = "{marker}"', "good seconds = 0.5", "good seconds = 0.6")
    with pytest.raises(
        QbenchError, match=r"no space left on the disk.*same command again"
    ) as caught:
        run_sweep_text(text, tmp_path)
    assert "\n" not in str(caught.value) and marker.exists()
    assert all(
        (a.read("result") or {}).get("state") != "failed" for a in iterate_attempts(tmp_path)
    ), "a full disk is no failure of a run"
    summary, _ = run_sweep_text(text, tmp_path)
    assert (summary.ok, summary.code) == (3, 0)


FULL_DISK = """
mount -t tmpfs -o size=32m none "$1" && cd "$1" || exit 77
sweep() {
    "$2" -m qbench sweep "$3" --results here --device cpu --workers 2 --quiet \\
        2>"$4/errors" >/dev/null
    echo $? >>"$4/codes"
}
sweep "$@" &
while [ "$(find . -name result.json | wc -l)" -lt 2 ]; do sleep 0.05; done
dd if=/dev/zero of=ballast bs=4k status=none 2>/dev/null
wait
cat "$4/errors" >"$4/error"
rm ballast
sweep "$@"
cp -r here "$4/results"
"""


def test_a_sweep_on_a_disk_that_is_really_full(stage: Path, tmp_path: Path) -> None:
    """A small disk is filled in the middle of a sweep, and then there is room again."""
    (tmp_path / "s.toml").write_text(make_sweep_file("good seconds = 0.05", seeds=6))
    (tmp_path / "disk").mkdir()
    words = [
        "sh",
        "-c",
        FULL_DISK,
        "sh",
        tmp_path / "disk",
        sys.executable,
        tmp_path / "s.toml",
        tmp_path,
    ]
    done = subprocess.run(
        ["unshare", "-rm", *words], env=make_environment(stage), capture_output=True, text=True
    )
    if not (tmp_path / "codes").exists():
        pytest.skip(f"needs to mount a small disk: {done.stderr.strip()}")
    error = (tmp_path / "error").read_text()
    assert error.count("\n") == 1 and "here: no space left on the disk" in error
    assert (tmp_path / "codes").read_text().split() == ["1", "0"]
    results = tmp_path / "results"
    assert (
        len(scores_in_files(results)) == 6
        and scores_in_store(results) == scores_in_files(results)
        and check_store(results).agrees
    )


# ---- from the command line: signals and locks ----


def make_environment(stage: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(stage), str(ROOT)])}


StartProcess = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_process(stage: Path) -> Iterator[StartProcess]:
    """Starts Python processes, each in a group of its own, which is killed after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=make_environment(stage),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start_sweep(start_process: StartProcess, text: str, results: Path) -> subprocess.Popen[str]:
    file = results.parent / "s.toml"
    file.write_text(text)
    return start_process(
        "-m", "qbench", "sweep", file, "--results", results, "--device", "cpu", "--workers", 2
    )


def wait_until(condition: Callable[[], Any], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count_begun(results: Path) -> int:
    return len([*results.glob("runs/*/*/*/curve.jsonl")])


def count_finished(results: Path) -> int:
    return len([*results.glob("runs/*/*/*/result.json")])


SLOW = make_sweep_file(
    "good seconds = 0.1", "good seconds = 0.11", "good seconds = 0.12", "good seconds = 0.13"
)


def test_one_interrupt_finishes_the_running_runs(
    start_process: StartProcess, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    process = start_sweep(start_process, SLOW, results)
    wait_until(lambda: count_begun(results) == 2)
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
    _, err = process.communicate(timeout=30)
    assert (
        process.returncode == 130
        and "finishing the 2 running runs" in err
        and "Traceback" not in err
    )
    assert list_outcomes(results) == [(1, "ok", None)] * 2 and scores_in_store(
        results
    ) == scores_in_files(results)
    assert (
        run_sweep_text(SLOW, results)[1].counts == (4, 2)
        and list_outcomes(results) == [(1, "ok", None)] * 4
    )


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)], ids=["twice", "terminated"]
)
def test_a_second_interrupt_or_sigterm_stops_at_once(
    start_process: StartProcess, tmp_path: Path, signals: Sequence[signal.Signals]
) -> None:
    results = tmp_path / "results"
    slow = SLOW.replace("0.1", "5.1")
    process = start_sweep(start_process, slow, results)
    wait_until(lambda: len([*results.glob("runs/*/*/*/env.json")]) == 2)
    for number in signals:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        time.sleep(0.3)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in err
    assert count_finished(results) == 0
    lines = read_sweep_status(parse_sweep(slow, "s.toml"), results)
    assert sorted(line.run_state.state for line in lines) == ["lost", "lost", "new", "new"]


def test_a_second_sweep_of_a_locked_folder_is_refused(
    start_process: StartProcess, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    slow = SLOW.replace("0.1", "0.3")
    first = start_sweep(start_process, slow, results)
    wait_until(lambda: count_begun(results) == 2)
    second = start_sweep(start_process, slow, results)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 6 and err.count("\n") == 1 and str(first.pid) in err
    first.communicate(timeout=60)
    assert first.returncode == 0 and list_outcomes(results) == [(1, "ok", None)] * 4


# ---- killed at any moment ----

DRIVER = """
import pathlib, sys
from qbench.execution.assignment import Execution
from qbench.engines.local import local_engine
from qbench.sweeps.coordinator import run_sweep
from qbench.sweepfile.read import read_sweep_file
config = read_sweep_file(pathlib.Path(sys.argv[1]))
execution = Execution(device="cpu", checkpoint_s=0.05)
with local_engine(config, execution, 2) as engine:
    sys.exit(run_sweep(config, pathlib.Path(sys.argv[2]), engine, execution).code)
"""
KILLS = 60 if SOAK else 4
MANY = """
board = "b"
methods = ["plain", "after"]
tasks = ["stage"]
formats = ["int2", "int4"]
seeds = 8
[[method]]
name = "actor"
seconds = 0.02
"""


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_gives_the_same_results(
    start_process: StartProcess, tmp_path: Path
) -> None:
    rng, results = random.Random(), tmp_path / "killed"
    (tmp_path / "s.toml").write_text(MANY)
    (tmp_path / "driver.py").write_text(DRIVER)
    for kill in range(KILLS):
        process, before = (
            start_process(tmp_path / "driver.py", tmp_path / "s.toml", results),
            count_attempts(results),
        )
        if kill % 3:  # some die before they have done anything
            wait_until(
                lambda p=process, n=before: count_attempts(results) > n or p.poll() is not None
            )  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.5 if kill % 3 else 3.0))
        process.kill()
        process.wait()
    summary, _ = run_sweep_text(MANY, results)
    assert (summary.ok, summary.code) == (40, 0)
    run_sweep_text(MANY, tmp_path / "undisturbed")
    truth = scores_in_files(tmp_path / "undisturbed")
    assert len(truth) == 40
    assert (
        scores_in_files(results) == truth
        and scores_in_store(results) == truth
        and scores_in_store(tmp_path / "undisturbed") == truth
    )
    assert check_store(results).agrees
    assert max(a.number for a in iterate_attempts(results)) > 1, "nothing was interrupted"
    with Store(results) as store:
        assert store.known_attempts >= {
            (a.key, a.number) for a in iterate_attempts(results) if a.read("result")
        }


def count_attempts(results: Path) -> int:
    return len([*results.glob("runs/*/*/*")])
