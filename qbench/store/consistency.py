"""Rebuild the store from the run folders, and compare the two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt, iterate_attempts
from qbench.store.database import Store, StoredRun
from qbench.store.file_rows import IncomingRows
from qbench.util.text import format_count

LISTED = 20
"""How many attempts of one kind the text of a report names."""


@dataclass
class StoreReport:
    """The differences between the store and the run folders."""

    runs: int = 0
    unfinished: int = 0
    missing: list[str] = field(default_factory=list)
    """Finished attempts that are not in the store."""
    different: list[str] = field(default_factory=list)
    """Attempts whose row differs from their files."""
    foreign: list[str] = field(default_factory=list)
    """Rows without a folder."""
    refused: list[str] = field(default_factory=list)
    """Folders whose files contradict each other."""
    lost: list[str] = field(default_factory=list)
    """Own finished attempts whose artefact is gone. Their scores are kept, but they can neither be
    evaluated nor exported, nor submitted with an artefact."""

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.different or self.foreign)

    def __str__(self) -> str:
        return "\n".join(self._describe_lines())

    def _describe_lines(self) -> Iterator[str]:
        yield f"{format_count(self.runs, 'finished attempt')}, {self.unfinished} unfinished"
        for problem, names in (
            ("not in the store", self.missing),
            ("differs from its files", self.different),
            ("in the store without files", self.foreign),
            ("refused", self.refused),
            ("without its artefact", self.lost),
        ):
            yield from (f"{problem}: {name}" for name in names[:LISTED])
            if len(names) > LISTED:
                yield f"{problem}: {len(names) - LISTED} more"
        if self.lost:
            yield (
                "`qbench sweep` trains a run again once its folder has been removed: "
                f"{self.lost[0]}"
            )
        yield "the store agrees with the files" if self.agrees else "run `qbench db rebuild`"


def rebuild_store(results: Path) -> StoreReport:
    """Rebuild the store from the run folders and the boards' files.

    The old store is replaced once the new one is complete.
    """
    if not (results / "runs").is_dir():
        raise QbenchError(f"{results}: no runs here, so nothing to rebuild from")
    with Store(results, rebuild=True) as store:
        store.write_snapshot()
        runs, refused = len(store.known_attempts), store.refused
    unfinished = sum(
        not (attempt.folder / "result.json").exists() for attempt in iterate_attempts(results)
    )
    return StoreReport(runs, unfinished, refused=refused)


def check_store(results: Path) -> StoreReport:
    """Compare every row of the store with the files that it comes from."""
    report = StoreReport()
    with Store(results) as store:
        store.refresh_answers()
        stored = {
            (row["key"], row["attempt"]): (row, points, answers)
            for row, points, answers in store.read_runs()
        }
    for attempt in iterate_attempts(results):
        _check_attempt(attempt, stored, report)
    # Rows that no finished attempt has claimed are left.
    report.foreign = [f"{key}/{number}" for key, number in stored]
    return report


def _check_attempt(
    attempt: Attempt, stored: dict[tuple[str, int], StoredRun], report: StoreReport
) -> None:
    """Compare an attempt with its stored row, which is removed from `stored`; update the report."""
    incoming = IncomingRows()
    incoming.add_attempt(attempt)
    report.refused += incoming.refused
    if not incoming.runs:
        report.unfinished += not incoming.refused
        return
    report.runs += 1
    name, row = f"{attempt.key}/{attempt.number}", incoming.runs[0]
    if row["artefact_sha256"] and not attempt.merged and not attempt.artefact.is_file():
        report.lost.append(name)
    found = stored.pop((attempt.key, attempt.number), None)
    if found is None:
        report.missing.append(name)
    elif found != (row, len(incoming.curves["step"]), incoming.answers):
        report.different.append(name)
