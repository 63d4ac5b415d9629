"""Sweeps: what is trained and what is not, what becomes of each mishap, and that killing one at any moment costs nothing but time."""

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
from qbench.runs.attempts import Attempt, all_attempts
from qbench.store.check import check
from qbench.store.database import Store
from qbench.store.snapshot import view
from qbench.sweepfile.read import read_text
from qbench.sweeps.coordinator import sweep
from qbench.sweeps.listener import Summary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import status
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


def cast(*roles: str, seeds: int = 1) -> str:
    """A sweep file with an actor for each role; a role may have more words after it, in TOML."""
    tables = [
        f'[[method]]\nname = "actor"\nlabel = "actor {i}"\nrole = "{r.partition(" ")[0]}"\n{r.partition(" ")[2]}\n'
        for i, r in enumerate(roles)
    ]
    return f'board = "b"\ntasks = ["stage"]\nformats = ["int4"]\nseeds = {seeds}\n' + "".join(
        tables
    )


@dataclass
class Notes:
    """Listens to a sweep."""

    heard: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    on_retry: Callable[[], None] = lambda: None
    counts: tuple[int, int] = (0, 0)

    def start(self, total: int, cached: int) -> None:
        self.counts = (total, cached)

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        self.heard.append((kind, run_label, details))
        if kind == "retry":
            self.on_retry()

    def stop(self, summary: Summary) -> None:
        self.heard.append(("stop", "", vars(summary)))

    def of(self, kind: str) -> list[str]:
        return [label for k, label, _ in self.heard if k == kind]

    @property
    def first_steps(self) -> list[int]:
        """The first step that each attempt told of."""
        found, begun = [], set()
        for kind, label, details in self.heard:
            if kind == "started":
                begun.add(label)
            elif kind == "step" and label in begun:
                begun.remove(label)
                found.append(details["step"])
        return found


def play(
    text: str, results: Path, execution: Execution = EAGER, notes: Notes | None = None, **more: Any
) -> tuple[Summary, Notes]:
    config, notes = read_text(text, "s.toml"), notes or Notes()
    with local_engine(config, execution, 2) as engine:
        return sweep(config, results, engine, execution, notes, **more), notes


def files(results: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(results)): f.read_bytes()
        for f in sorted((results / "runs").rglob("*"))
        if f.is_file()
    }


def outcomes(results: Path) -> list[tuple[Any, ...]]:
    """What the files say, attempt by attempt in the order of attempts, without the keys."""
    said = [(a.number, a.read("result") or {}) for a in all_attempts(results)]
    return sorted((n, r.get("state"), r.get("reason")) for n, r in said)


def scores(results: Path) -> dict[str, float]:
    """The score of every run that has one, from its files."""
    found = [(a.key, a.read("result") or {}) for a in all_attempts(results)]
    return {key: r["scores"]["packed"] for key, r in found if r.get("state") == "ok"}


def stored(results: Path) -> dict[str, float]:
    """The same from the store."""
    with view(results) as connection:
        return dict(
            connection.execute("SELECT key, packed FROM runs WHERE state = 'ok'").fetchall()
        )


# ---- what is trained ----


def test_a_sweep_trains_what_it_lacks_and_nothing_twice(tmp_path: Path) -> None:
    summary, notes = play(SMALL, tmp_path)
    assert (summary.ok, summary.failed, summary.cached, summary.left, summary.code) == (
        6,
        0,
        0,
        0,
        0,
    )
    assert notes.counts == (6, 0) and len(notes.of("finished")) == 6
    plan = make_plan(read_text(SMALL, "s.toml"))
    assert set(scores(tmp_path)) == set(plan.runs) and stored(tmp_path) == scores(tmp_path)
    assert {line.standing.state for line in status(plan.sweep, tmp_path)} == {"cached"}
    before = files(tmp_path)

    summary, notes = play(SMALL, tmp_path)
    assert (summary.ok, summary.cached, summary.code) == (6, 6, 0)
    assert not notes.of("started") and files(tmp_path) == before

    summary, notes = play(SMALL.replace("seeds = 2", "seeds = [1, 2]"), tmp_path)
    assert sorted(notes.of("started")) == [
        "actor int4 stage/xs seed 2",
        "after int4 stage/xs seed 2",
        "plain stage/xs seed 2",
    ]
    assert (summary.ok, summary.cached) == (6, 3)

    summary, notes = play(
        SMALL + '[[method]]\nname = "actor"\nlabel = "another"\nat = 6\n', tmp_path
    )
    assert sorted(notes.of("started")) == [
        "another int4 stage/xs seed 0",
        "another int4 stage/xs seed 1",
    ]
    assert {name: content for name, content in files(tmp_path).items() if name in before} == before
    assert check(tmp_path).agrees and check(tmp_path).runs == 11


def test_what_goes_on_from_a_run_waits_for_it(tmp_path: Path) -> None:
    _, notes = play(
        SMALL.replace('["plain", "after", "actor"]', '["after"]').replace("seeds = 2", "seeds = 3"),
        tmp_path,
    )
    order = [(kind, label) for kind, label, _ in notes.heard if kind in ("started", "finished")]
    for seed in range(3):
        ended, began = (
            ("finished", f"plain stage/xs seed {seed}"),
            ("started", f"after int4 stage/xs seed {seed}"),
        )
        assert order.index(ended) < order.index(began)


def test_what_goes_on_from_a_failed_run_fails_and_says_why(tmp_path: Path) -> None:
    summary, notes = play(SMALL.replace('"plain", "after"', '"heir"'), tmp_path)
    bear = "RuntimeError: exit, pursued by a bear"
    assert sorted(summary.failures) == [
        ("heir int4 stage/xs seed 0", "plugin", f"the run that it goes on from failed: {bear}"),
        ("heir int4 stage/xs seed 1", "plugin", f"the run that it goes on from failed: {bear}"),
        ("villain stage/xs seed 0", "plugin", bear),
        ("villain stage/xs seed 1", "plugin", bear),
    ]
    assert (summary.ok, summary.failed, summary.left, summary.code) == (2, 4, 0, 3)
    assert sorted(notes.of("started")) == [
        f"{name} seed {s}" for name in ("actor int4 stage/xs", "villain stage/xs") for s in (0, 1)
    ]
    assert check(tmp_path).agrees


def test_a_cell_without_a_rule_is_skipped_and_not_failed(tmp_path: Path) -> None:
    summary, _ = play(SMALL.replace("int4", "int1"), tmp_path)
    assert (summary.ok, summary.skipped, summary.code) == (4, 1, 0)


# ---- mishaps of a run ----


def test_divergence_is_an_outcome(tmp_path: Path) -> None:
    summary, _ = play(cast("nan", "good"), tmp_path)
    assert (summary.ok, summary.failed, summary.code) == (1, 1, 3)
    assert summary.failures[0][1:] == ("diverged", "the loss is nan at step 6 of 12")
    summary, notes = play(cast("nan", "good"), tmp_path)
    assert not notes.of("started") and (summary.cached, summary.code) == (2, 3)
    assert outcomes(tmp_path) == [(1, "failed", "diverged"), (1, "ok", None)]


def test_an_error_of_a_plugin_is_its_first_line_and_tried_again_by_the_next_sweep(
    tmp_path: Path,
) -> None:
    text = cast(f'raise once = "{tmp_path / "marker"}"')
    summary, notes = play(text, tmp_path)
    assert summary.failures == [
        ("actor 0 int4 stage/xs seed 0", "plugin", "ValueError: the actor forgot its lines")
    ]
    assert summary.code == 3 and not notes.of("retry")
    (attempt,) = all_attempts(tmp_path)
    assert "forget_the_lines" in (attempt.folder / "log.txt").read_text()

    summary, notes = play(text, tmp_path, retry=False)
    assert not notes.of("started") and (summary.cached, summary.code) == (1, 3)

    summary, notes = play(text, tmp_path)
    assert len(notes.of("started")) == 1 and summary.code == 0
    assert (
        outcomes(tmp_path) == [(1, "failed", "plugin"), (2, "ok", None)] and check(tmp_path).agrees
    )


def test_a_plugin_that_cannot_be_imported_is_listed_and_one_line(tmp_path: Path) -> None:
    listed = {entry["name"]: entry["error"] for entry in describe.list_methods()}
    assert "No module named 'tests.no_such_module'" in listed["broken"] and listed["plain"] is None
    with pytest.raises(QbenchError, match="'broken' of qbench-stage 1 cannot be loaded") as caught:
        play(SMALL.replace('"plain"', '"broken"'), tmp_path / "results")
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()


def test_a_worker_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Bit for bit: an actor that was killed scores what one that was not does."""
    summary, notes = play(cast(f'crash once = "{tmp_path / "marker"}"', "good"), tmp_path)
    assert summary.code == 0 and len(notes.of("retry")) == 1
    assert sorted(notes.first_steps) == [1, 1, 6]
    assert len(set(scores(tmp_path).values())) == 1
    (again,) = [a for a in all_attempts(tmp_path) if a.number == 2]
    assert [json.loads(line)["step"] for line in again.curve.read_text().splitlines()] == list(
        range(1, 13)
    )


def test_a_worker_that_is_killed_twice_has_failed_and_the_next_sweep_goes_on(
    tmp_path: Path,
) -> None:
    marker = tmp_path / "marker"
    text = cast(f'crash once = "{marker}"')
    summary, notes = play(text, tmp_path, notes=Notes(on_retry=marker.unlink))
    assert notes.first_steps == [1] and summary.code == 3, (
        "the second is killed before it comes to a step"
    )
    assert summary.failures[0][1:] == (
        "signal",
        "the worker was killed by SIGKILL (out of memory, perhaps)",
    )
    assert outcomes(tmp_path) == [(1, None, None), (2, "failed", "signal")]
    summary, notes = play(text, tmp_path)
    assert notes.first_steps == [6] and summary.code == 0


def test_a_worker_that_hangs_is_killed_and_tried_once_more(tmp_path: Path) -> None:
    text = cast(f'stall once = "{tmp_path / "marker"}"', "stall")
    summary, notes = play(text, tmp_path, Execution(device="cpu", checkpoint_s=0, silence_s=1.5))
    assert (summary.ok, summary.failed, summary.code) == (1, 1, 3)
    assert summary.failures[0][1:] == ("timeout", "no sign of life for 1.5 s")
    assert len(notes.of("retry")) == 2
    assert outcomes(tmp_path) == [
        (1, None, None),
        (1, None, None),
        (2, "failed", "timeout"),
        (2, "ok", None),
    ]


def test_a_run_that_takes_too_long_fails_and_each_sweep_brings_it_further(tmp_path: Path) -> None:
    text, execution = (
        cast("good seconds = 0.4"),
        Execution(device="cpu", checkpoint_s=0, timeout_s=1.6),
    )
    summary, notes = play(text, tmp_path, execution)
    assert summary.failures[0][1:] == ("timeout", "not finished after 1.6 s") and not notes.of(
        "retry"
    )
    first = play(text, tmp_path, execution)[1].first_steps[0]
    assert first > 1
    summary, notes = play(text, tmp_path)
    assert summary.code == 0 and notes.first_steps[0] > first


def test_out_of_memory_is_tried_once_more_in_smaller_parts(tmp_path: Path) -> None:
    summary, notes = play(cast("oom"), tmp_path)
    assert summary.code == 0 and len(notes.of("retry")) == 1
    assert outcomes(tmp_path) == [(1, "failed", "oom"), (2, "ok", None)]
    assert len(scores(tmp_path)) == 1 and check(tmp_path).agrees


# ---- damage ----


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def of_another(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "attempt": 7}))


def emptied(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()


DAMAGE: dict[str, Callable[[Attempt], object]] = {
    "result.json cut short": lambda a: cut(a.folder / "result.json"),
    "result.json empty": lambda a: (a.folder / "result.json").write_text(""),
    "result.json of another attempt": lambda a: of_another(a.folder / "result.json"),
    "spec.json missing": lambda a: (a.folder / "spec.json").unlink(),
    "spec.json cut short": lambda a: cut(a.folder / "spec.json"),
    "nothing left": lambda a: emptied(a.folder / "result.json"),
}


def test_what_is_damaged_is_lost_and_made_again(tmp_path: Path) -> None:
    text = cast("good", seeds=len(DAMAGE) + 1)
    play(text, tmp_path)
    before = scores(tmp_path)
    for damage, attempt in zip(DAMAGE.values(), list(all_attempts(tmp_path)), strict=False):
        damage(attempt)
    lines = status(read_text(text, "s.toml"), tmp_path)
    assert sorted(line.standing.state for line in lines) == ["cached"] + ["lost"] * len(DAMAGE)
    summary, notes = play(text, tmp_path)
    assert len(notes.of("started")) == len(DAMAGE) and (summary.ok, summary.code) == (
        len(before),
        0,
    )
    (tmp_path / "qbench.duckdb").unlink()
    play(text, tmp_path)
    assert stored(tmp_path) == before


def test_a_run_whose_folder_was_removed_is_known_by_its_new_files(tmp_path: Path) -> None:
    text = cast("good", seeds=2)
    play(text, tmp_path)
    gone = next(all_attempts(tmp_path))
    finished = (gone.read("result") or {})["finished"]
    shutil.rmtree(gone.folder.parent)
    summary, notes = play(text, tmp_path)
    assert summary.code == 0 and len(notes.of("started")) == 1
    assert (gone.read("result") or {})["finished"] > finished, "made again, as attempt 1"
    assert check(tmp_path).agrees


def test_an_artefact_that_is_gone_is_made_again_for_those_who_need_it(tmp_path: Path) -> None:
    play(SMALL.replace('"plain", "after", "actor"', '"plain"'), tmp_path)
    for attempt in all_attempts(tmp_path):
        shutil.rmtree(attempt.export)
    text = SMALL.replace(', "actor"', "")
    summary, notes = play(text.replace("seeds = 2", "seeds = 1"), tmp_path)
    assert summary.code == 0 and notes.of("started") == [
        "plain stage/xs seed 0",
        "after int4 stage/xs seed 0",
    ]
    assert not play(text.replace("seeds = 2", "seeds = 1"), tmp_path)[1].of("started")


# ---- a full disk ----


def test_a_full_disk_stops_the_sweep_and_the_next_one_completes(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = cast(f'full once = "{marker}"', "good seconds = 0.5", "good seconds = 0.6")
    with pytest.raises(
        QbenchError, match=r"no space left on the disk.*same command again"
    ) as caught:
        play(text, tmp_path)
    assert "\n" not in str(caught.value) and marker.exists()
    assert all((a.read("result") or {}).get("state") != "failed" for a in all_attempts(tmp_path)), (
        "it is nobody's failure"
    )
    summary, _ = play(text, tmp_path)
    assert (summary.ok, summary.code) == (3, 0)


FULL_DISK = """
mount -t tmpfs -o size=32m none "$1" && cd "$1" || exit 77
sweep() { "$2" -m qbench sweep "$3" --results here --device cpu --workers 2 --quiet 2>"$4/errors" >/dev/null; echo $? >>"$4/codes"; }
sweep "$@" &
while [ "$(find . -name result.json | wc -l)" -lt 2 ]; do sleep 0.05; done
dd if=/dev/zero of=ballast bs=4k status=none 2>/dev/null
wait
cat "$4/errors" >"$4/error"
rm ballast
sweep "$@"
cp -r here "$4/results"
"""


def test_a_disk_that_is_really_full(stage: Path, tmp_path: Path) -> None:
    """A small disk that somebody fills in the middle of a sweep, and then makes room on."""
    (tmp_path / "s.toml").write_text(cast("good seconds = 0.05", seeds=6))
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
        ["unshare", "-rm", *words], env=environment(stage), capture_output=True, text=True
    )
    if not (tmp_path / "codes").exists():
        pytest.skip(f"needs to mount a small disk: {done.stderr.strip()}")
    error = (tmp_path / "error").read_text()
    assert error.count("\n") == 1 and "here: no space left on the disk" in error
    assert (tmp_path / "codes").read_text().split() == ["1", "0"]
    results = tmp_path / "results"
    assert (
        len(scores(results)) == 6 and stored(results) == scores(results) and check(results).agrees
    )


# ---- from the command line: signals and locks ----


def environment(stage: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(stage), str(ROOT)])}


Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def command(stage: Path) -> Iterator[Command]:
    """Starts Python in a process group of its own; whatever the test comes to, nothing of it is left."""
    begun: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], env=environment(stage), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def qbench(command: Command, text: str, results: Path) -> subprocess.Popen[str]:
    file = results.parent / "s.toml"
    file.write_text(text)
    return command(
        "-m", "qbench", "sweep", file, "--results", results, "--device", "cpu", "--workers", 2
    )


def until(true: Callable[[], Any], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(results: Path) -> int:
    return len([*results.glob("runs/*/*/*/curve.jsonl")])


def finished(results: Path) -> int:
    return len([*results.glob("runs/*/*/*/result.json")])


SLOW = cast(
    "good seconds = 0.1", "good seconds = 0.11", "good seconds = 0.12", "good seconds = 0.13"
)


def test_an_interrupt_drains(command: Command, tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = qbench(command, SLOW, results)
    until(lambda: begun(results) == 2)
    os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
    _, err = process.communicate(timeout=30)
    assert (
        process.returncode == 130
        and "finishing the 2 running runs" in err
        and "Traceback" not in err
    )
    assert outcomes(results) == [(1, "ok", None)] * 2 and stored(results) == scores(results)
    assert play(SLOW, results)[1].counts == (4, 2) and outcomes(results) == [(1, "ok", None)] * 4


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)], ids=["twice", "terminated"]
)
def test_a_second_interrupt_or_a_polite_kill_stops_at_once(
    command: Command, tmp_path: Path, signals: Sequence[signal.Signals]
) -> None:
    results = tmp_path / "results"
    slow = SLOW.replace("0.1", "5.1")
    process = qbench(command, slow, results)
    until(lambda: len([*results.glob("runs/*/*/*/env.json")]) == 2)
    for number in signals:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        time.sleep(0.3)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "Traceback" not in err
    assert finished(results) == 0
    lines = status(read_text(slow, "s.toml"), results)
    assert sorted(line.standing.state for line in lines) == ["lost", "lost", "new", "new"]


def test_two_sweeps_at_once(command: Command, tmp_path: Path) -> None:
    results = tmp_path / "results"
    slow = SLOW.replace("0.1", "0.3")
    first = qbench(command, slow, results)
    until(lambda: begun(results) == 2)
    second = qbench(command, slow, results)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 6 and err.count("\n") == 1 and str(first.pid) in err
    first.communicate(timeout=60)
    assert first.returncode == 0 and outcomes(results) == [(1, "ok", None)] * 4


# ---- killed at any moment ----

DRIVER = """
import pathlib, sys
from qbench.execution.assignment import Execution
from qbench.engines.local import local_engine
from qbench.sweeps.coordinator import sweep
from qbench.sweepfile.read import read
config, execution = read(pathlib.Path(sys.argv[1])), Execution(device="cpu", checkpoint_s=0.05)
with local_engine(config, execution, 2) as engine:
    sys.exit(sweep(config, pathlib.Path(sys.argv[2]), engine, execution).code)
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
def test_killed_at_any_moment_a_sweep_ends_as_if_nothing_had_been(
    command: Command, tmp_path: Path
) -> None:
    chance, results = random.Random(), tmp_path / "killed"
    (tmp_path / "s.toml").write_text(MANY)
    (tmp_path / "driver.py").write_text(DRIVER)
    for kill in range(KILLS):
        process, before = (
            command(tmp_path / "driver.py", tmp_path / "s.toml", results),
            tried(results),
        )
        if kill % 3:  # some die before they have done anything
            until(lambda p=process, n=before: tried(results) > n or p.poll() is not None)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.5 if kill % 3 else 3.0))
        process.kill()
        process.wait()
    summary, _ = play(MANY, results)
    assert (summary.ok, summary.code) == (40, 0)
    play(MANY, tmp_path / "undisturbed")
    truth = scores(tmp_path / "undisturbed")
    assert len(truth) == 40
    assert (
        scores(results) == truth
        and stored(results) == truth
        and stored(tmp_path / "undisturbed") == truth
    )
    assert check(results).agrees
    assert max(a.number for a in all_attempts(results)) > 1, "nothing was interrupted"
    with Store(results) as store:
        assert store.known >= {(a.key, a.number) for a in all_attempts(results) if a.read("result")}


def tried(results: Path) -> int:
    return len([*results.glob("runs/*/*/*")])
