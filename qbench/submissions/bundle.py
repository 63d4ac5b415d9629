"""A bundle: finished runs in one zip, with nothing else of the folder that they come from.

    manifest.json                     format version, who made it with what, boards and runs with hash and size of each file
    boards/<name>.toml                the sweep file of each board that was submitted by its name
    runs/<key>/spec.json              and env.json, result.json, curve.jsonl, weights.safetensors, as far as the run has them

One attempt a run, in the order of keys, in an archive of one spelling (`zipped`): the same runs are the same bytes. The members are stored, not
compressed, because compressors differ between versions, and so that no small file can become a large one. What is read is read under caps and
compared with the manifest's hash, every time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qbench.errors import QbenchError, UsageError, unknown
from qbench.places import unplaced
from qbench.record import Attempt, may_begin, only
from qbench.roster import read_all
from qbench.standing import standing
from qbench.submissions import strict, zipped
from qbench.submissions.refused import Refused
from qbench.text import count, size

BUNDLE_VERSION = 2
MANIFEST = "manifest.json"
FILES = {
    "spec.json": "spec.json",
    "env.json": "env.json",
    "result.json": "result.json",
    "curve.jsonl": "curve.jsonl",
    "weights.safetensors": "export/weights.safetensors",
}
"""What of a run travels, and where it lies in the run's folder."""
BOARD = "boards/{}.toml"
MOST = {
    MANIFEST: 1 << 25,
    BOARD: 1 << 18,
    "spec.json": 1 << 16,
    "env.json": 1 << 16,
    "result.json": 1 << 22,
    "curve.jsonl": 1 << 24,
    "weights.safetensors": 1 << 30,
}
"""Bytes that are read of each, at most."""


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


def submit(results: Path, words: Sequence[str], out: Path, note: str | None = None, by: str | None = None) -> Packed:
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
    return Packed(out, len(found), report.files, out.stat().st_size, digest.hexdigest(), unfinished, tuple(boards))


def gather(results: Path, words: Iterable[str]) -> tuple[list[Attempt], int]:
    """The attempts that decide the runs of boards and keys, by key, with those that they go on from; and how many runs have none."""
    boards = {roster["board"]: roster for roster in read_all(results)}
    wanted, unfinished = [], 0
    for word in words:
        if word not in boards:
            if not may_begin(results, word):
                raise unknown("board or run", word, boards)
            if (attempt := standing(results, key := only(results, word)).attempt) is None or attempt.read("result") is None:
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
    from qbench.submissions.boards import checked

    found: dict[str, bytes] = {}
    for roster in sorted((r for r in read_all(results) if r["board"] in words), key=lambda r: str(r["board"])):
        text = "\n".join(map(unplaced, str(roster["sweep"]).split("\n"))).encode()
        with suppress(Refused):
            checked(text, roster["board"])
            found |= {roster["board"]: text} if len(text) <= MOST[BOARD] else {}
    return found


def pack(file: BinaryIO, attempts: Iterable[Attempt], note: str | None, by: str | None, boards: Mapping[str, bytes]) -> None:
    """Write the bundle of some attempts, one a run, in the order of their keys."""
    from qbench import __version__

    listed = [(attempt, [name for name in FILES if _travels(attempt, name)]) for attempt in attempts]
    runs = [
        {"key": attempt.key, "attempt": attempt.number, "files": {name: _entry(_read(attempt, name)) for name in names}}
        for attempt, names in listed
    ]
    manifest = {"bundle_version": BUNDLE_VERSION, "made": {"qbench": __version__, "by": by}, "note": note, "runs": runs}
    manifest["boards"] = [{"name": name, **_entry(text)} for name, text in sorted(boards.items())]

    def members() -> Iterator[tuple[str, bytes]]:
        yield MANIFEST, spell(manifest)
        for name, text in sorted(boards.items()):
            yield BOARD.format(name), text
        for attempt, names in listed:
            for name in names:
                yield f"runs/{attempt.key}/{name}", _read(attempt, name)

    zipped.write(file, members())


def spell(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest."""
    return (json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _travels(attempt: Attempt, name: str) -> bool:
    """An artefact of a failed run is of no score, and stays."""
    if name == "weights.safetensors" and (attempt.read("result") or {}).get("state") != "ok":
        return False
    return (attempt.folder / FILES[name]).is_file()


def _read(attempt: Attempt, name: str) -> bytes:
    return (attempt.folder / FILES[name]).read_bytes()


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


# ---- reading ----


@dataclass(frozen=True)
class Entry:
    """A run as the manifest lists it."""

    key: str
    attempt: int
    files: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return self.key[:12]


class Bundle:
    """A bundle that is open: an archive of one spelling that holds the files of its manifest and no others."""

    def __init__(self, file: BinaryIO) -> None:
        self.archive = zipped.Archive(file)
        if next(iter(self.archive.members)) != MANIFEST:
            raise Refused(f"its first member is not {MANIFEST}: not a bundle of `qbench submit`")
        self.manifest = _manifest(self.archive.read(MANIFEST, MOST[MANIFEST]))
        self.runs = [Entry(run["key"], int(run["attempt"]), run["files"]) for run in self.manifest["runs"]]
        self.boards = {board["name"]: board for board in self.manifest.get("boards", [])}
        if [board["name"] for board in self.manifest.get("boards", [])] != sorted({name.lower(): name for name in self.boards}.values()):
            raise Refused(f"{MANIFEST}: the boards are not in the order of their names, each once")
        keys = [run.key for run in self.runs]
        if keys != sorted(set(keys)):
            raise Refused(f"{MANIFEST}: the runs are not in the order of their keys, each once")
        listed = [MANIFEST, *map(BOARD.format, self.boards)]
        listed += [f"runs/{run.key}/{name}" for run in self.runs for name in FILES if name in run.files]
        if (names := list(self.archive.members)) != listed:
            more, less = [n for n in names if n not in set(listed)], [n for n in listed if n not in self.archive.members]
            wrong = f"{more[0]} is not listed" if more else f"{less[0]} is missing" if less else "the members are not in their order"
            raise Refused(f"{MANIFEST} and the archive do not agree: {wrong}")

    def read_board(self, name: str) -> bytes:
        """A board's sweep file, if it is the one that the manifest lists."""
        data, told = self.archive.read(BOARD.format(name), MOST[BOARD]), self.boards[name]
        if len(data) != told["size"] or hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise Refused(f"{BOARD.format(name)} is not the file of the manifest")
        return data

    def read(self, run: Entry, name: str) -> bytes | None:
        """A file of a run, if it is the one that the manifest lists; None if the run has none of that name."""
        if (told := run.files.get(name)) is None:
            return None
        data = self.archive.read(f"runs/{run.key}/{name}", MOST[name])
        if len(data) != told["size"] or hashlib.sha256(data).hexdigest() != told["sha256"]:
            raise Refused(f"run {run}: {name} is not the file of the manifest")
        return data


def _manifest(data: bytes) -> dict[str, Any]:
    manifest = strict.loads(data, MANIFEST)
    version = manifest.get("bundle_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > BUNDLE_VERSION:
        raise Refused(f"made by a newer qbench (bundle version {version}; this one reads {BUNDLE_VERSION}): upgrade qbench")
    strict.conforms(manifest, "manifest", MANIFEST)
    if spell(manifest) != data:
        raise Refused(f"{MANIFEST} is not spelled as qbench submit spells it")
    found: dict[str, Any] = manifest
    return found


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """A bundle by its path."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}") from None
    with file:
        try:
            yield Bundle(file)
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
