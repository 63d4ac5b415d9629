"""The coordinator: plan, subtract what is done, hand out the rest, take in what comes back.

It is the only process that writes to the store and the only one that decides. What it knows is in the run folders, so it
can be killed at any moment: the next sweep of the same file reads them and goes on.

What becomes of a run that did not end well:

    diverged                an outcome, never tried again
    signal, hung            once more in the same sweep, from its checkpoint; the second time it has failed, and the next sweep goes on
    out of memory           once more with twice the micro-batches, which the key does not know of
    late, data, plugin, …   failed; the next sweep tries again, unless it is told not to
    a full disk             stops the sweep: nothing that follows could be kept
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.engines.base import Engine, Event
from qbench.engines.endings import how_it_ended, tries_in_a_sweep
from qbench.errors import plain_disk_errors
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, attempts, new_attempt
from qbench.runs.state import NEW, Standing, resumable, standing_of
from qbench.sweepfile.config import SweepConfig
from qbench.sweeps.board_roster import roster_of
from qbench.sweeps.cells import Cell, Plan, PlannedRun
from qbench.sweeps.listener import Listener, Silence, Summary
from qbench.sweeps.plan import Planner
from qbench.sweeps.queue import Queue
from qbench.sweeps.shard import WHOLE, Shard
from qbench.sweeps.status import look, made_again, must_run, settled

if TYPE_CHECKING:
    from qbench.store.database import Store

__all__ = ["sweep"]


ATTEMPTS_IN_A_SWEEP = 2
SNAPSHOT_S = 30.0
TICK_S = 0.25
ENDED_FROM_OUTSIDE = ("signal", "timeout")
"""Reasons that say nothing against the run or its checkpoint."""


def sweep(
    config: SweepConfig,
    results: Path,
    engine: Engine,
    execution: Execution = Execution(),
    progress: Listener | None = None,
    *,
    retry: bool = True,
    shard: Shard = WHOLE,
) -> Summary:
    """Train whatever a sweep file asks for, or a part of it, and the results folder lacks. The same call again trains nothing."""
    from qbench.store.database import Store

    planner = Planner(config)
    with plain_disk_errors(results), Store(results) as store:
        coordinator = _Coordinator(
            planner, results, store, engine, execution, progress or Silence(), retry, shard
        )
        with coordinator.listening():
            return coordinator.run()


@dataclass
class _Going:
    """An attempt that is being made."""

    run: PlannedRun
    attempt: Attempt
    execution: Execution
    tries: int


@dataclass
class _Coordinator:
    planner: Planner
    results: Path
    store: Store
    engine: Engine
    execution: Execution
    progress: Listener
    retry: bool
    shard: Shard = WHOLE
    found: dict[str, Standing] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    """Runs that are not made any more in this sweep."""
    known: dict[str, float | None] = field(default_factory=dict)
    """How they ended, as trials are judged. What was known once stays: a choice is not taken back while its runs are made."""
    cached: int = 0
    ready: Queue = field(init=False)
    kinds: dict[tuple[str, ...], str | None] = field(default_factory=dict)
    waiting: dict[str, list[str]] = field(default_factory=dict)
    """The runs that go on from another, by its key."""
    going: dict[int, list[_Going]] = field(default_factory=dict)
    """By the number of the group that they train in."""
    again: dict[str, tuple[int, Execution]] = field(default_factory=dict)
    """Tries so far and how to carry out the next, for runs that are tried again."""
    fresh: list[Attempt] = field(default_factory=list)
    """Finished and not yet in the store."""
    interrupts: int = 0
    heeded: int = 0
    groups: int = 0
    events: deque[Event] = field(default_factory=deque)
    """Heard and not yet acted on: none may be lost, or a group would never end."""
    stopping: bool = False
    began: float = field(default_factory=time.monotonic)
    snapshot_at: float = 0.0
    members_due: bool = False

    def __post_init__(self) -> None:
        self.ready = Queue(self.execution, self.engine.remote_device)

    def run(self) -> Summary:
        self.open()
        try:
            while self.going or (self.ready and not self.interrupts):
                self.hand_out()
                self.listen()
                self.take_in()
                self.plan_on()
                self.heed_interrupts()
        finally:
            try:
                self.stop()
            finally:
                summary = self.summary()
                self.progress.stop(summary)
        return summary

    def open(self) -> None:
        """Find out what there is, take it into the store, and queue what is missing."""
        self.adopt(*settled(self.planner, self.results, self.retry))
        self.progress.start(self.total, self.cached)

    def plan_on(self) -> None:
        """Plan again where a search has all that it waited for: its next rung, or its runs at the values that it has chosen."""
        while not self.interrupts and any(
            self.known.keys() >= set(waiting.keys) for waiting in self.plan.waiting
        ):
            plan = self.planner.plan(self.known)
            self.adopt(
                plan, look(plan, self.results, [key for key in plan.runs if key not in self.found])
            )
            self.progress.event("planned", "", total=self.total, cached=self.cached)

    def adopt(self, plan: Plan, new: dict[str, Standing]) -> None:
        """Take up a plan and what became so far of the runs that are new in it."""
        self.plan, self.order = plan, {key: place for place, key in enumerate(plan.runs)}
        self.found |= new
        done = {key: was.validation for key, was in new.items() if not must_run(was, self.retry)}
        self.over |= done.keys()
        self.known = done | self.known
        again = made_again(plan, self.found, self.over)
        self.found |= again
        self.over -= again.keys()
        self.cached += len(done) - len(again)
        self.members_due = True
        self.store.forget(key for key, was in new.items() if was == NEW)
        for key, was in new.items():
            if was.attempt:
                self.fresh += (
                    attempts(self.results, key) if was.attempt.number > 1 else [was.attempt]
                )
        self.take_in()
        for key in plan.runs:
            if key in new or key in again:
                self.enqueue(key)

    @property
    def total(self) -> int:
        later = sum(waiting.runs for waiting in self.plan.waiting) if self.shard == WHOLE else 0
        return len(self.plan.runs) + later - len(self.elsewhere)

    @property
    def elsewhere(self) -> set[str]:
        """Runs that other parts of the sweep have to make."""
        return {
            key
            for key in self.plan.runs
            if key not in self.over and not self.shard.has(self.plan, key)
        }

    def enqueue(self, key: str) -> None:
        """Queue a run that must be made, behind the one it goes on from."""
        if key in self.over or not self.shard.has(self.plan, key):
            return
        base = self.plan.runs[key].base
        if base is None or base in self.over:
            self.push(key)
        else:
            self.waiting.setdefault(base, []).append(key)

    # ---- handing out ----

    def push(self, key: str) -> None:
        run = self.plan.runs[key]
        self.ready.push(self.order[key], key, None if key in self.again else self.kind(run.cell))

    def kind(self, cell: Cell) -> str | None:
        """What a cell's runs have in common with others that they may train beside; widths stay apart, if no number is asked for."""
        from qbench.execution.group_policy import kind_of

        if cell.parts not in self.kinds:
            asked = self.execution.group
            self.kinds[cell.parts] = (
                kind_of(cell.example, asked is not None)
                if asked != 1 and self.execution.gpus_per_run == 1
                else None
            )
        return self.kinds[cell.parts]

    def hand_out(self) -> None:
        while self.ready and not self.interrupts and len(self.going) < self.engine.capacity:
            keys = self.ready.pop(
                self.engine.capacity - len(self.going), lambda key: self.plan.runs[key].config
            )
            group = [going for key in keys if (going := self.begun(key))]
            if not group:
                continue
            self.groups += 1
            self.going[self.groups] = group
            execution = replace(
                group[0].execution, timeout_s=len(group) * group[0].execution.timeout_s
            )
            self.engine.submit(self.groups, [self.assignment(going) for going in group], execution)
            for going in group:
                self.progress.event(
                    "started", going.run.title, key=going.run.key, attempt=going.attempt.number
                )

    def begun(self, key: str) -> _Going | None:
        """A new attempt at a run; None if the one it goes on from has failed, and it with it."""
        run = self.plan.runs[key]
        base = self.found[run.base] if run.base else None
        tries, execution = self.again.pop(key, (0, self.execution))
        going = _Going(run, new_attempt(self.results, key), execution, tries + 1)
        if base and (base.state != "cached" or base.diverged):
            self.cannot(going, base)
            return None
        return going

    def assignment(self, going: _Going) -> Assignment:
        was, base = (
            self.found[going.run.key],
            self.found[going.run.base] if going.run.base else None,
        )
        resume = (
            resumable(self.results, going.run.key)
            if was.state == "lost" or was.reason in ENDED_FROM_OUTSIDE
            else None
        )
        return Assignment(
            going.run.config,
            going.attempt.folder,
            resume,
            base.attempt.folder if base and base.attempt else None,
        )

    def cannot(self, going: _Going, base: Standing) -> None:
        """The run it goes on from has failed, and so has it."""
        going.attempt.write("spec", going.run.config.to_json())
        self.fail(
            going,
            base.reason or "data",
            f"the run that it goes on from failed: {base.message or base.reason}",
        )

    def fail(self, going: _Going, reason: str, message: str) -> None:
        """Write the result of an attempt that could not write its own."""
        if not (going.attempt.folder / "spec.json").exists():
            going.attempt.write("spec", going.run.config.to_json())
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        result = {
            "result_version": 1,
            "key": going.run.key,
            "attempt": going.attempt.number,
            "state": "failed",
            "reason": reason,
        }
        going.attempt.write(
            "result", result | {"message": message, "started": now, "finished": now}
        )
        self.finish(going, standing_of(going.attempt, going.attempt.read("result")))

    # ---- taking in ----

    def listen(self) -> None:
        self.events += self.engine.poll(TICK_S)
        while self.events:
            event = self.events.popleft()
            going = self.going.get(event.group)
            if going is None:
                continue
            if event.kind == "step":
                said = next((one for one in going if one.run.key == event.key), going[0])
                self.progress.event("step", said.run.title, **event.details)
            elif event.kind == "ended":
                del self.going[event.group]
                for one in going:
                    self.ended(one, event)

    def ended(self, going: _Going, event: Event) -> None:
        was = standing_of(going.attempt, going.attempt.read("result"))
        details = event.details
        if not self.stopping and (
            details.get("disk_full") or os.strerror(errno.ENOSPC) in (was.message or "")
        ):
            raise OSError(errno.ENOSPC, "no space left", str(going.attempt.folder))
        if was.state == "lost" and (details.get("cancelled") or self.stopping):
            self.found[going.run.key] = was
            self.progress.event("lost", going.run.title, reason="interrupted")
        elif was.state == "lost":
            self.lost(going, was, details)
        elif was.reason == "oom" and going.tries < ATTEMPTS_IN_A_SWEEP and not self.interrupts:
            self.fresh.append(going.attempt)
            self.try_again(
                going, was, replace(going.execution, accumulate=2 * going.execution.accumulate)
            )
        else:
            self.finish(going, was)

    def lost(self, going: _Going, was: Standing, details: dict[str, Any]) -> None:
        """A worker ended and left no result."""
        reason, message = how_it_ended(details, going.execution)
        if (
            reason in ENDED_FROM_OUTSIDE
            and not details.get("late")
            and going.tries < tries_in_a_sweep(details)
        ):
            self.found[going.run.key] = was
            if self.interrupts:
                self.progress.event("lost", going.run.title, reason=reason, message=message)
            else:
                self.try_again(going, was, going.execution, message)
            return
        self.fail(going, reason, message)

    def try_again(
        self, going: _Going, was: Standing, execution: Execution, message: str = ""
    ) -> None:
        key = going.run.key
        self.found[key] = was
        self.again[key] = (going.tries, execution)
        self.push(key)
        self.progress.event(
            "retry", going.run.title, reason=was.reason or "lost", message=message or was.message
        )

    def finish(self, going: _Going, was: Standing) -> None:
        key = going.run.key
        self.found[key] = was
        self.over.add(key)
        self.known.setdefault(key, was.validation)
        self.fresh.append(going.attempt)
        kind = "finished" if was.reason is None else "failed"
        self.progress.event(kind, going.run.title, reason=was.reason, message=was.message)
        for follower in self.waiting.pop(key, ()):
            self.push(follower)

    def take_in(self) -> None:
        if self.fresh:
            self.store.ingest(self.fresh)
            self.fresh = []
        if time.monotonic() > self.snapshot_at:
            self.tell_members()
            self.store.snapshot()
            self.snapshot_at = time.monotonic() + SNAPSHOT_S

    # ---- ending ----

    def heed_interrupts(self) -> None:
        """A signal handler only counts; this acts."""
        if self.interrupts == 1 and not self.heeded:
            self.progress.event("draining", "", running=sum(map(len, self.going.values())))
        if self.interrupts > 1:
            self.cancel()
        self.heeded = self.interrupts

    def cancel(self) -> None:
        for group in self.going:
            self.engine.cancel(group)

    def stop(self) -> None:
        """Whatever happened: no worker is left, and what came back is in the store."""
        self.stopping = True
        while self.going:
            self.cancel()
            self.listen()
        self.take_in()
        self.tell_members()
        self.store.snapshot()

    def tell_members(self) -> None:
        """Who belongs to the board by the latest plan; for a large one that takes a second. What was chosen stands until a failed trial that is
        tried again has come to something else."""
        if self.members_due:
            hoping = self.plan.waiting and any(was.state == "failed" for was in self.found.values())
            self.store.set_board(
                roster_of(
                    settled(self.planner, self.results, retry=False)[0] if hoping else self.plan
                )
            )
            self.members_due = False

    def summary(self) -> Summary:
        summary = Summary(
            skipped=len(self.plan.skipped),
            cached=self.cached,
            interrupted=self.interrupts > 0,
            seconds=time.monotonic() - self.began,
        )
        elsewhere = self.elsewhere
        for key, was in self.found.items():
            if key in elsewhere:
                continue
            if was.state == "cached" and not was.diverged:
                summary.ok += 1
            elif was.reason is not None:
                summary.failed += 1
                summary.failures.append((self.plan.runs[key].title, was.reason, was.message or ""))
            else:
                summary.left += 1
        later = sum(waiting.runs for waiting in self.plan.waiting)
        summary.left, summary.elsewhere = (
            (summary.left + later, 0)
            if self.shard == WHOLE
            else (summary.left, len(elsewhere) + later)
        )
        return summary

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C once: finish what is running. Twice, or a polite kill: stop at once."""

        def interrupt(signum: int, frame: object) -> None:
            self.interrupts += 1 if signum == signal.SIGINT else 2

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
