"""How far a sweep is, and how long it still takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Tally"]


PATIENCE_S = 5.0
"""How long to watch before the first guess at the time left, where no run is over sooner."""
RESUMED = 0.1
"""Runs report every hundredth. One whose first report is beyond this share goes on from a checkpoint: that part cost no time now."""


# ---- what is known ----


@dataclass
class Going:
    """A run that is being trained, as its reports tell."""

    title: str
    began: float
    step: float = 0
    steps: float = 0
    loss: float | None = None
    first: tuple[float, float] | None = None
    """When the first report came, and the share of the run that was done then."""
    latest: float = 0.0

    @property
    def share(self) -> float:
        return min(1.0, max(0.0, self.step / self.steps)) if self.steps > 0 else 0.0

    @property
    def gained(self) -> float:
        """The share that was done in this attempt."""
        return self.share - (self.first[1] if self.first and self.first[1] > RESUMED else 0.0)

    def report(self, details: Mapping[str, Any], now: float) -> None:
        self.step, self.steps = details.get("step") or 0, details.get("steps") or 0
        self.loss, self.latest = details.get("loss"), now
        if self.first is None:
            self.first = (now, self.share)

    def left_s(self, now: float) -> float:
        """At its own speed since the first report, which leaves out what loading and compiling took; 0 where that says nothing."""
        if self.first is None or self.share <= self.first[1]:
            return 0.0
        speed = (self.share - self.first[1]) / max(self.latest - self.first[0], 1e-9)
        return max(0.0, (1 - self.share) / speed - (now - self.latest))


@dataclass
class Tally:
    """The state of a sweep, from its events. Times come in from outside.

    The time left is what the work left takes at the rate so far, and at least what the slowest run still needs. Work is counted in
    runs: a finished one is 1, a running one the share that is done, a failed one as far as it came (a method that falls over at once
    says nothing about how fast the others train), one done before is nothing.
    """

    total: int
    cached: int
    began: float
    finished: int = 0
    failed: int = 0
    draining: bool = False
    work: float = 0.0
    """Done in runs that are over."""
    running: dict[str, Going] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.cached + self.finished + self.failed

    def take(self, kind: str, title: str, details: Mapping[str, Any], now: float) -> None:
        if kind == "step":
            if (going := self.running.get(title)) is not None:
                going.report(details, now)
        elif kind == "started":
            self.running[title] = Going(title, now)
        elif kind == "draining":
            self.draining = True
        elif kind == "planned":
            self.total, self.cached = details["total"], details["cached"]
        else:
            self.over(kind, self.running.pop(title, None))

    def over(self, kind: str, going: Going | None) -> None:
        """Finished, failed, lost or to be tried again; a run whose base has failed fails without having been started."""
        if kind == "finished":
            self.finished += 1
            self.work += 1 - (going.share - going.gained if going else 0.0)
        elif kind == "failed":
            self.failed += 1
            self.work += going.gained if going else 0.0

    def left_s(self, now: float) -> float | None:
        """None where it is too early to say."""
        running, elapsed = list(self.running.values()), now - self.began
        slowest = max((going.left_s(now) for going in running), default=0.0)
        if self.draining:
            return slowest or None
        work = self.work + sum(going.gained for going in running)
        if work <= 0 or (self.finished + self.failed == 0 and elapsed < PATIENCE_S):
            return None
        left = self.total - self.done - sum(going.share for going in running)
        return max(left * elapsed / work, slowest)
