"""Who is told how a sweep goes, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


class Listener(Protocol):
    """Who is told how the sweep goes: the live display, plain lines, or nobody."""

    def start(self, total: int, cached: int) -> None: ...
    def event(self, kind: str, run_label: str, **details: Any) -> None: ...
    def stop(self, summary: Any) -> None: ...


class Silence:
    def start(self, total: int, cached: int) -> None: ...
    def event(self, kind: str, run_label: str, **details: Any) -> None: ...
    def stop(self, summary: Any) -> None: ...


@dataclass
class Summary:
    """How a sweep ended, counted in runs; `skipped` counts cells."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    cached: int = 0
    """Of `ok` and `failed`, those that were there before."""
    left: int = 0
    elsewhere: int = 0
    """Of a part of a sweep: runs of other parts that are not here, and those that wait for them."""
    interrupted: bool = False
    seconds: float = 0.0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Title, reason and message of every failed run."""

    @property
    def code(self) -> int:
        return 130 if self.interrupted else 4 if self.left else 3 if self.failed else 0
