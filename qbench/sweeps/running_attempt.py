"""RunningAttempt: an attempt at a run that the coordinator has handed out to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt
from qbench.runs.state import RunState, state_of_attempt
from qbench.sweeps.cells import PlannedRun


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
