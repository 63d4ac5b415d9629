"""SweepState: the latest plan of a sweep, and what has become of each of its runs.

It reads run folders and writes nothing. The coordinator trains runs and tells it how they ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt
from qbench.runs.state import RunState, state_of_attempt
from qbench.sweeps.cells import WHOLE_SWEEP, Plan, PlannedRun, Shard
from qbench.sweeps.listener import SweepSummary
from qbench.sweeps.plan import Planner
from qbench.sweeps.status import bases_to_retrain, needs_training, plan_from_files, read_states


@dataclass
class SweepState:
    """A plan, the state of its runs, and how runs have ended for the choices that depend on it."""

    planner: Planner
    results: Path
    retry: bool
    """Whether runs that failed in an earlier sweep are trained again."""
    shard: Shard = WHOLE_SWEEP
    plan: Plan = field(init=False)
    place: dict[str, int] = field(init=False)
    """The place of each run in the plan."""
    states: dict[str, RunState] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    """Runs that are not trained, or not trained again, in this sweep."""
    outcomes: dict[str, float | None] = field(default_factory=dict)
    """The validation of each run that has ended; None for a failed one. An entry never changes:
    a choice must not be revised while the runs that follow from it are trained."""
    cached: int = 0
    """How many runs had ended before this sweep."""

    def read_folders(self) -> tuple[Plan, dict[str, RunState]]:
        """Return the plan as far as the run folders determine it, and the state of each run."""
        return plan_from_files(self.planner, self.results, self.retry)

    def plan_again(self) -> tuple[Plan, dict[str, RunState]]:
        """Return the plan that follows from the present outcomes, and the states of new runs."""
        plan = self.planner.plan(self.outcomes)
        new_keys = [key for key in plan.runs if key not in self.states]
        return plan, read_states(plan, self.results, new_keys)

    def accept_plan(self, plan: Plan, new_states: dict[str, RunState]) -> list[str]:
        """Make a plan the current one, and return the runs that may have to be queued for it.

        These are the runs that are new in the plan, and finished runs that must be trained again
        because a new run starts from them.
        """
        self.plan = plan
        self.place = {key: place for place, key in enumerate(plan.runs)}
        self.states |= new_states
        done = {
            key: state.validation
            for key, state in new_states.items()
            if not needs_training(state, self.retry)
        }
        self.ended |= done.keys()
        self.outcomes = done | self.outcomes  # what is there already wins
        retrain = bases_to_retrain(plan, self.states, self.ended)
        self.states |= retrain
        # The outcome of such a run stays: it comes out the same, and is needed for its choice.
        self.ended -= retrain.keys()
        self.cached += len(done) - len(retrain)
        return [key for key in plan.runs if key in new_states or key in retrain]

    def record_end(self, key: str, state: RunState) -> None:
        """Record how a run ended that is not tried again in this sweep."""
        self.states[key] = state
        self.ended.add(key)
        self.outcomes.setdefault(key, state.validation)

    def is_ours(self, key: str) -> bool:
        """Return whether this sweep has to train the run: not ended, and in its shard."""
        return key not in self.ended and self.shard.contains(self.plan, key)

    @property
    def can_plan_further(self) -> bool:
        """Whether a search has all the trials that it waited for."""
        return any(self.outcomes.keys() >= set(pending.keys) for pending in self.plan.waiting)

    @property
    def runs_elsewhere(self) -> set[str]:
        """Runs that other shards have to train."""
        return {
            key
            for key in self.plan.runs
            if key not in self.ended and not self.shard.contains(self.plan, key)
        }

    @property
    def total(self) -> int:
        """How many runs this sweep has, with those whose values are not chosen yet."""
        # A shard cannot know which of the later runs will be its own.
        later = self.count_later_runs() if self.shard == WHOLE_SWEEP else 0
        return len(self.plan.runs) + later - len(self.runs_elsewhere)

    def count_later_runs(self) -> int:
        """Return how many runs follow from choices that are not made yet."""
        return sum(pending.runs for pending in self.plan.waiting)

    def make_board_plan(self) -> Plan:
        """Return the plan that says who belongs to the board.

        While failed trials are tried again, their search waits and has no final runs. The board
        keeps those of the previous choice meanwhile: they are found by planning without retries.
        """
        failed = any(state.state == "failed" for state in self.states.values())
        if self.plan.waiting and failed:
            return plan_from_files(self.planner, self.results, retry=False)[0]
        return self.plan

    def make_summary(self, interrupted: bool, seconds: float) -> SweepSummary:
        """Return how many runs of this sweep, or of its shard, ended in which way."""
        summary = SweepSummary(
            skipped=len(self.plan.skipped),
            cached=self.cached,
            interrupted=interrupted,
            seconds=seconds,
        )
        elsewhere, later = self.runs_elsewhere, self.count_later_runs()
        for key, state in self.states.items():
            if key in elsewhere:
                continue
            if state.state == "cached" and not state.diverged:
                summary.ok += 1
            elif state.reason is not None:
                summary.failed += 1
                title = self.plan.runs[key].title
                summary.failures.append((title, state.reason, state.message or ""))
            else:
                summary.left += 1
        if self.shard == WHOLE_SWEEP:
            summary.left += later
        else:
            summary.elsewhere = len(elsewhere) + later
        return summary


@dataclass
class RunningAttempt:
    """An attempt that was handed out and has not ended."""

    run: PlannedRun
    attempt: Attempt
    execution: Execution
    tries: int
    """How often the run was tried in this sweep, this attempt included."""

    def read_state(self) -> RunState:
        """Return what the files of the attempt say."""
        return state_of_attempt(self.attempt, self.attempt.read("result"))

    def write_failure(self, reason: str, message: str) -> None:
        """Write the result of an attempt whose worker could not write its own."""
        # Without a spec.json the result would be taken for a damaged one, and the run for lost.
        if not (self.attempt.folder / "spec.json").exists():
            self.attempt.write("spec", self.run.config.to_json())
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.attempt.write(
            "result",
            {
                "result_version": 1,
                "key": self.run.key,
                "attempt": self.attempt.number,
                "state": "failed",
                "reason": reason,
                "message": message,
                "started": now,
                "finished": now,
            },
        )
