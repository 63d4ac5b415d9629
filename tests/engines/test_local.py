"""The local engine: workers are cheap, told apart by how they end, and never outlive the coordinator."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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
from tests.stage import ROOT, a_config, stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")
Begin = Callable[..., subprocess.Popen[str]]
STAND_IN = "tests.stage:stand_in"


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(2, "cpu", train=STAND_IN)
    yield engine
    engine.close()


def cast(
    engine: LocalEngine, results: Path, *roles: str, group: int = 1, **execution: Any
) -> list[Attempt]:
    """Submit a group with a run for each role."""
    configs = [a_config(role, seed) for seed, role in enumerate(roles)]
    attempts = [create_attempt(results, c.key) for c in configs]
    engine.submit(
        group,
        [Assignment(c, a.folder) for c, a in zip(configs, attempts, strict=True)],
        Execution(**execution),
    )
    return attempts


def the_end(engine: LocalEngine, groups: int = 1, limit_s: float = 60) -> list[Event]:
    """Everything that happens until so many groups are over."""
    events: list[Event] = []
    deadline = time.monotonic() + limit_s
    while sum(e.kind == "ended" for e in events) < groups:
        assert time.monotonic() < deadline, events
        events += engine.poll(0.5)
    return events


def how_it_ends(engine: LocalEngine, results: Path, role: str, **execution: Any) -> dict[str, Any]:
    cast(engine, results, role, **execution)
    return the_end(engine)[-1].details


def until(true: Callable[[], Any], limit_s: float = 30) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# ---- what a worker says and leaves ----


def test_a_group_is_trained_run_by_run_and_says_so(engine: LocalEngine, tmp_path: Path) -> None:
    attempts = cast(engine, tmp_path, "good", "print", "nan")
    events = the_end(engine)
    keys = [a.key for a in attempts]
    assert [(e.kind, e.key) for e in events] == [
        (kind, key) for key in keys for kind in ("started", "step", "step")
    ] + [("ended", "")]
    assert events[1].details == {"step": 1, "steps": 2, "loss": 1.0}
    assert events[-1].details == {"exitcode": 0}
    assert all((a.read("result") or {})["state"] == "ok" for a in attempts)
    assert list(tmp_path.rglob("log.txt")) == [attempts[1].folder / "log.txt"], (
        "empty logs are removed"
    )
    assert (attempts[1].folder / "log.txt").read_text() == "to be or not to be\n"


def test_workers_are_their_own_processes(engine: LocalEngine, tmp_path: Path) -> None:
    attempts = [cast(engine, tmp_path / str(n), "good", group=n)[0] for n in range(2)]
    the_end(engine, 2)
    pids = {(a.read("env") or {})["pid"] for a in attempts}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not any(map(alive, pids))


def test_a_worker_finds_what_the_caller_finds(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what came onto the path after the fork server had started."""
    how_it_ends(engine, tmp_path, "good")
    (tmp_path / "a_late_plugin.py").write_text(
        "def run_one(assignment, execution, report):\n    print('found', execution.device)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    engine.train = "a_late_plugin:run_one"
    attempt = cast(engine, tmp_path / "late", "good")[0]
    assert the_end(engine)[-1].details == {"exitcode": 0}
    assert (attempt.folder / "log.txt").read_text() == "found cpu\n"


# ---- how it may end ----


def test_a_crash_is_a_signal(engine: LocalEngine, tmp_path: Path) -> None:
    assert how_it_ends(engine, tmp_path, "crash") == {"exitcode": -signal.SIGKILL}


def test_an_exit_code_comes_back(engine: LocalEngine, tmp_path: Path) -> None:
    assert how_it_ends(engine, tmp_path, "exit") == {"exitcode": 3}


def test_an_exception_is_one_line_and_a_traceback_in_the_log(
    engine: LocalEngine, tmp_path: Path
) -> None:
    attempt = cast(engine, tmp_path, "raise")[0]
    ended = the_end(engine)[-1].details
    assert ended == {
        "exitcode": 1,
        "error": "ValueError: the actor forgot its lines",
        "disk_full": False,
    }
    log = (attempt.folder / "log.txt").read_text()
    assert (
        log.startswith("Traceback") and "forget_the_lines" in log and attempt.read("result") is None
    )


def test_a_full_disk_is_told_from_other_errors(engine: LocalEngine, tmp_path: Path) -> None:
    assert how_it_ends(engine, tmp_path, "full")["disk_full"] is True


def test_an_interrupt_does_not_reach_the_work(engine: LocalEngine, tmp_path: Path) -> None:
    assert how_it_ends(engine, tmp_path, "interrupted") == {"exitcode": 0}


@pytest.mark.parametrize("role", ["stall", "frozen"])
def test_silence_is_the_end(engine: LocalEngine, tmp_path: Path, role: str) -> None:
    """Even where the worker holds the interpreter's lock, so that none of its threads can run."""
    ended = how_it_ends(engine, tmp_path, role, silence_s=2)
    assert ended == {"exitcode": -signal.SIGTERM, "hung": True}


def test_who_is_deaf_to_a_polite_request_is_killed(engine: LocalEngine, tmp_path: Path) -> None:
    assert how_it_ends(engine, tmp_path, "deaf", silence_s=4) == {
        "exitcode": -signal.SIGKILL,
        "hung": True,
    }


def test_late_is_late_however_lively(engine: LocalEngine, tmp_path: Path) -> None:
    ended = how_it_ends(engine, tmp_path, "chatter", timeout_s=0.5, silence_s=30.0)
    assert ended == {"exitcode": -signal.SIGTERM, "late": True}


def test_cancelling_one_leaves_the_other(engine: LocalEngine, tmp_path: Path) -> None:
    cast(engine, tmp_path / "1", "chatter", group=1)
    cast(engine, tmp_path / "2", "chatter", group=2)
    until(lambda: {e.group for e in engine.poll(0.5) if e.kind == "step"} == {1, 2})
    engine.cancel(1)
    engine.cancel(3)
    (ended,) = [e for e in the_end(engine) if e.kind == "ended"]
    assert (ended.group, ended.details) == (1, {"exitcode": -signal.SIGTERM, "cancelled": True})
    assert {e.group for e in engine.poll(1)} == {2}


def test_closing_ends_all_and_takes_no_account_of_deafness(
    engine: LocalEngine, tmp_path: Path
) -> None:
    attempts = [
        cast(engine, tmp_path / str(n), role, group=n)[0] for n, role in enumerate(("deaf", "beat"))
    ]
    pids = [until(lambda a=a: a.read("env"))["pid"] for a in attempts]
    until(lambda: (attempts[1].folder / "beat").exists())
    assert all(map(alive, pids))
    engine.close()
    assert not any(map(alive, pids)) and not engine.workers
    assert how_it_ends(engine, tmp_path / "again", "good") == {"exitcode": 0}


def test_the_death_of_the_fork_server_is_survived(engine: LocalEngine, tmp_path: Path) -> None:
    attempt = cast(engine, tmp_path, "frozen")[0]
    pid = until(lambda: attempt.read("env"))["pid"]
    time.sleep(0.2)
    os.kill(parent(pid), signal.SIGKILL)
    ended = the_end(engine)[-1].details
    assert ended["exitcode"] == -signal.SIGKILL
    until(lambda: not alive(pid), 5)
    assert how_it_ends(engine, tmp_path / "again", "good") == {"exitcode": 0}


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "hangs up"])
def test_a_fork_server_is_waited_for_while_it_dies(
    answers: bool, engine: LocalEngine, tmp_path: Path
) -> None:
    """Between SIGKILL and its burial a server's socket is closed and `waitpid` still calls it alive; or it had just picked up."""
    assert how_it_ends(engine, tmp_path, "good") == {"exitcode": 0}
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    dying = server._forkserver_pid
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as socket_of_the_dying,
    ):
        socket_of_the_dying.bind(f"{folder}/s")
        if answers:
            socket_of_the_dying.listen()
            threading.Thread(target=hang_up, args=(socket_of_the_dying,), daemon=True).start()
        server._forkserver_address = f"{folder}/s"
        burial = threading.Timer(0.3, os.kill, (dying, signal.SIGKILL))
        burial.start()
        assert how_it_ends(engine, tmp_path / "again", "good") == {"exitcode": 0}
        burial.join()
    assert server._forkserver_pid != dying


def hang_up(listener: socket.socket) -> None:
    listener.settimeout(5)
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


# ---- devices ----


def test_capacity_is_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    assert LocalEngine(device="cpu").capacity == 3
    assert LocalEngine(5, "cpu").devices == ["cpu"] * 5


def test_a_gpu_has_one_worker_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert LocalEngine().devices == ["cuda:0", "cuda:1"]
    assert LocalEngine(3, "cuda").devices == ["cuda:0", "cuda:1", "cuda:0"]
    assert LocalEngine(device="cuda:1").devices == ["cuda:1"]
    with pytest.raises(QbenchError, match=r"has 2 CUDA device\(s\)"):
        _ = LocalEngine(device="cuda:2").capacity


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        assert LocalEngine(device="cuda").capacity >= 1
        return
    for device, message in (
        ("cuda", "no usable CUDA device"),
        ("gpu", "unknown device 'gpu'"),
        ("meta", "only cpu and cuda"),
    ):
        engine = LocalEngine(device=device, train=STAND_IN)
        with pytest.raises(QbenchError, match=message) as caught:
            _ = engine.capacity
        assert "\n" not in str(caught.value) and caught.value.code == 2


def test_slots_are_taken_again(engine: LocalEngine, tmp_path: Path) -> None:
    cast(engine, tmp_path / "1", "beat", group=1)
    cast(engine, tmp_path / "2", "good", group=2)
    the_end(engine)
    cast(engine, tmp_path / "3", "beat", group=3)
    assert sorted(w.slot for w in engine.workers.values()) == [0, 1]


def test_the_engine_of_a_sweep_knows_its_plugins() -> None:
    text = 'board = "b"\nmethods = ["plain"]\ntasks = ["stage"]'
    with local_engine(parse_sweep(text, "s.toml"), Execution(device="cpu"), 3) as engine:
        assert engine.capacity == 3 and list(engine.preload) == ["tests.stage"]


# ---- from a script ----

SCRIPT = """
import sys, pathlib
from qbench.execution.assignment import Assignment, Execution
from qbench.engines.local import LocalEngine
from qbench.runs.attempts import create_attempt
from tests.stage import a_config
print("top", flush=True)
results, train, *roles = sys.argv[1:]
engine = LocalEngine(len(roles), "cpu", train=train)
for group, role in enumerate(roles):
    config = a_config(role)
    engine.submit(group, [Assignment(config, new_attempt(pathlib.Path(results), config.key).folder)], Execution())
left = len(roles)
while left:
    try:
        for event in engine.poll(0.5):
            print(event.kind, event.group, event.details, flush=True)
            left -= event.kind == "ended"
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts the script; whatever the test comes to, nothing of it is left."""
    begun: list[subprocess.Popen[str]] = []

    def start(folder: Path, *words: str) -> subprocess.Popen[str]:
        begun.append(script(folder, *words))
        return begun[-1]

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def script(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The coordinator as a script of somebody's, without a guard, in a process group of its own and with nothing set."""
    (folder / "script.py").write_text(SCRIPT)
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES")
    }
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "script.py", str(folder), *words], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def group_of(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


MALLINFO2 = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


def look(
    assignment: Assignment, execution: Execution, report: Callable[[dict[str, Any]], None]
) -> None:
    """A stand-in that takes a large block of memory and looks at where it came from."""

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]

    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
    before = libc.mallinfo2()
    assert libc.malloc(ctypes.c_size_t(1 << 28))
    mapped = libc.mallinfo2().hblkhd - before.hblkhd
    Attempt(assignment.folder).write(
        "result",
        {
            "threads": torch.get_num_threads(),
            "mapped": mapped,
            "omp": os.environ["OMP_NUM_THREADS"],
        },
    )


def test_a_worker_has_one_thread_and_keeps_its_memory_and_the_script_does_not_run_again(
    begin: Begin, tmp_path: Path
) -> None:
    process = begin(tmp_path, "tests.test_engine_local:look", "good")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line.split()[0] for line in out.splitlines()] == ["top", "started", "ended"]
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text()) == {"threads": 1, "mapped": 0, "omp": "1"}


def test_interrupting_the_group_reaches_the_coordinator_alone(begin: Begin, tmp_path: Path) -> None:
    process = begin(tmp_path, STAND_IN, "beat")
    beat = until(lambda: next(tmp_path.rglob("beat"), None))
    os.killpg(process.pid, signal.SIGINT)
    while "interrupted" not in (line := process.stdout.readline()):
        assert line, "it ended"
    now = time.time()
    until(lambda: beats(beat) > now + 0.1)


def beats(beat: Path) -> float:
    return float(beat.read_text() or 0)


@pytest.mark.parametrize("role", ["beat", "frozen", "deaf"])
def test_nobody_outlives_the_coordinator(begin: Begin, tmp_path: Path, role: str) -> None:
    """Neither a worker that beats, nor one whose threads cannot run, nor one that cannot be asked."""
    process = begin(tmp_path, STAND_IN, "beat", role)
    until(lambda: len([*tmp_path.rglob("env.json")]) == 2)
    until(lambda: any(map(beats, tmp_path.rglob("beat"))))
    assert len(group_of(process.pid)) >= 4, "the script, the fork server and two workers"
    process.kill()
    process.wait()
    until(lambda: not group_of(process.pid), 5)
    was = [beats(beat) for beat in tmp_path.rglob("beat")]
    time.sleep(0.2)
    assert [beats(beat) for beat in tmp_path.rglob("beat")] == was
