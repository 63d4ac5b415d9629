"""The local engine in a user's script: what workers inherit, and that none outlives the script."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt
from tests.engines.processes import list_session, wait_until
from tests.stage import ROOT, stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")
StartScript = Callable[..., subprocess.Popen[str]]
STAND_IN = "tests.stage:stand_in"
SCRIPT = """
import sys, pathlib
from qbench.execution.assignment import Assignment, Execution
from qbench.engines.local import LocalEngine
from qbench.runs.attempts import create_attempt
from tests.stage import a_config
print("top", flush=True)
results, run_function, *roles = sys.argv[1:]
engine = LocalEngine(len(roles), "cpu", run_function=run_function)
for group, role in enumerate(roles):
    config = a_config(role)
    folder = create_attempt(pathlib.Path(results), config.key).folder
    engine.submit(group, [Assignment(config, folder)], Execution())
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
def start_script() -> Iterator[StartScript]:
    """Provide a function that starts the script, and kill all of its processes afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        started.append(start_process(folder, *arguments))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start_process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the coordinator as a user's script, without a guard, in a process group of its own.

    Its environment has none of the variables that qbench sets for workers.
    """
    (folder / "script.py").write_text(SCRIPT)
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES")
    }
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "script.py", str(folder), *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


# ---- what a worker inherits ----

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


def measure_memory(
    assignment: Assignment, execution: Execution, report: Callable[[dict[str, Any]], None]
) -> None:
    """Allocate a large block of memory, and write how much was mapped for it.

    It takes the place of the function that trains a run.
    """

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


def test_a_worker_has_one_thread_keeps_its_memory_and_does_not_run_the_script(
    start_script: StartScript, tmp_path: Path
) -> None:
    process = start_script(tmp_path, f"{__name__}:measure_memory", "good")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [line.split()[0] for line in out.splitlines()] == ["top", "started", "ended"]
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text()) == {"threads": 1, "mapped": 0, "omp": "1"}


# ---- signals and the death of the coordinator ----


def read_beat(path: Path) -> float:
    """Return the time that a worker has written last."""
    return float(path.read_text() or 0)


def test_an_interrupt_reaches_only_the_coordinator(
    start_script: StartScript, tmp_path: Path
) -> None:
    process = start_script(tmp_path, STAND_IN, "beat")
    beat = wait_until(lambda: next(tmp_path.rglob("beat"), None))
    os.killpg(process.pid, signal.SIGINT)
    while "interrupted" not in (line := process.stdout.readline()):
        assert line, "it ended"
    now = time.time()
    wait_until(lambda: read_beat(beat) > now + 0.1)


@pytest.mark.parametrize("role", ["beat", "frozen", "deaf"])
def test_no_worker_outlives_the_coordinator(
    start_script: StartScript, tmp_path: Path, role: str
) -> None:
    """This includes a worker whose threads cannot run, and one that ignores SIGTERM."""
    process = start_script(tmp_path, STAND_IN, "beat", role)
    wait_until(lambda: len([*tmp_path.rglob("env.json")]) == 2)
    wait_until(lambda: any(map(read_beat, tmp_path.rglob("beat"))))
    assert len(list_session(process.pid)) >= 4, "the script, the fork server and two workers"
    process.kill()
    process.wait()
    wait_until(lambda: not list_session(process.pid), 5)
    last_beats = [read_beat(beat) for beat in tmp_path.rglob("beat")]
    time.sleep(0.2)
    assert [read_beat(beat) for beat in tmp_path.rglob("beat")] == last_beats
