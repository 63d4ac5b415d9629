"""The coordinator: train the runs that a sweep asks for and the results folder lacks.

It is one process with one loop. It never trains anything itself.

Who writes what:

    run folders        a worker writes spec.json, checkpoints, and result.json last of all. The
                       coordinator writes a result only where the worker could not.
    qbench.duckdb      the coordinator only, while it holds the lock of the results folder
    its snapshot       the coordinator, every half minute and at the end. Everybody else reads it.
    boards/*.json      the coordinator, before a snapshot, if the plan has changed

Order of events:

    1. Plan, read the state of each run from its folder, and put what is missing into the queue.
    2. Hand out groups of runs to the engine, as many as it can hold.
    3. Take the engine's events. When a group ends, its files say how each run ended.
    4. Insert ended attempts into the store.
    5. Plan again if all trials of a search have ended: that adds a rung, or the final runs.
    6. Act on signals. Go on with 2 until nothing is queued and nothing is running.

If the coordinator is killed, at any moment, its workers end too, and only the time since their last
checkpoints is lost, because all that it knows is in the run folders. The next sweep of this file
continues attempts that have no result.json from their checkpoints, and inserts results that are not
in the store yet. A damaged database is built anew.

Signals: the handler only counts, and the loop acts. After one Ctrl-C no more runs are handed out,
and those that are running are finished. After a second one, or after SIGTERM, they are cancelled.

What becomes of a run that does not end well:

    diverged                an outcome, never tried again
    signal, hung            tried once more in this sweep, from its checkpoint. After the second
                            time it has failed, and the next sweep continues it.
    out of memory           tried once more with twice the micro-batches. They are not in the key.
    late, data, plugin ...  failed. The next sweep tries again, unless it is told not to.
    full disk               stops the sweep, because nothing that follows could be stored
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.engines.base import Engine, Event, describe_ending, max_tries
from qbench.errors import explain_disk_errors
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, create_attempt, list_attempts
from qbench.runs.state import NEW, RunState, find_checkpoint_folder
from qbench.sweepfile.config import SweepConfig
from qbench.sweeps.board_members import make_board_members
from qbench.sweeps.cells import WHOLE_SWEEP, Plan, Shard
from qbench.sweeps.listener import Listener, NullListener, SweepSummary
from qbench.sweeps.plan import Planner
from qbench.sweeps.run_queue import RunQueue
from qbench.sweeps.sweep_state import RunningAttempt, SweepState

if TYPE_CHECKING:
    from qbench.store.database import Store

__all__ = ["run_sweep"]


MAX_OOM_TRIES = 2
SNAPSHOT_S = 30.0
TICK_S = 0.25
"""How long one poll of the engine waits. Signals are acted on at least this often."""
EXTERNAL_REASONS = ("signal", "timeout")
"""Reasons that are not the run's fault, so that its checkpoint is still good."""


def run_sweep(
    config: SweepConfig,
    results: Path,
    engine: Engine,
    execution: Execution = Execution(),
    progress: Listener | None = None,
    *,
    retry: bool = True,
    shard: Shard = WHOLE_SWEEP,
) -> SweepSummary:
    """Train what a sweep file, or a shard of it, asks for and the results folder lacks.

    Calling it again trains nothing, unless runs have failed and `retry` is true.
    """
    from qbench.store.database import Store

    # Plan before the store is opened: a file with errors must not create a results folder.
    state = SweepState(Planner(config), results, retry, shard)
    with explain_disk_errors(results), Store(results) as store:
        coordinator = Coordinator(state, store, engine, execution, progress or NullListener())
        with coordinator.counting_interrupts():
            return coordinator.run()


@dataclass
class Coordinator:
    """The loop of one sweep, with what is queued and what is running."""

    state: SweepState
    store: Store
    engine: Engine
    execution: Execution
    progress: Listener
    queue: RunQueue = field(init=False)
    followers: dict[str, list[str]] = field(default_factory=dict)
    """The runs that wait for their base, by its key."""
    running: dict[int, list[RunningAttempt]] = field(default_factory=dict)
    """The attempts of each group that the engine is training."""
    retries: dict[str, tuple[int, Execution]] = field(default_factory=dict)
    """For runs that are tried again: the tries so far, and how to carry out the next."""
    to_ingest: list[Attempt] = field(default_factory=list)
    """Attempts that have ended and are not in the store yet."""
    events: deque[Event] = field(default_factory=deque)
    """Events that were received and not handled yet. If handling one raises an error,
    `stop_workers` finds the rest here. If one were lost, its group would never end."""
    groups: int = 0
    """The number of the latest group."""
    interrupts: int = 0
    """Counted by the signal handler: one for each SIGINT, two for a SIGTERM."""
    announced_draining: bool = False
    stopping: bool = False
    members_changed: bool = False
    began: float = field(default_factory=time.monotonic)
    next_snapshot: float = 0.0

    def __post_init__(self) -> None:
        self.queue = RunQueue(self.execution, self.engine.remote_device)

    def run(self) -> SweepSummary:
        """Run the loop until everything has ended, and return the summary."""
        self.accept_plan(*self.state.read_folders())
        self.progress.start(self.state.total, self.state.cached)
        try:
            # After an interrupt the queue no longer matters, and only running groups are awaited.
            while self.running or (self.queue and not self.interrupts):
                self.hand_out_groups()
                self.handle_events()
                self.update_store()
                self.plan_further()
                self.act_on_interrupts()
        finally:
            try:
                self.stop_workers()
            finally:
                # Also if stopping fails: the display must give the terminal back.
                seconds = time.monotonic() - self.began
                summary = self.state.make_summary(self.interrupts > 0, seconds)
                self.progress.stop(summary)
        return summary

    # ---- planning ----

    def accept_plan(self, plan: Plan, new_states: dict[str, RunState]) -> None:
        """Make a plan the current one, update the store for its new runs, and queue them."""
        keys = self.state.accept_plan(plan, new_states)
        self.members_changed = True
        # Delete first, then insert. Somebody may have removed a run's folder. Its attempts count
        # from 1 again, and the store must not take the new attempt 1 for the one that it has.
        self.store.delete_runs(key for key, state in new_states.items() if state == NEW)
        # An earlier sweep may have been killed before these came into the store.
        for key, state in new_states.items():
            if state.attempt and state.attempt.number > 1:
                self.to_ingest += list_attempts(self.state.results, key)
            elif state.attempt:
                self.to_ingest.append(state.attempt)  # it is the only one; saves a listing
        self.update_store()
        for key in keys:
            self.queue_run(key)

    def plan_further(self) -> None:
        """Plan again while the trials that a search waited for have all ended."""
        # A loop, because runs of the new plan may be finished already and decide the next rung.
        while not self.interrupts and self.state.can_plan_further:
            self.accept_plan(*self.state.plan_again())
            self.progress.event("planned", "", total=self.state.total, cached=self.state.cached)

    def queue_run(self, key: str) -> None:
        """Queue a run that this sweep must train, or let it wait until its base has ended."""
        if not self.state.is_ours(key):
            return
        base = self.state.plan.runs[key].base
        if base is None or base in self.state.ended:
            self.push_run(key)
        else:
            self.followers.setdefault(base, []).append(key)

    def push_run(self, key: str) -> None:
        """Put a run into the queue. One that is tried again trains alone."""
        # A stacked run that failed may have been the reason why its whole group ended.
        kind = None if key in self.retries else self.queue.find_kind(self.state.plan.runs[key].cell)
        self.queue.push(self.state.place[key], key, kind)

    # ---- handing out ----

    def hand_out_groups(self) -> None:
        """Submit groups from the queue until the engine is full."""
        while self.queue and not self.interrupts and len(self.running) < self.engine.capacity:
            idle = self.engine.capacity - len(self.running)
            keys = self.queue.pop(idle, lambda key: self.state.plan.runs[key].config)
            group = [attempt for key in keys if (attempt := self.begin_attempt(key))]
            if group:
                self.submit_group(group)

    def submit_group(self, group: list[RunningAttempt]) -> None:
        """Hand a group to the engine."""
        self.groups += 1
        self.running[self.groups] = group
        # The time limit is for one run, and stacked runs take longer together. Retries train
        # alone, so all runs of a larger group have the same execution.
        first = group[0].execution
        execution = replace(first, timeout_s=len(group) * first.timeout_s)
        assignments = [self.make_assignment(running) for running in group]
        self.engine.submit(self.groups, assignments, execution)
        for running in group:
            number = running.attempt.number
            self.progress.event("started", running.run.title, key=running.run.key, attempt=number)

    def begin_attempt(self, key: str) -> RunningAttempt | None:
        """Create a new attempt at a run. Return None if the run fails because its base failed."""
        run = self.state.plan.runs[key]
        tries, execution = self.retries.pop(key, (0, self.execution))
        attempt = create_attempt(self.state.results, key)
        running = RunningAttempt(run, attempt, execution, tries + 1)
        base = self.state.states[run.base] if run.base else None
        if base and (base.state != "cached" or base.diverged):
            message = f"the run that it goes on from failed: {base.message or base.reason}"
            self.fail_run(running, base.reason or "data", message)
            return None
        return running

    def make_assignment(self, running: RunningAttempt) -> Assignment:
        """Return what a worker has to do for an attempt."""
        run = running.run
        previous = self.state.states[run.key]
        base = self.state.states[run.base] if run.base else None
        # After an error of a plugin or of the data, the checkpoint may be what is wrong.
        resumes = previous.state == "lost" or previous.reason in EXTERNAL_REASONS
        return Assignment(
            run.config,
            running.attempt.folder,
            find_checkpoint_folder(self.state.results, run.key) if resumes else None,
            base.attempt.folder if base and base.attempt else None,
        )

    # ---- ends of attempts ----

    def handle_events(self) -> None:
        """Wait a moment for events of the engine, and handle all that there are."""
        self.events += self.engine.poll(TICK_S)
        while self.events:
            event = self.events.popleft()
            group = self.running.get(event.group)
            if group is None:
                continue
            if event.kind == "step":
                source = next((r for r in group if r.run.key == event.key), group[0])
                self.progress.event("step", source.run.title, **event.details)
            elif event.kind == "ended":
                del self.running[event.group]
                for running in group:
                    self.handle_end(running, event.details)

    def handle_end(self, running: RunningAttempt, details: Mapping[str, Any]) -> None:
        """Decide what becomes of a run whose group has ended.

        The files decide, not the exit code: a worker may be killed right after its last result.
        """
        state = running.read_state()
        disk_full = details.get("disk_full") or os.strerror(errno.ENOSPC) in (state.message or "")
        # Raised only once: while stopping, the other groups must still be awaited.
        if disk_full and not self.stopping:
            raise OSError(errno.ENOSPC, "no space left", str(running.attempt.folder))
        if state.state == "lost" and (details.get("cancelled") or self.stopping):
            self.state.states[running.run.key] = state
            self.progress.event("lost", running.run.title, reason="interrupted")
        elif state.state == "lost":
            self.handle_lost(running, state, details)
        elif state.reason == "oom" and running.tries < MAX_OOM_TRIES and not self.interrupts:
            self.to_ingest.append(running.attempt)
            doubled = replace(running.execution, accumulate=2 * running.execution.accumulate)
            self.try_again(running, state, doubled)
        else:
            self.finish_run(running, state)

    def handle_lost(
        self, running: RunningAttempt, state: RunState, details: Mapping[str, Any]
    ) -> None:
        """Retry or fail a run whose worker ended without a result."""
        reason, message = describe_ending(details, running.execution)
        may_retry = reason in EXTERNAL_REASONS and running.tries < max_tries(details)
        # A run that was too slow for its time limit would be again.
        if not may_retry or details.get("late"):
            self.fail_run(running, reason, message)
        elif self.interrupts:
            self.state.states[running.run.key] = state
            self.progress.event("lost", running.run.title, reason=reason, message=message)
        else:
            self.try_again(running, state, running.execution, message)

    def try_again(
        self, running: RunningAttempt, state: RunState, execution: Execution, message: str = ""
    ) -> None:
        """Queue a run once more."""
        key, title = running.run.key, running.run.title
        self.state.states[key] = state
        self.retries[key] = (running.tries, execution)  # before push_run, which looks it up
        self.push_run(key)
        reason, why = state.reason or "lost", message or state.message
        self.progress.event("retry", title, reason=reason, message=why)

    def fail_run(self, running: RunningAttempt, reason: str, message: str) -> None:
        """Write a failure for an attempt that left no result, and finish the run."""
        running.write_failure(reason, message)
        self.finish_run(running, running.read_state())

    def finish_run(self, running: RunningAttempt, state: RunState) -> None:
        """Record the end of a run, and queue the runs that waited for it."""
        key = running.run.key
        self.state.record_end(key, state)
        self.to_ingest.append(running.attempt)
        kind = "finished" if state.reason is None else "failed"
        self.progress.event(kind, running.run.title, reason=state.reason, message=state.message)
        # Also after a failure: they are handed out, find that their base failed, and fail.
        for follower in self.followers.pop(key, ()):
            self.push_run(follower)

    # ---- the store ----

    def update_store(self) -> None:
        """Insert the attempts that have ended, and refresh the snapshot from time to time."""
        if self.to_ingest:
            self.store.ingest_attempts(self.to_ingest)
            self.to_ingest = []
        if time.monotonic() > self.next_snapshot:
            self.write_snapshot()
            self.next_snapshot = time.monotonic() + SNAPSHOT_S

    def write_snapshot(self) -> None:
        """Let readers see the members of the board and all attempts in the store."""
        # Members go with snapshots and not with plans: a large board takes a second to describe.
        if self.members_changed:
            self.store.save_board(make_board_members(self.state.make_board_plan()))
            self.members_changed = False
        self.store.write_snapshot()

    # ---- ending ----

    def act_on_interrupts(self) -> None:
        """Announce after the first interrupt that runs are finished; cancel them after a second."""
        if self.interrupts == 1 and not self.announced_draining:
            self.progress.event("draining", "", running=sum(map(len, self.running.values())))
        if self.interrupts > 1:
            self.cancel_groups()
        self.announced_draining = self.interrupts > 0

    def cancel_groups(self) -> None:
        for group in self.running:
            self.engine.cancel(group)

    def stop_workers(self) -> None:
        """Stop all workers, and store what they have finished. It runs after errors as well."""
        self.stopping = True
        while self.running:
            # Every group reports its end, a cancelled one as well.
            self.cancel_groups()
            self.handle_events()
        self.update_store()
        self.write_snapshot()

    @contextmanager
    def counting_interrupts(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM in `interrupts` while the sweep runs."""

        def count_signal(signum: int, frame: object) -> None:
            # Nothing else is safe here: the main thread may be in the middle of a transaction.
            self.interrupts += 1 if signum == signal.SIGINT else 2

        # Python allows signal handlers in the main thread only.
        in_main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        previous = {signum: signal.signal(signum, count_signal) for signum in signals}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
