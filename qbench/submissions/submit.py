"""`qbench submit`: pack finished runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qbench.errors import QbenchError, UsageError, unknown
from qbench.runs.attempts import Attempt
from qbench.runs.lookup import may_begin, only
from qbench.runs.state import standing
from qbench.store.board_members import read_all
from qbench.submissions import canonical_zip
from qbench.submissions.bundle import BOARD, BUNDLE_VERSION, FILES, MANIFEST, MOST, spell
from qbench.submissions.strict_json import Refused
from qbench.util.redact_paths import unplaced
from qbench.util.text import count, size

# ---- writing ----


@dataclass(frozen=True)
class Packed:
    """What `submit` has written."""

    out: Path
    runs: int
    files: int
    size: int
    sha256: str
    unfinished: int
    """Runs of the boards that have not ended, and stay here."""
    boards: tuple[str, ...] = ()
    """Whose sweep files went along."""

    def __str__(self) -> str:
        left = f"; without {count(self.unfinished, 'unfinished run')}" if self.unfinished else ""
        boards = f" and the sweep file of {', '.join(self.boards)}" if self.boards else ""
        return f"{self.out}: {count(self.runs, 'run')}{boards}, {size(self.size)}{left}\nsha256 {self.sha256}"


def submit(
    results: Path, words: Sequence[str], out: Path, note: str | None = None, by: str | None = None
) -> Packed:
    """Pack the runs that boards and keys name, and those that they go on from. Whoever receives the bundle would take it: that is checked."""
    from qbench.submissions.verify import verify

    if not words:
        raise UsageError("nothing to submit: name a board or runs")
    found, unfinished = gather(results, words)
    boards = sweep_files(results, words)
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with open(scratch, "w+b") as file:
            pack(file, found, note, by, boards)
            file.flush()
            os.fsync(file.fileno())
        if not (report := verify(scratch, score=False)).passed:
            raise QbenchError(f"these runs would be refused: {report.failures()[0]}")
        digest = hashlib.sha256()
        with open(scratch, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        scratch.replace(out)
    except OSError as error:
        raise QbenchError(f"{out}: {os.strerror(error.errno or 0)}") from None
    finally:
        scratch.unlink(missing_ok=True)
    return Packed(
        out,
        len(found),
        report.files,
        out.stat().st_size,
        digest.hexdigest(),
        unfinished,
        tuple(boards),
    )


def gather(results: Path, words: Iterable[str]) -> tuple[list[Attempt], int]:
    """The attempts that decide the runs of boards and keys, by key, with those that they go on from; and how many runs have none."""
    boards = {roster["board"]: roster for roster in read_all(results)}
    wanted, unfinished = [], 0
    for word in words:
        if word not in boards:
            if not may_begin(results, word):
                raise unknown("board or run", word, boards)
            if (
                attempt := standing(results, key := only(results, word)).attempt
            ) is None or attempt.read("result") is None:
                raise UsageError(f"run {key} has not ended; `qbench sweep` finishes it")
            wanted.append(attempt)
            continue
        for key in {key: None for cell in boards[word]["cells"] for key in cell["keys"]}:
            attempt = standing(results, key).attempt
            wanted += [attempt] if attempt and attempt.read("result") else []
            unfinished += not (attempt and attempt.read("result"))
    found = {attempt.key: attempt for attempt in wanted}
    while wanted:
        base = (wanted.pop().read("spec") or {}).get("base")
        attempt = standing(results, base).attempt if base and base not in found else None
        if attempt and attempt.read("result"):
            found[attempt.key] = attempt
            wanted.append(attempt)
    if not found:
        raise QbenchError(f"no run of {', '.join(words)} has ended")
    return [found[key] for key in sorted(found)], unfinished


def sweep_files(results: Path, words: Iterable[str]) -> dict[str, bytes]:
    """By name, the sweep files of the boards among the words, without the places of this machine. One that was cut short by options of
    `qbench sweep` is not its board's, and one that nobody would take stays here."""
    from qbench.submissions.sweep_files import checked

    found: dict[str, bytes] = {}
    for roster in sorted(
        (r for r in read_all(results) if r["board"] in words), key=lambda r: str(r["board"])
    ):
        text = "\n".join(map(unplaced, str(roster["sweep"]).split("\n"))).encode()
        with suppress(Refused):
            checked(text, roster["board"])
            found |= {roster["board"]: text} if len(text) <= MOST[BOARD] else {}
    return found


def pack(
    file: BinaryIO,
    attempts: Iterable[Attempt],
    note: str | None,
    by: str | None,
    boards: Mapping[str, bytes],
) -> None:
    """Write the bundle of some attempts, one a run, in the order of their keys."""
    from qbench import __version__

    listed = [
        (attempt, [name for name in FILES if _travels(attempt, name)]) for attempt in attempts
    ]
    runs = [
        {
            "key": attempt.key,
            "attempt": attempt.number,
            "files": {name: _entry(_read(attempt, name)) for name in names},
        }
        for attempt, names in listed
    ]
    manifest = {
        "bundle_version": BUNDLE_VERSION,
        "made": {"qbench": __version__, "by": by},
        "note": note,
        "runs": runs,
    }
    manifest["boards"] = [{"name": name, **_entry(text)} for name, text in sorted(boards.items())]

    def members() -> Iterator[tuple[str, bytes]]:
        yield MANIFEST, spell(manifest)
        for name, text in sorted(boards.items()):
            yield BOARD.format(name), text
        for attempt, names in listed:
            for name in names:
                yield f"runs/{attempt.key}/{name}", _read(attempt, name)

    canonical_zip.write(file, members())


def _travels(attempt: Attempt, name: str) -> bool:
    """An artefact of a failed run is of no score, and stays."""
    if name == "weights.safetensors" and (attempt.read("result") or {}).get("state") != "ok":
        return False
    return (attempt.folder / FILES[name]).is_file()


def _read(attempt: Attempt, name: str) -> bytes:
    return (attempt.folder / FILES[name]).read_bytes()


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
