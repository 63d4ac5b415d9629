"""What a sweep would do, and what of it is done: the plan held against the files. Nothing is written here."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qbench.runs.config import RunConfig
from qbench.runs.state import ANOTHERS, Standing, known_keys, standings
from qbench.store.lock import held_since
from qbench.sweepfile.config import SweepConfig
from qbench.sweeps.cells import Plan
from qbench.sweeps.downstream_questions import unanswered
from qbench.sweeps.plan import Planner
from qbench.sweeps.shard import WHOLE, Shard
from qbench.util.text import count

__all__ = ["Planned", "look", "made_again", "must_run", "settled", "status"]


@dataclass(frozen=True)
class Planned:
    """A line of a dry run: a run and why it would be trained or not. A cell without runs, or without any yet, has a line of its own."""

    title: str
    standing: Standing
    key: str | None = None
    stale: str | None = None
    """What the code that made it was, where that is not the code of now."""
    edited: tuple[str, ...] = ()
    """Of a finished run: its method or task, where that was edited since under the same version."""
    older: str | None = None
    """Of a run that is missing: the older version of its method or task that was trained."""
    runs: int = 1
    unanswered: tuple[str, ...] = ()
    """Of a finished run: the downstream tasks that it is still to be asked."""


def status(config: SweepConfig, results: Path, shard: Shard = WHOLE) -> list[Planned]:
    """Every run of a sweep, or of a part of it, and every cell that is skipped, with its standing. Writes nothing."""
    plan, found = settled(Planner(config), results)
    found |= made_again(plan, found, {key for key, was in found.items() if not must_run(was)})
    since, known, todo = held_since(results), known_keys(results), unanswered(config, results)
    lines = []
    for key, run in plan.runs.items():
        if not shard.has(plan, key):
            continue
        was = running(found[key], since)
        earlier = older(run.config, known) if was.state == "new" else None
        lines.append(
            Planned(
                run.title,
                was,
                key,
                stale(was),
                changed(was, run.config),
                earlier,
                unanswered=todo.get(key, ()),
            )
        )
    for waiting in plan.waiting:
        message = f"{count(waiting.runs, 'run')}, chosen when its trials are done: {len(waiting.keys)} to go"
        lines.append(
            Planned(waiting.cell.title, Standing("waiting", message=message), runs=waiting.runs)
        )
    lines += [
        Planned(cell.title, Standing("untuned", message=cell.failure)) for cell in plan.failed
    ]
    return lines + [
        Planned(cell.title, Standing("skipped", message=cell.refusal)) for cell in plan.skipped
    ]


def settled(
    planner: Planner, results: Path, retry: bool = True
) -> tuple[Plan, dict[str, Standing]]:
    """The plan as far as the files can tell, with the standing of each run. A trial that is tried again is not over."""
    plan, found = planner.plan(), dict[str, Standing]()
    while new := [key for key in plan.runs if key not in found]:
        found |= look(plan, results, new)
        if not plan.waiting:
            break
        plan = planner.plan(
            {key: was.validation for key, was in found.items() if not must_run(was, retry)}
        )
    return plan, found


def look(plan: Plan, results: Path, keys: list[str]) -> dict[str, Standing]:
    """What became of some runs of a plan. A trial chooses by its validation, which nobody else can have checked: another's does not count."""
    return standings(results, keys, {key for key in keys if plan.runs[key].cell.stage == "trial"})


def made_again(
    plan: Plan, found: Mapping[str, Standing], done: Container[str]
) -> dict[str, Standing]:
    """Finished runs that one which is still to be made cannot go on from: the artefact is gone, or nobody has trained them here."""
    again: dict[str, Standing] = {}
    for run in reversed(list(plan.runs.values())):  # bases come before their followers
        if run.base is None or (run.key in done and run.key not in again):
            continue
        was = found[run.base]
        if was.state != "cached" or was.attempt is None:
            continue
        if not was.attempt.believed:
            again[run.base] = ANOTHERS
        elif not was.diverged and not was.attempt.artefact.is_file():
            again[run.base] = Standing(
                "lost", was.attempt, message="its artefact is gone, and others go on from it"
            )
    return again


def must_run(was: Standing, retry: bool = True) -> bool:
    """Whether a sweep trains it."""
    return was.state in ("new", "lost") or (was.state == "failed" and retry)


def running(was: Standing, since: int | None) -> Standing:
    """A lost run is not lost if the sweep that holds the folder began it."""
    if was.state != "lost" or was.attempt is None or since is None:
        return was
    with suppress(OSError):
        if (was.attempt.folder / "spec.json").stat().st_mtime_ns >= since:
            return dataclasses.replace(was, state="running")
    return was


def older(config: RunConfig, known: Container[str]) -> str | None:
    """The latest older version of the method, or else of the task, of which this run is there."""
    for kind, version in (("method", config.method_version), ("task", config.task_version)):
        for earlier in range(version - 1, 0, -1):
            was = (
                dataclasses.replace(config, method_version=earlier)
                if kind == "method"
                else dataclasses.replace(config, task_version=earlier)
            )
            if was.key in known:
                return f"{getattr(config, kind)} version {earlier}"
    return None


def changed(was: Standing, config: RunConfig) -> tuple[str, ...]:
    """What of a finished run's method and task has other source now. A run that did not record it is not blamed."""
    from qbench.plugins.source_hash import edited

    env = was.attempt.read("env") if was.state == "cached" and was.attempt else None
    return tuple(edited(config.to_json(), env)) if env else ()


def stale(was: Standing) -> str | None:
    """The commit or version that a finished run was made by, if it is not ours. A version of the method or task is in the key."""
    from qbench.runs.environment import environment

    if was.state != "cached" or was.attempt is None or (env := was.attempt.read("env")) is None:
        return None
    now = environment()
    theirs, ours = ((e.get("commit") or e.get("qbench")) for e in (env, now))
    return f"{str(theirs)[:12]}" if theirs and ours and theirs != ours else None
