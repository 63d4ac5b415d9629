"""What has become of a run, read from its folder: the files are the truth.

cached    finished; or diverged, which is an outcome and not a mishap
failed    the latest attempt ended with another reason; it is tried again
running   an attempt was begun by the sweep that holds the results folder now
lost      an attempt was begun and nobody finished it, or its files are cut short; it goes on from its checkpoint
new       never tried
skipped   its method has no rule for it
waiting   its values are chosen when its trials are done
untuned   none of its trials came through, so there is nothing to choose
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qbench.runs.attempts import Attempt, attempts

State = Literal["new", "cached", "failed", "running", "lost", "skipped", "waiting", "untuned"]


@dataclass(frozen=True)
class Standing:
    """The state of a run, the attempt that decides it and what that one says."""

    state: State
    attempt: Attempt | None = None
    reason: str | None = None
    """Of a failure, divergence included."""
    message: str | None = None
    validation: float | None = None

    @property
    def diverged(self) -> bool:
        return self.state == "cached" and self.reason is not None


NEW = Standing("new")
ANOTHERS = Standing("new", message="there is only another's run, which was not reproduced here")


def standing(results: Path, key: str, ours: bool = False) -> Standing:
    """The best that a run has come to in any attempt; with `ours`, in any that was made or reproduced here."""
    known = attempts(results, key)[::-1]
    tried = [attempt for attempt in known if attempt.believed] if ours else known
    if not tried:
        return ANOTHERS if known else NEW
    found = [standing_of(attempt, attempt.read("result")) for attempt in tried]
    cached = [s for s in found if s.state == "cached"]
    if len(cached) > 1:
        return min(cached, key=_precedence)
    if cached:
        return cached[0]
    return found[0]


def _precedence(found: Standing) -> tuple[bool, bool, int]:
    """Own runs before merged ones: a submission never takes a place. Of our own the latest that did not diverge, of merged ones the first."""
    assert found.attempt
    if found.attempt.merged:
        return True, False, found.attempt.number
    return False, found.diverged, -found.attempt.number


def resumable(results: Path, key: str) -> Path | None:
    """The folder of the latest attempt that left a checkpoint."""
    return next((a.folder for a in attempts(results, key)[::-1] if a.checkpoint.exists()), None)


def standing_of(attempt: Attempt, result: Mapping[str, Any] | None) -> Standing:
    """What one attempt says."""
    state = result.get("state") if result else None
    if (
        result is None
        or state not in ("ok", "failed")
        or attempt.read("spec") is None
        or not belongs(result, attempt)
    ):
        return Standing("lost", attempt)
    if state == "ok":
        return Standing(
            "cached", attempt, validation=(result.get("scores") or {}).get("validation")
        )
    reason, message = str(result.get("reason")), str(result.get("message") or "")
    return Standing("cached" if reason == "diverged" else "failed", attempt, reason, message)


def belongs(result: Mapping[str, Any], attempt: Attempt) -> bool:
    """Whether a result is this attempt's and not one that was copied here."""
    return (result.get("key"), result.get("attempt")) == (attempt.key, attempt.number)


def known_keys(results: Path) -> set[str]:
    """The keys that have a folder, without a look into it."""
    try:
        shelves = [shelf.path for shelf in os.scandir(results / "runs") if shelf.is_dir()]
    except OSError:
        return set()
    return {name for shelf in shelves for name in os.listdir(shelf)}


def standings(results: Path, keys: list[str], ours: Container[str] = ()) -> dict[str, Standing]:
    """`ours` are those of which only our own word counts."""
    known = known_keys(results)
    return {key: standing(results, key, key in ours) if key in known else NEW for key in keys}
