"""What is printed of a sweep's plan."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qbench.runs.state import NEW, RunState
from qbench.sweeps.status import RunStatus
from qbench.terminal.plan import show_plan
from tests.terminal.printing import print_to_text

DIVERGED = RunState("cached", None, "diverged", "nan at step 3")
OUT_OF_MEMORY = RunState("failed", None, "oom", "out of \x1b[2Jmemory")
PLAN = [
    RunStatus("ste int4 digits/xs seed 0", NEW, "k0"),
    RunStatus("ste int4 digits/xs seed 1", RunState("cached"), "k1"),
    RunStatus("ste int4 digits/xs seed 2", DIVERGED, "k2"),
    RunStatus("ste int4 digits/xs seed 3", RunState("cached"), "k3", "deadbeef"),
    RunStatus("ste int4 digits/xs seed 4", OUT_OF_MEMORY, "k4"),
    RunStatus("ste int4 digits/xs seed 5", RunState("lost"), "k5"),
    RunStatus("ste int4 digits/xs seed 6", RunState("running"), "k6"),
    RunStatus("pege int2 digits/xs seed 0", NEW, "k7", older_version="pege version 1"),
    RunStatus("pege int2 digits/xs", RunState("skipped", message="no rule for two bits")),
]


def test_a_plan_lists_runs_that_are_not_finished_and_counts_all() -> None:
    listed, counts = print_to_text(show_plan, PLAN, file="my.toml", width=130).split("\n\n")
    lines = [re.split("  +", line) for line in listed.splitlines()[1:]]
    assert lines == [
        ["new", "ste int4 digits/xs seed 0"],
        ["stale", "ste int4 digits/xs seed 3", "trained by other code (deadbeef), key k3"],
        ["failed", "ste int4 digits/xs seed 4", "oom: out of memory"],
        ["lost", "ste int4 digits/xs seed 5"],
        ["running", "ste int4 digits/xs seed 6"],
        ["new", "pege int2 digits/xs seed 0", "there is a run of pege version 1"],
        ["skipped", "pege int2 digits/xs", "no rule for two bits"],
    ]
    runs_by_state = {line.split()[0]: int(line.split()[1]) for line in counts.splitlines()[1:]}
    assert runs_by_state == {
        "new": 2,
        "failed": 1,
        "running": 1,
        "lost": 1,
        "stale": 1,
        "cached": 2,
        "skipped": 1,
    }
    assert sum(runs_by_state.values()) == len(PLAN)
    assert "1 of them diverged" in counts


def test_a_plan_says_what_to_do_about_each_state() -> None:
    _, counts = print_to_text(show_plan, PLAN, file="my.toml", width=130).split("\n\n")
    steps = {line.split()[0]: re.split("  +", line)[3:] for line in counts.splitlines()[1:]}
    for state in ("new", "failed", "lost"):
        assert steps[state] == ["qbench sweep my.toml"]
    assert "reproduce" in steps["stale"][0]
    assert steps["cached"] == steps["running"] == steps["skipped"] == []


def test_a_plan_with_nothing_to_do() -> None:
    printed = print_to_text(show_plan, PLAN[1:2])
    assert printed.splitlines()[1].split() == ["cached", "1", "finished"]
    assert print_to_text(show_plan, []) == "The sweep has no runs.\n"


@given(st.integers(20, 200))
def test_a_plan_fits_any_width(width: int) -> None:
    printed = print_to_text(show_plan, PLAN, width=width)
    assert all(cell_len(line) <= width for line in printed.splitlines())
