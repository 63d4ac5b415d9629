"""`qbench merge FOLDER --own`: the runs of another results folder of one's own, such as a shard's, taken in as what they are: own runs.

Whoever says `--own` vouches for the folder; a stranger's runs come as a bundle, and are checked. Here is checked what goes wrong between
one's own machines: files that are cut short, damaged, or not where they belong. Nothing is written over: a run that is here stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError, UsageError
from qbench.runs.attempts import Attempt, all_attempts, attempts
from qbench.runs.config import RunConfig
from qbench.runs.state import belongs, standing, standing_of
from qbench.store import board_members
from qbench.store.database import Store
from qbench.store.lock import held_since
from qbench.util.text import count

STAGE = ".gather"
BATCH = 500
"""Attempts that are copied between two looks of the store."""


@dataclass(frozen=True)
class Share:
    """How much of a board is here."""

    board: str
    runs: int
    missing: int
    waiting: int
    """Cells whose values are not chosen yet."""

    def __str__(self) -> str:
        rest = f"{self.missing} of {count(self.runs, 'run')} missing: merge the other shards, or sweep its file here"
        if not self.missing:
            rest = f"all {count(self.runs, 'run')} here"
            rest += (
                f"; {count(self.waiting, 'cell')} waiting for a choice: sweep its file again"
                if self.waiting
                else ""
            )
        return f"board {self.board}: {rest}"


@dataclass
class Gathered:
    """What became of a folder."""

    folder: str
    runs: int = 0
    """That were not here."""
    present: int = 0
    twice: int = 0
    """Of those present, the ones that were trained again there: shards that overlap."""
    refused: list[str] = field(default_factory=list)
    boards: list[Share] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        twice = (
            f", {self.twice} of them trained in both: the shards overlap, and the first stays"
            if self.twice
            else ""
        )
        done = (
            f"{self.folder}: {count(self.runs, 'run')} merged, {self.present} here already{twice}"
        )
        return [done, *(f"{self.folder}: not taken: {line}" for line in self.refused)]


def gather(results: Path, folder: Path) -> Gathered:
    """Take in what another results folder has and this one lacks. The same again adds nothing; one that was interrupted goes on."""
    _check(results, folder)
    found, stage = Gathered(str(folder)), results / STAGE
    with Store(results) as store:
        shutil.rmtree(stage, ignore_errors=True)
        try:
            moved: list[Attempt] = []
            for home in _homes(folder):
                moved += _take(home, results, stage, found)
                if len(moved) >= BATCH:
                    found.refused += store.ingest(moved)
                    moved = []
            found.refused += store.ingest(moved)
            found.boards = list(_boards(results, folder, store))
            store.snapshot()
        except OSError as error:
            raise QbenchError(
                f"{error.filename or results}: {error.strerror}; what was merged is here: the same command goes on"
            ) from error
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return found


def _check(results: Path, folder: Path) -> None:
    if folder.is_file():
        raise UsageError(f"{folder}: --own takes results folders; a bundle is merged without it")
    if not (folder / "runs").is_dir():
        raise UsageError(f"{folder}: no results folder: it has no runs/ in it")
    if results.exists() and folder.resolve() == results.resolve():
        raise UsageError(f"{folder}: is the folder to merge into; --results names another")
    if held_since(folder) is not None:
        raise QbenchError(f"{folder}: a sweep is writing there: merge when it is done")


def _homes(folder: Path) -> Iterator[list[Attempt]]:
    """The attempts at a run, run by run."""
    tried: list[Attempt] = []
    for attempt in all_attempts(folder):
        if tried and tried[0].key != attempt.key:
            yield tried
            tried = []
        tried.append(attempt)
    if tried:
        yield tried


def _take(theirs: list[Attempt], results: Path, stage: Path, found: Gathered) -> list[Attempt]:
    """Copy what of a run's attempts adds something: all of them where there was none, and where it was not finished here and is there."""
    key = theirs[0].key
    ours = attempts(results, key)
    known = [attempt.read("result") for attempt in ours]
    new = [attempt for attempt in theirs if not _known(attempt, known) and not _empty(attempt)]
    if ours and (not new or standing(results, key).state == "cached"):
        found.present += 1
        found.twice += any(
            standing_of(attempt, attempt.read("result")).state == "cached" for attempt in new
        )
        return []
    good = []
    for attempt in new:
        if problem := damage(attempt):
            found.refused.append(f"{attempt.key[:12]} attempt {attempt.number}: {problem}")
        else:
            good.append(attempt)
    found.runs += bool(good)
    last = ours[-1].number if ours else 0
    return [
        _copy(attempt, Attempt(results / "runs" / key[:2] / key / str(last + place)), stage)
        for place, attempt in enumerate(good, 1)
    ]


def _known(attempt: Attempt, known: list[dict[str, Any] | None]) -> bool:
    """Whether an attempt came here before, whatever its number is here."""
    result = attempt.read("result")
    if result is None:
        return bool(known)  # a checkpoint adds nothing to what is here
    return any(ours and {**ours, "attempt": 0} == {**result, "attempt": 0} for ours in known)


def _empty(attempt: Attempt) -> bool:
    """Begun and left before anything was written."""
    return (
        not (attempt.folder / "spec.json").exists()
        and not (attempt.folder / "result.json").exists()
    )


def damage(attempt: Attempt) -> str | None:
    """Why an attempt's files are not what they say, in words."""
    spec, result = attempt.read("spec"), attempt.read("result")
    try:
        if spec is None or RunConfig.from_json(spec).key != attempt.key:
            return "its spec.json is missing, or another run's"
    except (QbenchError, TypeError, ValueError, KeyError):
        return "its spec.json is damaged"
    if result is None:
        return "its result.json is damaged" if (attempt.folder / "result.json").exists() else None
    if not belongs(result, attempt) or result.get("state") not in ("ok", "failed"):
        return "its result.json is another attempt's"
    said = result.get("artefact_sha256")
    if (
        said
        and attempt.artefact.is_file()
        and hashlib.sha256(attempt.artefact.read_bytes()).hexdigest() != said
    ):
        return "its artefact is damaged"
    return None


def _copy(attempt: Attempt, target: Attempt, stage: Path) -> Attempt:
    """Whole under another name, then in its place."""
    scratch = stage / f"{target.key}-{target.number}"
    shutil.copytree(attempt.folder, scratch, ignore=shutil.ignore_patterns(".*"))
    if (result := attempt.read("result")) and target.number != attempt.number:
        Attempt(scratch).write("result", {**result, "attempt": target.number})
    target.folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch, target.folder)
    return target


def _boards(results: Path, folder: Path, store: Store) -> Iterator[Share]:
    """A board that nobody has swept here comes along. What a tuned one chose there, from its trials alone, is for the next sweep to say."""
    here = {members["board"]: members for members in board_members.read_all(results)}
    for members in board_members.read_all(folder):
        if members["board"] not in here:
            store.set_board(members)
        cells = [
            cell
            for cell in here.get(members["board"], members)["cells"]
            if not cell.get("retired") and cell["refusal"] is None
        ]
        keys = {key for cell in cells for key in cell["keys"]}
        missing = sum(standing(results, key).state != "cached" for key in keys)
        yield Share(
            members["board"],
            len(keys),
            missing,
            sum(not cell["keys"] and not cell.get("failure") for cell in cells),
        )
