"""`qbench merge`: add the runs of a bundle that passes all checks to a results folder.

Either all runs are added or none. Each becomes an attempt of its own, and nothing that exists is
overwritten. The runs are first written to a folder next to `runs` and are moved when the last one
is on the disk. A run of somebody else has a `trust.json` in its folder: the level of trust, which
`verify` explains, and where the run came from. It is written here and never read from a bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt, list_attempts
from qbench.runs.lookup import read_latest_attempt
from qbench.store.database import Store
from qbench.submissions.bundle import RUN_FILES, Bundle, ManifestRun, encode_manifest, open_bundle
from qbench.submissions.report import TRUST_LEVELS, TrustLevel, VerificationReport
from qbench.submissions.strict_json import SubmissionError
from qbench.submissions.sweep_files import ReceivedSweepFile, save_sweep_files
from qbench.submissions.verify import verify_open_bundle
from qbench.util.text import format_count

TRUST_VERSION = 1
STAGING_FOLDER = ".merge"
"""Where runs are written before they are moved, in the results folder."""


@dataclass(frozen=True)
class MergeOutcome:
    """What happened to a bundle and its runs."""

    report: VerificationReport
    added: int = 0
    present: int = 0
    """How many runs were here already, with the same files."""
    raised: int = 0
    """How many of those now have a higher level of trust."""
    levels: Mapping[TrustLevel, int] = field(default_factory=dict)
    """How many of the added runs have each level of trust."""
    boards: Sequence[ReceivedSweepFile] = ()

    def __str__(self) -> str:
        if not self.report.passed:
            return "nothing merged"
        levels = ", ".join(f"{n} {level}" for level, n in self.levels.items())
        added = f"{format_count(self.added, 'run')} merged" + (f" ({levels})" if self.added else "")
        raised = f", {self.raised} of them with more trust than before" if self.raised else ""
        runs = f"{added}, {self.present} here already{raised}"
        return "\n".join([runs, *map(str, self.boards)])


def merge_bundle(
    results: Path,
    path: Path,
    *,
    score: bool = True,
    on_progress: Callable[[str], None] = lambda _: None,
) -> MergeOutcome:
    """Verify a bundle and add its runs to a results folder.

    Args:
        results: The results folder.
        path: The bundle's file.
        score: Whether to evaluate the artefacts; without that, all runs stay claimed.
        on_progress: Is called with a line of text after each evaluation.
    """
    report = VerificationReport()
    try:
        with open_bundle(path) as bundle:
            verify_open_bundle(bundle, report, score=score, on_progress=on_progress)
            if not report.passed:
                return MergeOutcome(report)
            # Opening the store takes the folder's lock, which is held until all is written.
            with Store(results) as store:
                return _BundleMerge(results, store, bundle, report).run()
    except SubmissionError as error:
        report.add_check("archive", "", [str(error)])
        return MergeOutcome(report)
    except OSError as error:
        where = error.filename or results
        raise QbenchError(
            f"{where}: {os.strerror(error.errno or 0)}; nothing of {path} was merged"
        ) from error


def mark_reproduced(results: Path, key: str, verdict: str) -> TrustLevel | None:
    """Mark a merged run as reproduced after training it again here gave nearly the same result.

    Return the new level, or None if nothing changes: for an own run, for one that is already
    reproduced, and for the verdict "different".
    """
    attempt = Attempt(Path(read_latest_attempt(results, key)["folder"]))
    trust = attempt.read("trust")
    if trust is None or verdict == "different" or trust.get("level") == "reproduced":
        return None
    with Store(results) as store:
        _raise_trust(attempt, "reproduced", store)
        store.write_snapshot()
    return "reproduced"


class _BundleMerge:
    """The merge of one verified bundle into a results folder whose lock is held."""

    def __init__(
        self, results: Path, store: Store, bundle: Bundle, report: VerificationReport
    ) -> None:
        self.results, self.store, self.bundle, self.report = results, store, bundle, report
        self.staging = results / STAGING_FOLDER
        self.origin = {
            "merged": datetime.now(UTC).isoformat(timespec="seconds"),
            "manifest_sha256": hashlib.sha256(encode_manifest(bundle.manifest)).hexdigest(),
            **bundle.manifest["made"],
            "note": bundle.manifest["note"],
        }

    def run(self) -> MergeOutcome:
        """Add the runs and return what happened."""
        self._remove_staging()  # a merge that was killed leaves one behind
        try:
            new, present = self._stage_runs()
            os.sync()  # everything must be on the disk before the first run appears in `runs`
            self._move_to_results(new)
        finally:
            self._remove_staging()
        # The store may lack the present runs: it was deleted, or ingesting them was interrupted.
        self.store.ingest_attempts(attempt for _, attempt in present)
        raised = sum(
            _raise_trust(attempt, self.report.trust[run.key], self.store)
            for run, attempt in present
        )
        self.store.write_snapshot()
        counts = Counter(self.report.trust[attempt.key] for attempt in new)
        levels = {level: counts[level] for level in TRUST_LEVELS if counts[level]}
        # The sweep files come last: they tell the user what to do with runs that are here.
        boards = save_sweep_files(self.results, self.bundle)
        return MergeOutcome(self.report, len(new), len(present), raised, levels, boards)

    def _stage_runs(self) -> tuple[list[Attempt], list[tuple[ManifestRun, Attempt]]]:
        """Write the new runs; return their future attempts and the runs that exist already."""
        new, present = [], []
        for run in self.bundle.runs:
            contents = {name: self.bundle.read_file(run, name) for name in RUN_FILES}
            files = {name: data for name, data in contents.items() if data is not None}
            own_attempts = list_attempts(self.results, run.key)
            same = next((own for own in own_attempts if is_same_attempt(own, files)), None)
            if same:
                present.append((run, same))
            else:
                number = own_attempts[-1].number + 1 if own_attempts else 1
                new.append(self._stage_run(run, files, number))
        return new, present

    def _stage_run(self, run: ManifestRun, files: Mapping[str, bytes], number: int) -> Attempt:
        """Write a run to the staging folder; return the attempt that it will be."""
        folder = self.staging / run.key
        folder.mkdir(parents=True)
        for name, data in files.items():
            place = folder / RUN_FILES[name]
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(set_attempt_number(data, number) if name == "result.json" else data)
        trust = {
            "trust_version": TRUST_VERSION,
            "level": self.report.trust[run.key],
            "attempt": run.attempt,
            **self.origin,
        }
        (folder / "trust.json").write_text(json.dumps(trust, indent=1) + "\n", encoding="utf-8")
        return Attempt(self.results / "runs" / run.key[:2] / run.key / str(number))

    def _move_to_results(self, new: Iterable[Attempt]) -> None:
        """Move every staged run to its place and add it to the store; undo all if one fails."""
        moved: list[Attempt] = []
        try:
            for attempt in new:
                attempt.folder.parent.mkdir(parents=True, exist_ok=True)
                # Before the rename, so that the undoing below knows of the folders just made.
                moved.append(attempt)
                (self.staging / attempt.key).rename(attempt.folder)
            if refusals := self.store.ingest_attempts(moved):
                raise QbenchError(refusals[0])
        except BaseException:  # an interrupt must not leave half a bundle either
            for attempt in moved:
                _remove_attempt(attempt)
            raise

    def _remove_staging(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)


def is_same_attempt(attempt: Attempt, files: Mapping[str, bytes]) -> bool:
    """Return whether an attempt has these files.

    The number of the attempt may differ, and so may the artefact, which the user may have deleted.
    """
    own_result = attempt.read("result")
    result = json.loads(files["result.json"])
    if own_result is None or {**own_result, "attempt": 0} != {**result, "attempt": 0}:
        return False
    return all(
        _read_if_exists(attempt.folder / name) == files.get(name)
        for name in ("env.json", "curve.jsonl")
    )


def set_attempt_number(result: bytes, number: int) -> bytes:
    """Return a result.json with this attempt number, unchanged if it has the number already."""
    data: dict[str, Any] = json.loads(result)
    if data["attempt"] == number:
        return result
    return (json.dumps({**data, "attempt": number}, indent=1) + "\n").encode()


def _read_if_exists(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remove_attempt(attempt: Attempt) -> None:
    """Remove an attempt's folder, and the folders above it if they are empty then."""
    shutil.rmtree(attempt.folder, ignore_errors=True)
    with suppress(OSError):  # `rmdir` refuses a folder that holds something
        attempt.folder.parent.rmdir()
        attempt.folder.parent.parent.rmdir()


def _raise_trust(attempt: Attempt, level: TrustLevel, store: Store) -> bool:
    """Raise the level of trust of a merged run; return whether that changed anything.

    A level is never lowered, and an own run has none.
    """
    trust = attempt.read("trust")
    if trust is None or TRUST_LEVELS.index(trust["level"]) >= TRUST_LEVELS.index(level):
        return False
    attempt.write("trust", {**trust, "level": level})
    store.set_trust(attempt.key, attempt.number, level)
    return True
