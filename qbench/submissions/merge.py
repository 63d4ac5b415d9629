"""`qbench merge`: the runs of a bundle that passes, taken in as attempts of their own: all of them or none, and never over what is there.

They are written into a folder beside `runs` and moved when the last of them is on the disk. Somebody else's run has a `trust.json` in its folder,
which is written here and never comes out of a bundle: what is believed of the run (`verify` says what the words mean) and where it came from.
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
from qbench.runs.attempts import Attempt, attempts
from qbench.runs.lookup import latest
from qbench.store.database import Store
from qbench.submissions.bundle import FILES, Bundle, Entry, opened, spell
from qbench.submissions.report import LEVELS, Level, Report
from qbench.submissions.strict_json import Refused
from qbench.submissions.sweep_files import Taken, take
from qbench.submissions.verify import examine
from qbench.util.text import count

TRUST_VERSION = 1
STAGE = ".merge"


@dataclass(frozen=True)
class Merged:
    """What became of a bundle."""

    report: Report
    added: int = 0
    present: int = 0
    """Runs that were here already, file by file."""
    raised: int = 0
    """Of those, the ones that are now believed more."""
    levels: Mapping[Level, int] = field(default_factory=dict)
    """What is believed of those that were added."""
    boards: Sequence[Taken] = ()
    """The sweep files that came along."""

    def __str__(self) -> str:
        if not self.report.passed:
            return "nothing merged"
        told = (
            f" ({', '.join(f'{n} {level}' for level, n in self.levels.items())})"
            if self.added
            else ""
        )
        more = f", {self.raised} of them believed more now" if self.raised else ""
        return (
            f"{count(self.added, 'run')} merged{told}, {self.present} here already{more}"
            + "".join(f"\n{board}" for board in self.boards)
        )


def merge(
    results: Path, path: Path, *, score: bool = True, say: Callable[[str], None] = lambda _: None
) -> Merged:
    """Verify a bundle and take its runs in."""
    report = Report()
    try:
        with opened(path) as bundle:
            examine(bundle, report, score=score, say=say)
            if not report.passed:
                return Merged(report)
            with Store(results) as store:
                return _Intake(results, store, bundle, report).run()
    except Refused as error:
        report.add("archive", "", [str(error)])
        return Merged(report)
    except OSError as error:
        where = error.filename or results
        raise QbenchError(
            f"{where}: {os.strerror(error.errno or 0)}; nothing of {path} was merged"
        ) from error


def settle(results: Path, key: str, verdict: str) -> Level | None:
    """After a run was trained again here: a merged one that came to the same, or nearly, is now reproduced. The new level, if there is one."""
    attempt = Attempt(Path(latest(results, key)["folder"]))
    trust = attempt.read("trust")
    if trust is None or verdict == "different" or trust.get("level") == "reproduced":
        return None
    with Store(results) as store:
        _raise(attempt, "reproduced", store)
        store.snapshot()
    return "reproduced"


class _Intake:
    """One bundle on its way into a results folder whose lock is held."""

    def __init__(self, results: Path, store: Store, bundle: Bundle, report: Report) -> None:
        self.results, self.store, self.bundle, self.report = results, store, bundle, report
        self.stage = results / STAGE
        self.origin = {
            "merged": datetime.now(UTC).isoformat(timespec="seconds"),
            "manifest_sha256": hashlib.sha256(spell(bundle.manifest)).hexdigest(),
            **bundle.manifest["made"],
            "note": bundle.manifest["note"],
        }

    def run(self) -> Merged:
        shutil.rmtree(self.stage, ignore_errors=True)  # of a merge that was killed
        moves, present = [], []
        try:
            for run in self.bundle.runs:
                files = {
                    name: data
                    for name in FILES
                    if (data := self.bundle.read(run, name)) is not None
                }
                tried = attempts(self.results, run.key)
                if same := next((a for a in tried if is_same(a, files)), None):
                    present.append((run, same))
                else:
                    moves.append(self._write(run, files, tried[-1].number + 1 if tried else 1))
            os.sync()
            self._move(moves)
        finally:
            shutil.rmtree(self.stage, ignore_errors=True)
        self.store.ingest(
            attempt for _, attempt in present
        )  # whose store was made, or left, without them
        raised = sum(
            _raise(attempt, self.report.trust[run.key], self.store) for run, attempt in present
        )
        self.store.snapshot()
        levels = Counter(self.report.trust[attempt.key] for attempt in moves)
        return Merged(
            self.report,
            len(moves),
            len(present),
            raised,
            {level: levels[level] for level in LEVELS if levels[level]},
            take(self.results, self.bundle),
        )

    def _write(self, run: Entry, files: Mapping[str, bytes], number: int) -> Attempt:
        """Stage a run, as attempt `number` of its key; where it will be."""
        folder = self.stage / run.key
        folder.mkdir(parents=True)
        for name, data in files.items():
            place = folder / FILES[name]
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(renumbered(data, number) if name == "result.json" else data)
        trust = {
            "trust_version": TRUST_VERSION,
            "level": self.report.trust[run.key],
            "attempt": run.attempt,
            **self.origin,
        }
        (folder / "trust.json").write_text(json.dumps(trust, indent=1) + "\n", encoding="utf-8")
        return Attempt(self.results / "runs" / run.key[:2] / run.key / str(number))

    def _move(self, attempts: Iterable[Attempt]) -> None:
        """Every staged run to its place, and into the store; back to none if anything fails."""
        moved: list[Attempt] = []
        try:
            for attempt in attempts:
                attempt.folder.parent.mkdir(parents=True, exist_ok=True)
                moved.append(attempt)
                (self.stage / attempt.key).rename(attempt.folder)
            if refused := self.store.ingest(moved):
                raise QbenchError(refused[0])
        except BaseException:
            for attempt in moved:
                shutil.rmtree(attempt.folder, ignore_errors=True)
                with suppress(OSError):
                    attempt.folder.parent.rmdir()
                    attempt.folder.parent.parent.rmdir()
            raise


def is_same(attempt: Attempt, files: Mapping[str, bytes]) -> bool:
    """Whether an attempt is the one whose files these are, whatever its number here; its artefact may be gone."""
    result = attempt.read("result")
    if result is None or {**result, "attempt": 0} != {
        **json.loads(files["result.json"]),
        "attempt": 0,
    }:
        return False
    return all(
        _bytes(attempt.folder / name) == files.get(name) for name in ("env.json", "curve.jsonl")
    )


def renumbered(result: bytes, number: int) -> bytes:
    """A result as that of attempt `number`; its own bytes where that is what it says."""
    data: dict[str, Any] = json.loads(result)
    return (
        result
        if data["attempt"] == number
        else (json.dumps({**data, "attempt": number}, indent=1) + "\n").encode()
    )


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _raise(attempt: Attempt, level: Level, store: Store) -> bool:
    """Believe more of a merged run than before; whether that is so. Own runs stay own."""
    trust = attempt.read("trust")
    if trust is None or LEVELS.index(trust["level"]) >= LEVELS.index(level):
        return False
    attempt.write("trust", {**trust, "level": level})
    store.set_trust(attempt.key, attempt.number, level)
    return True
