"""Upkeep of a results folder: the store made again from the files, and compared with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qbench.errors import QbenchError
from qbench.runs.attempts import all_attempts
from qbench.store.database import Store
from qbench.store.file_rows import Batch
from qbench.util.text import count


@dataclass
class Report:
    """What the store and the run folders make of each other."""

    runs: int = 0
    unfinished: int = 0
    missing: list[str] = field(default_factory=list)
    """Finished attempts that the store lacks."""
    different: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """Rows of which there is no folder."""
    refused: list[str] = field(default_factory=list)
    """Folders that are not what they say."""
    lost: list[str] = field(default_factory=list)
    """Our own finished attempts whose artefact is gone: their scores stand, and nobody can ask, export or submit them whole."""

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.different or self.foreign)

    def __str__(self) -> str:
        lines = [f"{count(self.runs, 'finished attempt')}, {self.unfinished} unfinished"]
        for words, found in (
            ("not in the store", self.missing),
            ("differs from its files", self.different),
            ("in the store without files", self.foreign),
            ("refused", self.refused),
            ("without its artefact", self.lost),
        ):
            lines += [f"{words}: {name}" for name in found[:20]] + (
                [f"{words}: {len(found) - 20} more"] if len(found) > 20 else []
            )
        lines += (
            [f"`qbench sweep` makes a run again once its folder is removed: {self.lost[0]}"]
            if self.lost
            else []
        )
        return "\n".join(
            [
                *lines,
                "the store agrees with the files" if self.agrees else "run `qbench db rebuild`",
            ]
        )


def rebuild(results: Path) -> Report:
    """Make the store again from the run folders and rosters. The old one goes when the new one is complete."""
    if not (results / "runs").is_dir():
        raise QbenchError(f"{results}: no runs here, so nothing to rebuild from")
    with Store(results, anew=True) as store:
        store.snapshot()
        runs, refused = len(store.known), store.refused
    unfinished = sum(
        not (attempt.folder / "result.json").exists() for attempt in all_attempts(results)
    )
    return Report(runs, unfinished, refused=refused)


def check(results: Path) -> Report:
    """Compare every row with the files that it comes from."""
    report = Report()
    with Store(results) as store:
        store.hear()
        stored = {
            (row["key"], row["attempt"]): (row, points, answers)
            for row, points, answers in store.rows()
        }
    for attempt in all_attempts(results):
        name, batch = f"{attempt.key}/{attempt.number}", Batch()
        batch.add(attempt)
        report.refused += batch.refused
        if not batch.runs:
            report.unfinished += not batch.refused
            continue
        report.runs += 1
        if (
            batch.runs[0]["artefact_sha256"]
            and not attempt.merged
            and not attempt.artefact.is_file()
        ):
            report.lost.append(name)
        found = stored.pop((attempt.key, attempt.number), None)
        if found is None:
            report.missing.append(name)
        elif found != (batch.runs[0], len(batch.curves["step"]), batch.answers):
            report.different.append(name)
    report.foreign = [f"{key}/{number}" for key, number in stored]
    return report
