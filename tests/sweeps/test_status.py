"""Status of a sweep, also while another process runs it, and with older versions of a method."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

from qbench.runs.attempts import create_attempt
from qbench.store.database import Store
from qbench.store.lock import acquire_lock, find_lock_time
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import read_sweep_status

SWEEP = """
board = "b"
methods = ["fp", "pege"]
tasks = ["toy"]
formats = ["int4"]
seeds = 2
recipe.steps = 5
"""


def make_config() -> SweepConfig:
    return parse_sweep(SWEEP, "s.toml")


def list_states(results: Path) -> list[str]:
    return [line.run_state.state for line in read_sweep_status(make_config(), results)]


def test_runs_of_the_present_sweep_are_running_and_those_of_an_earlier_one_are_lost(
    tmp_path: Path,
) -> None:
    early, late = list(make_plan(make_config()).runs.values())[:2]
    create_attempt(tmp_path, early.key).write("spec", early.config.to_json())
    time.sleep(0.02)
    with acquire_lock(tmp_path):
        create_attempt(tmp_path, late.key).write("spec", late.config.to_json())
        assert list_states(tmp_path) == ["lost", "running", "new", "new"]
        create_attempt(tmp_path, late.key)
        assert list_states(tmp_path)[1] == "lost", (
            "without a spec.json it is not known which sweep began it"
        )


def test_a_lock_whose_process_has_ended_is_not_held(tmp_path: Path) -> None:
    assert find_lock_time(tmp_path) is None
    code = (
        "from pathlib import Path; from qbench.store.lock import acquire_lock;"
        f" acquire_lock(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / ".lock").read_text().isdigit() and find_lock_time(tmp_path) is None
    with Store(tmp_path):
        assert find_lock_time(tmp_path) == (tmp_path / ".lock").stat().st_mtime_ns
    assert find_lock_time(tmp_path) is None
    (tmp_path / ".lock").write_text("not a process")
    assert find_lock_time(tmp_path) is None


def test_a_missing_run_names_an_older_version_that_was_trained(tmp_path: Path) -> None:
    run = next(run for run in make_plan(make_config()).runs.values() if run.config.method == "pege")
    assert run.config.method_version == 2
    create_attempt(tmp_path, dataclasses.replace(run.config, method_version=1).key)
    lines = {line.key: line.older_version for line in read_sweep_status(make_config(), tmp_path)}
    assert lines.pop(run.key) == "pege version 1" and set(lines.values()) == {None}
