"""Listener: what a sweep reports to while it runs, and the summary that it ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class Listener(Protocol):
    """Receives the events of a sweep: the live display, plain lines, or a test."""

    def start(self, total: int, cached: int) -> None: ...
    def event(self, kind: str, run_label: str, **details: Any) -> None: ...
    def stop(self, summary: Any) -> None: ...


class NullListener:
    """A listener that ignores every event."""

    def start(self, total: int, cached: int) -> None: ...
    def event(self, kind: str, run_label: str, **details: Any) -> None: ...
    def stop(self, summary: Any) -> None: ...


@dataclass
class SweepSummary:
    """How a sweep ended. All counts are of runs, except `skipped`."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    """Number of skipped cells."""
    cached: int = 0
    """How many of `ok` and `failed` had ended before this sweep."""
    left: int = 0
    """Runs that this sweep did not finish."""
    elsewhere: int = 0
    """For a shard: runs of other shards that are not here, and runs that wait for them."""
    interrupted: bool = False
    seconds: float = 0.0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Title, reason and message of each failed run."""

    @property
    def code(self) -> int:
        """The exit code: 130 interrupted, 4 runs are left, 3 runs failed, 0 all is well."""
        return 130 if self.interrupted else 4 if self.left else 3 if self.failed else 0
