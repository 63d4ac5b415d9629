"""How far a sweep is, and how long it will still take.

The estimate of the remaining time is the work that is left at the rate so far, but at least the
time that the slowest running run still needs. Work is counted in runs: a finished run is 1, a
running one is the share that is done. A failed run counts only as far as it got, because a method
that fails at once says nothing about how fast the others train. A run that had finished before the
sweep counts as no work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RunProgress", "SweepTally"]


MIN_OBSERVED_S = 5.0
"""How long to observe before the first estimate, unless a run ends earlier."""
RESUMED_FROM_SHARE = 0.1
"""A run whose first report is beyond this share of its steps continues from a checkpoint.

Runs report every hundredth of their steps. What was done before costs no time now.
"""


@dataclass
class RunProgress:
    """A run that is being trained, as its reports describe it."""

    title: str
    began: float
    step: float = 0
    steps: float = 0
    loss: float | None = None
    first_report: tuple[float, float] | None = None
    """The time of the first report, and the share of the steps that was done then."""
    latest_report: float = 0.0

    @property
    def share(self) -> float:
        """The share of the steps that is done."""
        return min(1.0, max(0.0, self.step / self.steps)) if self.steps > 0 else 0.0

    @property
    def gained(self) -> float:
        """The share of the steps that was done in this attempt."""
        resumed_at = self.first_report[1] if self.first_report else 0.0
        return self.share - (resumed_at if resumed_at > RESUMED_FROM_SHARE else 0.0)

    def report(self, details: Mapping[str, Any], now: float) -> None:
        self.step, self.steps = details.get("step") or 0, details.get("steps") or 0
        self.loss, self.latest_report = details.get("loss"), now
        if self.first_report is None:
            self.first_report = (now, self.share)

    def estimate_remaining_s(self, now: float) -> float:
        """Return the remaining time at the run's own speed, or 0 if that is not known yet.

        The speed is measured from the first report on, which leaves out the time that loading and
        compiling took.
        """
        if self.first_report is None or self.share <= self.first_report[1]:
            return 0.0
        began, share = self.first_report
        # Two reports may carry the same time.
        speed = (self.share - share) / max(self.latest_report - began, 1e-9)
        since_report = now - self.latest_report
        return max(0.0, (1 - self.share) / speed - since_report)


@dataclass
class SweepTally:
    """The state of a sweep, kept up to date from its events. All times are given by the caller."""

    total: int
    cached: int
    began: float
    finished: int = 0
    failed: int = 0
    draining: bool = False
    """Whether the sweep starts no more runs and waits for those that are running."""
    work: float = 0.0
    """The work that was done in runs that have ended."""
    running: dict[str, RunProgress] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.cached + self.finished + self.failed

    def record_event(self, kind: str, title: str, details: Mapping[str, Any], now: float) -> None:
        if kind == "step":
            # A late report of a worker that is gone is ignored.
            if (run := self.running.get(title)) is not None:
                run.report(details, now)
        elif kind == "started":
            self.running[title] = RunProgress(title, now)
        elif kind == "draining":
            self.draining = True
        elif kind == "planned":
            self.total, self.cached = details["total"], details["cached"]
        else:
            self._end_run(kind, self.running.pop(title, None))

    def _end_run(self, kind: str, run: RunProgress | None) -> None:
        """Count a run that finished or failed; one that is lost or retried counts as nothing.

        `run` is None if it was never started: a run fails if the run that it starts from fails.
        """
        if kind == "finished":
            self.finished += 1
            self.work += 1 - (run.share - run.gained if run else 0.0)
        elif kind == "failed":
            self.failed += 1
            self.work += run.gained if run else 0.0

    def estimate_remaining_s(self, now: float) -> float | None:
        """Return the estimated remaining time of the sweep, or None if it is too early."""
        # One copy, because the display reads this from another thread while events come in.
        running, elapsed = list(self.running.values()), now - self.began
        slowest = max((run.estimate_remaining_s(now) for run in running), default=0.0)
        if self.draining:
            return slowest or None
        work = self.work + sum(run.gained for run in running)
        if work <= 0 or (self.finished + self.failed == 0 and elapsed < MIN_OBSERVED_S):
            return None
        work_left = self.total - self.done - sum(run.share for run in running)
        return max(work_left * elapsed / work, slowest)
