"""What of a sweep is done: also while another process is at it, and where only an older version was trained."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

from qbench.runs.attempts import new_attempt
from qbench.store.database import Store
from qbench.store.lock import held_since, hold
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import read_text
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import status

SWEEP = 'board = "b"\nmethods = ["fp", "pege"]\ntasks = ["toy"]\nformats = ["int4"]\nseeds = 2\nrecipe.steps = 5\n'


def config() -> SweepConfig:
    return read_text(SWEEP, "s.toml")


def states(results: Path) -> list[str]:
    return [line.standing.state for line in status(config(), results)]


def test_what_the_present_sweep_has_begun_is_running_and_what_an_earlier_one_left_is_lost(
    tmp_path: Path,
) -> None:
    early, late = list(make_plan(config()).runs.values())[:2]
    new_attempt(tmp_path, early.key).write("spec", early.config.to_json())
    time.sleep(0.02)
    with hold(tmp_path):
        new_attempt(tmp_path, late.key).write("spec", late.config.to_json())
        assert states(tmp_path) == ["lost", "running", "new", "new"]
        new_attempt(tmp_path, late.key)
        assert states(tmp_path)[1] == "lost", "nothing says yet who begins it"


def test_a_holder_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert held_since(tmp_path) is None
    code = f"from pathlib import Path; from qbench.store.lock import hold; hold(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / ".lock").read_text().isdigit() and held_since(tmp_path) is None
    with Store(tmp_path):
        assert held_since(tmp_path) == (tmp_path / ".lock").stat().st_mtime_ns
    assert held_since(tmp_path) is None
    (tmp_path / ".lock").write_text("not a process")
    assert held_since(tmp_path) is None


def test_a_missing_run_names_the_older_version_that_was_trained(tmp_path: Path) -> None:
    run = next(run for run in make_plan(config()).runs.values() if run.config.method == "pege")
    assert run.config.method_version == 2
    new_attempt(tmp_path, dataclasses.replace(run.config, method_version=1).key)
    lines = {line.key: line.older for line in status(config(), tmp_path)}
    assert lines.pop(run.key) == "pege version 1" and set(lines.values()) == {None}
