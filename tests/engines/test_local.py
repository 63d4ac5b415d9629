"""The local engine: how workers end is told apart, and what the engine offers."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.engines.base import Event
from qbench.engines.local import LocalEngine, local_engine
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, create_attempt
from qbench.sweepfile.read import parse_sweep
from tests.engines.processes import is_alive, parent_pid, wait_until
from tests.stage import a_config, stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")
STAND_IN = "tests.stage:stand_in"


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(2, "cpu", run_function=STAND_IN)
    yield engine
    engine.close()


def submit_roles(
    engine: LocalEngine, results: Path, *roles: str, group: int = 1, **execution: Any
) -> list[Attempt]:
    """Submit a group with a run for each role."""
    configs = [a_config(role, seed) for seed, role in enumerate(roles)]
    attempts = [create_attempt(results, config.key) for config in configs]
    assignments = [
        Assignment(config, attempt.folder)
        for config, attempt in zip(configs, attempts, strict=True)
    ]
    engine.submit(group, assignments, Execution(**execution))
    return attempts


def poll_to_end(engine: LocalEngine, groups: int = 1, limit_s: float = 60) -> list[Event]:
    """Return all events until this number of groups has ended."""
    events: list[Event] = []
    deadline = time.monotonic() + limit_s
    while sum(event.kind == "ended" for event in events) < groups:
        assert time.monotonic() < deadline, events
        events += engine.poll(0.5)
    return events


def run_role(engine: LocalEngine, results: Path, role: str, **execution: Any) -> dict[str, Any]:
    """Run a group of one role, and return the details of its end."""
    submit_roles(engine, results, role, **execution)
    return poll_to_end(engine)[-1].details


# ---- what a worker reports and writes ----


def test_a_group_is_trained_run_by_run_and_reports_it(engine: LocalEngine, tmp_path: Path) -> None:
    attempts = submit_roles(engine, tmp_path, "good", "print", "nan")
    events = poll_to_end(engine)
    expected = [(kind, attempt.key) for attempt in attempts for kind in ("started", "step", "step")]
    assert [(event.kind, event.key) for event in events] == [*expected, ("ended", "")]
    assert events[1].details == {"step": 1, "steps": 2, "loss": 1.0}
    assert events[-1].details == {"exitcode": 0}
    assert all((attempt.read("result") or {})["state"] == "ok" for attempt in attempts)
    log = attempts[1].folder / "log.txt"
    assert list(tmp_path.rglob("log.txt")) == [log], "empty logs are removed"
    assert log.read_text() == "to be or not to be\n"


def test_a_stack_is_trained_in_one_pass(tmp_path: Path) -> None:
    """The worker finds the function that trains a group by its name, so it must be there."""
    from dataclasses import replace

    from qbench.checks.method_kit import Kit

    config = Kit("ste", tmp_path).make_config("int4", steps=2)
    configs = [replace(config, seed=seed) for seed in range(2)]
    attempts = [create_attempt(tmp_path / "results", c.key) for c in configs]
    engine = LocalEngine(1, "cpu")
    try:
        assignments = [
            Assignment(c, attempt.folder) for c, attempt in zip(configs, attempts, strict=True)
        ]
        engine.submit(1, assignments, Execution(device="cpu"))
        assert poll_to_end(engine)[-1].details == {"exitcode": 0}
    finally:
        engine.close()
    costs = [(attempt.read("result") or {})["cost"] for attempt in attempts]
    assert [cost.get("company", 1) for cost in costs] == [2, 2]


def test_each_worker_is_a_process_of_its_own(engine: LocalEngine, tmp_path: Path) -> None:
    attempts = [submit_roles(engine, tmp_path / str(n), "good", group=n)[0] for n in range(2)]
    poll_to_end(engine, 2)
    pids = {(attempt.read("env") or {})["pid"] for attempt in attempts}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not any(map(is_alive, pids))


def test_a_worker_can_import_what_its_caller_can(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes what was added to the path after the fork server had started."""
    run_role(engine, tmp_path, "good")
    (tmp_path / "a_late_plugin.py").write_text(
        "def run_one(assignment, execution, report):\n    print('found', execution.device)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    engine.run_function = "a_late_plugin:run_one"
    attempt = submit_roles(engine, tmp_path / "late", "good")[0]
    assert poll_to_end(engine)[-1].details == {"exitcode": 0}
    assert (attempt.folder / "log.txt").read_text() == "found cpu\n"


# ---- how a worker may end ----


def test_a_crash_is_reported_as_its_signal(engine: LocalEngine, tmp_path: Path) -> None:
    assert run_role(engine, tmp_path, "crash") == {"exitcode": -signal.SIGKILL}


def test_an_exit_code_is_reported(engine: LocalEngine, tmp_path: Path) -> None:
    assert run_role(engine, tmp_path, "exit") == {"exitcode": 3}


def test_an_exception_is_one_line_and_its_traceback_is_in_the_log(
    engine: LocalEngine, tmp_path: Path
) -> None:
    attempt = submit_roles(engine, tmp_path, "raise")[0]
    assert poll_to_end(engine)[-1].details == {
        "exitcode": 1,
        "error": "ValueError: the actor forgot its lines",
        "disk_full": False,
    }
    log = (attempt.folder / "log.txt").read_text()
    assert log.startswith("Traceback") and "forget_the_lines" in log
    assert attempt.read("result") is None


def test_a_full_disk_differs_from_other_errors(engine: LocalEngine, tmp_path: Path) -> None:
    assert run_role(engine, tmp_path, "full")["disk_full"] is True


def test_an_interrupt_does_not_reach_a_worker(engine: LocalEngine, tmp_path: Path) -> None:
    assert run_role(engine, tmp_path, "interrupted") == {"exitcode": 0}


@pytest.mark.parametrize("role", ["stall", "frozen"])
def test_a_silent_worker_is_ended(engine: LocalEngine, tmp_path: Path, role: str) -> None:
    """This includes one that holds the interpreter's lock, so that none of its threads can run."""
    ending = run_role(engine, tmp_path, role, silence_s=2)
    assert ending == {"exitcode": -signal.SIGTERM, "hung": True}


def test_a_worker_that_ignores_sigterm_is_killed(engine: LocalEngine, tmp_path: Path) -> None:
    ending = run_role(engine, tmp_path, "deaf", silence_s=4)
    assert ending == {"exitcode": -signal.SIGKILL, "hung": True}


def test_the_time_limit_holds_for_a_worker_that_reports(
    engine: LocalEngine, tmp_path: Path
) -> None:
    ending = run_role(engine, tmp_path, "chatter", timeout_s=0.5, silence_s=30.0)
    assert ending == {"exitcode": -signal.SIGTERM, "late": True}


def test_cancelling_a_group_leaves_the_other_one(engine: LocalEngine, tmp_path: Path) -> None:
    submit_roles(engine, tmp_path / "1", "chatter", group=1)
    submit_roles(engine, tmp_path / "2", "chatter", group=2)
    wait_until(lambda: {e.group for e in engine.poll(0.5) if e.kind == "step"} == {1, 2})
    engine.cancel(1)
    engine.cancel(3)
    (ended,) = [event for event in poll_to_end(engine) if event.kind == "ended"]
    assert (ended.group, ended.details) == (1, {"exitcode": -signal.SIGTERM, "cancelled": True})
    assert {event.group for event in engine.poll(1)} == {2}


def test_closing_the_engine_ends_all_workers(engine: LocalEngine, tmp_path: Path) -> None:
    attempts = [
        submit_roles(engine, tmp_path / str(n), role, group=n)[0]
        for n, role in enumerate(("deaf", "beat"))
    ]
    pids = [wait_until(lambda a=attempt: a.read("env"))["pid"] for attempt in attempts]
    wait_until(lambda: (attempts[1].folder / "beat").exists())
    assert all(map(is_alive, pids))
    engine.close()
    assert not any(map(is_alive, pids)) and not engine.workers
    assert run_role(engine, tmp_path / "again", "good") == {"exitcode": 0}


# ---- the death of the fork server ----


def test_the_engine_survives_the_death_of_the_fork_server(
    engine: LocalEngine, tmp_path: Path
) -> None:
    attempt = submit_roles(engine, tmp_path, "frozen")[0]
    pid = wait_until(lambda: attempt.read("env"))["pid"]
    time.sleep(0.2)
    os.kill(parent_pid(pid), signal.SIGKILL)
    assert poll_to_end(engine)[-1].details["exitcode"] == -signal.SIGKILL
    wait_until(lambda: not is_alive(pid), 5)
    assert run_role(engine, tmp_path / "again", "good") == {"exitcode": 0}


@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "hangs up"])
def test_a_dying_fork_server_is_waited_for(
    accepts: bool, engine: LocalEngine, tmp_path: Path
) -> None:
    """For a moment after SIGKILL, the server's socket is closed and `waitpid` calls it alive.

    It may also have accepted a connection just before.
    """
    assert run_role(engine, tmp_path, "good") == {"exitcode": 0}
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    dying_pid = server._forkserver_pid
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as dead_socket:
        dead_socket.bind(f"{folder}/s")
        if accepts:
            dead_socket.listen()
            threading.Thread(target=accept_and_close, args=(dead_socket,), daemon=True).start()
        server._forkserver_address = f"{folder}/s"
        death = threading.Timer(0.3, os.kill, (dying_pid, signal.SIGKILL))
        death.start()
        assert run_role(engine, tmp_path / "again", "good") == {"exitcode": 0}
        death.join()
    assert server._forkserver_pid != dying_pid


def accept_and_close(listener: socket.socket) -> None:
    listener.settimeout(5)
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


# ---- devices ----


def test_the_capacity_is_the_number_of_cores_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    assert LocalEngine(device="cpu").capacity == 3
    assert LocalEngine(5, "cpu").devices == ["cpu"] * 5


def test_a_gpu_has_one_worker_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert LocalEngine().devices == ["cuda:0", "cuda:1"]
    assert LocalEngine(3, "cuda").devices == ["cuda:0", "cuda:1", "cuda:0"]
    assert LocalEngine(device="cuda:1").devices == ["cuda:1"]
    with pytest.raises(QbenchError, match=r"has 2 CUDA device\(s\)"):
        _ = LocalEngine(device="cuda:2").capacity


def test_a_missing_device_is_an_error_of_one_line() -> None:
    if torch.cuda.is_available():
        assert LocalEngine(device="cuda").capacity >= 1
        return
    for device, message in (
        ("cuda", "no usable CUDA device"),
        ("gpu", "unknown device 'gpu'"),
        ("meta", "only cpu and cuda"),
    ):
        engine = LocalEngine(device=device, run_function=STAND_IN)
        with pytest.raises(QbenchError, match=message) as caught:
            _ = engine.capacity
        assert "\n" not in str(caught.value) and caught.value.code == 2


def test_a_free_slot_is_used_again(engine: LocalEngine, tmp_path: Path) -> None:
    submit_roles(engine, tmp_path / "1", "beat", group=1)
    submit_roles(engine, tmp_path / "2", "good", group=2)
    poll_to_end(engine)
    submit_roles(engine, tmp_path / "3", "beat", group=3)
    assert sorted(worker.slot for worker in engine.workers.values()) == [0, 1]


def test_the_engine_of_a_sweep_knows_the_plugins_of_the_sweep() -> None:
    text = 'board = "b"\nmethods = ["plain"]\ntasks = ["stage"]'
    with local_engine(parse_sweep(text, "s.toml"), Execution(device="cpu"), 3) as engine:
        assert engine.capacity == 3 and list(engine.preload) == ["tests.stage"]
