"""Merge another results folder of one's own, such as a shard's: `qbench merge FOLDER --own`.

Its runs are taken in as own runs. Whoever says `--own` vouches for the folder; other people's runs
come as a bundle and are verified. Here only what goes wrong between one's own machines is checked:
files that are cut short, damaged or in the wrong place. Nothing is overwritten: a run that is here
already stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError, UsageError
from qbench.runs.attempts import Attempt, iterate_attempts, list_attempts
from qbench.runs.config import RunConfig
from qbench.runs.state import belongs_to_attempt, read_run_state, state_of_attempt
from qbench.store.board_members import read_all_board_members
from qbench.store.database import Store
from qbench.store.lock import find_lock_time
from qbench.util.text import format_count

STAGING_FOLDER = ".gather"
ATTEMPTS_PER_INGEST = 500
"""How many attempts are copied before the store ingests them."""


@dataclass(frozen=True)
class BoardProgress:
    """How many runs of a board are in the results folder."""

    board: str
    runs: int
    missing: int
    waiting: int
    """The number of cells whose hyper-parameters are not chosen yet."""

    def __str__(self) -> str:
        if self.missing:
            state = (
                f"{self.missing} of {format_count(self.runs, 'run')} missing: "
                "merge the other shards, or sweep its file here"
            )
        else:
            state = f"all {format_count(self.runs, 'run')} here"
            if self.waiting:
                cells = format_count(self.waiting, "cell")
                state += f"; {cells} waiting for a choice: sweep its file again"
        return f"board {self.board}: {state}"


@dataclass
class MergeReport:
    """What was merged from a folder."""

    folder: str
    runs: int = 0
    """The number of runs that were not here before."""
    present: int = 0
    """The number of runs that were here already."""
    twice: int = 0
    """How many of those present were trained there as well, because shards overlap."""
    refused: list[str] = field(default_factory=list)
    boards: list[BoardProgress] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        done = (
            f"{self.folder}: {format_count(self.runs, 'run')} merged, {self.present} here already"
        )
        if self.twice:
            done += f", {self.twice} of them trained in both: the shards overlap; nothing replaced"
        return [done, *(f"{self.folder}: not taken: {problem}" for problem in self.refused)]


def merge_results_folder(results: Path, folder: Path) -> MergeReport:
    """Copy the runs of another results folder that this one lacks, and add them to the store.

    Merging the same folder again adds nothing; an interrupted merge continues where it stopped.
    """
    _refuse_unusable_folder(results, folder)
    report, staging = MergeReport(str(folder)), results / STAGING_FOLDER
    with Store(results) as store:
        shutil.rmtree(staging, ignore_errors=True)
        try:
            copied: list[Attempt] = []
            for attempts in _group_by_run(folder):
                copied += _copy_new_attempts(attempts, results, staging, report)
                if len(copied) >= ATTEMPTS_PER_INGEST:
                    report.refused += store.ingest_attempts(copied)
                    copied = []
            report.refused += store.ingest_attempts(copied)
            report.boards = list(_merge_boards(results, folder, store))
            store.write_snapshot()
        except OSError as error:
            raise QbenchError(
                f"{error.filename or results}: {error.strerror}; "
                "what was merged so far is kept: run the same command again"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return report


def find_damage(attempt: Attempt) -> str | None:
    """Return why an attempt's files are damaged or contradict each other, or None if they agree."""
    spec, result = attempt.read("spec"), attempt.read("result")
    try:
        if spec is None or RunConfig.from_json(spec).key != attempt.key:
            return "its spec.json is missing, or another run's"
    except (QbenchError, TypeError, ValueError, KeyError):
        return "its spec.json is damaged"
    if result is None:
        return "its result.json is damaged" if (attempt.folder / "result.json").exists() else None
    if not belongs_to_attempt(result, attempt) or result.get("state") not in ("ok", "failed"):
        return "its result.json is another attempt's"
    recorded = result.get("artefact_sha256")
    if recorded and attempt.artefact.is_file():
        actual = hashlib.sha256(attempt.artefact.read_bytes()).hexdigest()
        if actual != recorded:
            return "its artefact is damaged"
    return None


def _refuse_unusable_folder(results: Path, folder: Path) -> None:
    if folder.is_file():
        raise UsageError(f"{folder}: --own takes results folders; a bundle is merged without it")
    if not (folder / "runs").is_dir():
        raise UsageError(f"{folder}: not a results folder: there is no runs/ in it")
    if results.exists() and folder.resolve() == results.resolve():
        raise UsageError(f"{folder}: is the folder to merge into; --results names another")
    if find_lock_time(folder) is not None:
        raise QbenchError(f"{folder}: a sweep is writing there: merge when it is done")


def _group_by_run(folder: Path) -> Iterator[list[Attempt]]:
    """Yield the attempts at each run in turn."""
    for _, attempts in groupby(iterate_attempts(folder), key=lambda attempt: attempt.key):
        yield list(attempts)


def _copy_new_attempts(
    theirs: list[Attempt], results: Path, staging: Path, report: MergeReport
) -> list[Attempt]:
    """Copy those attempts at one run that add something, and return the copies.

    All undamaged attempts are copied if the run was never tried here. If it was, they are copied
    only if it is not finished here. They get the numbers that follow those here.
    """
    key = theirs[0].key
    ours = list_attempts(results, key)
    known = [attempt.read("result") for attempt in ours]
    new = [one for one in theirs if not _is_known(one, known) and not _is_empty(one)]
    if ours and (not new or read_run_state(results, key).state == "cached"):
        report.present += 1
        report.twice += any(
            state_of_attempt(attempt, attempt.read("result")).state == "cached" for attempt in new
        )
        return []
    undamaged = []
    for attempt in new:
        if problem := find_damage(attempt):
            report.refused.append(f"{attempt.key[:12]} attempt {attempt.number}: {problem}")
        else:
            undamaged.append(attempt)
    report.runs += bool(undamaged)
    folder, last = results / "runs" / key[:2] / key, ours[-1].number if ours else 0
    return [
        _copy_attempt(attempt, Attempt(folder / str(number)), staging)
        for number, attempt in enumerate(undamaged, last + 1)
    ]


def _is_known(attempt: Attempt, known: list[dict[str, Any] | None]) -> bool:
    """Return whether an attempt is here already, perhaps under another number."""
    result = attempt.read("result")
    if result is None:
        return bool(known)  # an unfinished attempt adds nothing to those that are here
    return any(ours and {**ours, "attempt": 0} == {**result, "attempt": 0} for ours in known)


def _is_empty(attempt: Attempt) -> bool:
    """Return whether an attempt ended before anything was written."""
    return (
        not (attempt.folder / "spec.json").exists()
        and not (attempt.folder / "result.json").exists()
    )


def _copy_attempt(attempt: Attempt, target: Attempt, staging: Path) -> Attempt:
    """Copy an attempt to its new folder, completely or not at all."""
    # A rename within one file system is atomic, so an interrupted copy never looks like an attempt.
    scratch = staging / f"{target.key}-{target.number}"
    # Names with a leading dot are temporary files of a write that was interrupted.
    shutil.copytree(attempt.folder, scratch, ignore=shutil.ignore_patterns(".*"))
    if (result := attempt.read("result")) and target.number != attempt.number:
        Attempt(scratch).write("result", {**result, "attempt": target.number})
    target.folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch, target.folder)
    return target


def _merge_boards(results: Path, folder: Path, store: Store) -> Iterator[BoardProgress]:
    """Add the boards that are not here yet, and yield the progress of each board of the folder.

    A board that is here keeps its members, although the other folder may have chosen
    hyper-parameters from its own trials: the next sweep here chooses from all of them.
    """
    here = {members["board"]: members for members in read_all_board_members(results)}
    for members in read_all_board_members(folder):
        if members["board"] not in here:
            store.save_board(members)
        cells = [
            cell
            for cell in here.get(members["board"], members)["cells"]
            if not cell.get("retired") and cell["refusal"] is None
        ]
        keys = {key for cell in cells for key in cell["keys"]}
        missing = sum(read_run_state(results, key).state != "cached" for key in keys)
        waiting = sum(not cell["keys"] and not cell.get("failure") for cell in cells)
        yield BoardProgress(members["board"], len(keys), missing, waiting)
