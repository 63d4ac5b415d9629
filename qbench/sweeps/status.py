"""Status: the plan of a sweep compared with the run folders. Nothing is written here."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qbench.runs.config import RunConfig
from qbench.runs.state import ONLY_SUBMITTED, RunState, list_known_keys, read_run_states
from qbench.store.lock import find_lock_time
from qbench.sweepfile.config import SweepConfig
from qbench.sweeps.cells import WHOLE_SWEEP, Plan, Shard
from qbench.sweeps.downstream_questions import unanswered_by_key
from qbench.sweeps.plan import Planner
from qbench.util.text import format_count

__all__ = [
    "RunStatus",
    "bases_to_retrain",
    "needs_training",
    "plan_from_files",
    "read_states",
    "read_sweep_status",
]


@dataclass(frozen=True)
class RunStatus:
    """A line of a dry run: a run, and why it would be trained or not.

    A cell that has no runs, or none yet, has a line of its own.
    """

    title: str
    run_state: RunState
    key: str | None = None
    stale: str | None = None
    """For a finished run: the commit that trained it, if that is not the present one."""
    edited: tuple[str, ...] = ()
    """For a finished run: its method or task, if edited since without a new version."""
    older_version: str | None = None
    """For a missing run: the older version of its method or task that was trained."""
    runs: int = 1
    unanswered: tuple[str, ...] = ()
    """For a finished run: the downstream tasks that it has not answered yet."""


def read_sweep_status(
    config: SweepConfig, results: Path, shard: Shard = WHOLE_SWEEP
) -> list[RunStatus]:
    """Return the status of every run of a sweep or shard, and of cells without runs."""
    plan, states = plan_from_files(Planner(config), results)
    ended = {key for key, state in states.items() if not needs_training(state)}
    states |= bases_to_retrain(plan, states, ended)
    since, keys = find_lock_time(results), list_known_keys(results)
    unanswered = unanswered_by_key(config, results)
    lines = []
    for key, run in plan.runs.items():
        if not shard.contains(plan, key):
            continue
        state = mark_running(states[key], since)
        lines.append(
            RunStatus(
                run.title,
                state,
                key,
                find_other_code(state),
                find_edited_sources(state, run.config),
                find_older_version(run.config, keys) if state.state == "new" else None,
                unanswered=unanswered.get(key, ()),
            )
        )
    return lines + _list_cells_without_runs(plan)


def _list_cells_without_runs(plan: Plan) -> list[RunStatus]:
    lines = []
    for pending in plan.waiting:
        message = (
            f"{format_count(pending.runs, 'run')}, chosen when its trials are done:"
            f" {len(pending.keys)} to go"
        )
        state = RunState("waiting", message=message)
        lines.append(RunStatus(pending.cell.title, state, runs=pending.runs))
    for cell in plan.failed:
        lines.append(RunStatus(cell.title, RunState("untuned", message=cell.failure)))
    for cell in plan.skipped:
        lines.append(RunStatus(cell.title, RunState("skipped", message=cell.refusal)))
    return lines


def plan_from_files(
    planner: Planner, results: Path, retry: bool = True
) -> tuple[Plan, dict[str, RunState]]:
    """Return the plan as far as the run folders determine it, and the state of each run.

    With `retry`, a failed trial counts as not ended, because it is trained again.
    """
    plan, states = planner.plan(), dict[str, RunState]()
    # Every pass can decide a rung or a choice, and that adds runs whose state must be read.
    while new_keys := [key for key in plan.runs if key not in states]:
        states |= read_states(plan, results, new_keys)
        if not plan.waiting:
            break
        outcomes = {
            key: state.validation
            for key, state in states.items()
            if not needs_training(state, retry)
        }
        plan = planner.plan(outcomes)
    return plan, states


def read_states(plan: Plan, results: Path, keys: list[str]) -> dict[str, RunState]:
    """Return the states of some runs of a plan.

    For a trial only a run that was trained or reproduced here counts. It chooses by its validation
    score, which nobody can check in another person's submission.
    """
    trials = {key for key in keys if plan.runs[key].cell.stage == "trial"}
    return read_run_states(results, keys, trials)


def bases_to_retrain(
    plan: Plan, states: Mapping[str, RunState], ended: Container[str]
) -> dict[str, RunState]:
    """Return new states for finished runs that must be trained again for a run that needs them.

    A run cannot start from a base whose artefact was deleted, or that was not trained here.

    Args:
        plan: The plan.
        states: The state of each run.
        ended: The keys of the runs that are not trained any more.
    """
    retrain: dict[str, RunState] = {}
    # Bases come before the runs that start from them. In reverse, a base that must be trained
    # again is known before its own base is looked at.
    for run in reversed(list(plan.runs.values())):
        if run.base is None or (run.key in ended and run.key not in retrain):
            continue
        state = states[run.base]
        if state.state != "cached" or state.attempt is None:
            continue
        if not state.attempt.trained_here:
            retrain[run.base] = ONLY_SUBMITTED
        elif not state.diverged and not state.attempt.artefact.is_file():
            retrain[run.base] = RunState(
                "lost",
                state.attempt,
                message="its artefact is gone, and others go on from it",
            )
    return retrain


def needs_training(state: RunState, retry: bool = True) -> bool:
    """Return whether a sweep trains a run in this state."""
    return state.state in ("new", "lost") or (state.state == "failed" and retry)


def mark_running(state: RunState, since: int | None) -> RunState:
    """Return the state as `running` if a lost run is being trained at this moment.

    Args:
        state: The state of a run.
        since: When the sweep that holds the results folder began, as `st_mtime_ns`, if one does.
    """
    if state.state != "lost" or state.attempt is None or since is None:
        return state
    # An attempt begins with its spec.json. One that is older than the lock was begun by an
    # earlier sweep, which was killed.
    with suppress(OSError):
        if (state.attempt.folder / "spec.json").stat().st_mtime_ns >= since:
            return dataclasses.replace(state, state="running")
    return state


def find_older_version(config: RunConfig, keys: Container[str]) -> str | None:
    """Return the latest older version of the method, else of the task, with which a run exists.

    Args:
        config: The run.
        keys: The keys of all runs in the results folder.
    """
    for version in range(config.method_version - 1, 0, -1):
        if dataclasses.replace(config, method_version=version).key in keys:
            return f"{config.method} version {version}"
    for version in range(config.task_version - 1, 0, -1):
        if dataclasses.replace(config, task_version=version).key in keys:
            return f"{config.task} version {version}"
    return None


def find_edited_sources(state: RunState, config: RunConfig) -> tuple[str, ...]:
    """Return which of a finished run's method and task have other source code now.

    A run that did not record its sources is taken as unchanged.
    """
    from qbench.plugins.source_hash import find_edited

    env = state.attempt.read("env") if state.state == "cached" and state.attempt else None
    return tuple(find_edited(config.to_json(), env)) if env else ()


def find_other_code(state: RunState) -> str | None:
    """Return the commit or version of qbench that trained a finished run, if it is not this one.

    The versions of method and task are not compared, because they are in the run's key.
    """
    from qbench.runs.environment import collect_environment

    if state.state != "cached" or state.attempt is None:
        return None
    env = state.attempt.read("env")
    if env is None:
        return None
    theirs, ours = ((e.get("commit") or e.get("qbench")) for e in (env, collect_environment()))
    return f"{str(theirs)[:12]}" if theirs and ours and theirs != ours else None
