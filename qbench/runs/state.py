"""The state of a run, read from its folder.

cached    finished; a run that diverged is finished too, because divergence is an outcome
failed    the latest attempt ended for another reason; the run is tried again
running   an attempt was begun by the sweep that holds the results folder now
lost      an attempt was begun and never finished, or its files are cut short; the run resumes from
          its checkpoint
new       never tried
skipped   the method has no rule for this cell
waiting   its hyper-parameters are chosen once its tuning trials are done
untuned   no tuning trial succeeded, so there is nothing to choose from
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qbench.runs.attempts import Attempt, list_attempts

StateName = Literal["new", "cached", "failed", "running", "lost", "skipped", "waiting", "untuned"]


@dataclass(frozen=True)
class RunState:
    """The state of a run, with the attempt that decides it and the facts from that attempt."""

    state: StateName
    attempt: Attempt | None = None
    reason: str | None = None
    """Why the attempt failed or diverged."""
    message: str | None = None
    validation: float | None = None

    @property
    def diverged(self) -> bool:
        return self.state == "cached" and self.reason is not None


NEW = RunState("new")
ONLY_SUBMITTED = RunState(
    "new", message="there is only a submitted run, which was not reproduced here"
)


def read_run_state(results: Path, key: str, trained_here: bool = False) -> RunState:
    """Return the best state that any attempt at a run has reached.

    With `trained_here`, only attempts count that were trained or reproduced on this machine.
    """
    attempts = list_attempts(results, key)[::-1]  # latest first
    counted = [attempt for attempt in attempts if not trained_here or attempt.trained_here]
    if not counted:
        return ONLY_SUBMITTED if attempts else NEW
    states = [state_of_attempt(attempt, attempt.read("result")) for attempt in counted]
    finished = [state for state in states if state.state == "cached"]
    return min(finished, key=_rank_finished_state) if finished else states[0]


def read_run_states(
    results: Path, keys: list[str], trained_here: Container[str] = ()
) -> dict[str, RunState]:
    """Return the states of many runs.

    `trained_here` holds the keys of which only attempts from this machine count.
    """
    # One listing of the folder saves a system call for each run that was never tried.
    known = list_known_keys(results)
    return {
        key: read_run_state(results, key, key in trained_here) if key in known else NEW
        for key in keys
    }


def state_of_attempt(attempt: Attempt, result: Mapping[str, Any] | None) -> RunState:
    """Return the state that one attempt is in, given the contents of its result.json."""
    state = result.get("state") if result else None
    if (
        result is None
        or state not in ("ok", "failed")
        or attempt.read("spec") is None
        or not belongs_to_attempt(result, attempt)
    ):
        return RunState("lost", attempt)
    if state == "ok":
        validation = (result.get("scores") or {}).get("validation")
        return RunState("cached", attempt, validation=validation)
    reason, message = str(result.get("reason")), str(result.get("message") or "")
    return RunState("cached" if reason == "diverged" else "failed", attempt, reason, message)


def belongs_to_attempt(result: Mapping[str, Any], attempt: Attempt) -> bool:
    """Return whether a result is this attempt's own and was not copied from another folder."""
    return (result.get("key"), result.get("attempt")) == (attempt.key, attempt.number)


def find_checkpoint_folder(results: Path, key: str) -> Path | None:
    """Return the folder of the latest attempt that left a checkpoint."""
    for attempt in list_attempts(results, key)[::-1]:
        if attempt.checkpoint.exists():
            return attempt.folder
    return None


def list_known_keys(results: Path) -> set[str]:
    """Return the keys of all runs that have a folder, without looking into the folders."""
    try:
        prefixes = [entry.path for entry in os.scandir(results / "runs") if entry.is_dir()]
    except OSError:
        return set()
    return {name for prefix in prefixes for name in os.listdir(prefix)}


def _rank_finished_state(found: RunState) -> tuple[bool, bool, int]:
    """Return a sort key that puts the decisive attempt first.

    Own runs come before merged ones, so a submission never replaces an own run. Among own runs
    the latest one that did not diverge decides, among merged ones the first.
    """
    assert found.attempt
    if found.attempt.merged:
        return True, False, found.attempt.number
    return False, found.diverged, -found.attempt.number
