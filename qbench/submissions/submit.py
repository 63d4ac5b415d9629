"""`qbench submit`: pack finished runs into a bundle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qbench.errors import QbenchError, UsageError, unknown_name_error
from qbench.runs.attempts import Attempt
from qbench.runs.lookup import find_key, looks_like_key
from qbench.runs.state import read_run_state
from qbench.store.board_members import read_all_board_members
from qbench.submissions.bundle import (
    BOARD_FILE,
    BUNDLE_VERSION,
    MANIFEST,
    MAX_BYTES_OF_FILE,
    RUN_FILES,
    encode_manifest,
)
from qbench.submissions.canonical_zip import write_archive
from qbench.submissions.strict_json import SubmissionError
from qbench.util.redact_paths import redact_paths
from qbench.util.text import format_bytes, format_count


@dataclass(frozen=True)
class WrittenBundle:
    """What `submit_runs` wrote."""

    out: Path
    runs: int
    files: int
    size: int
    sha256: str
    unfinished: int
    """How many runs of the boards are left out because they have no result yet."""
    boards: tuple[str, ...] = ()
    """The boards whose sweep files are in the bundle."""

    def __str__(self) -> str:
        left_out = format_count(self.unfinished, "unfinished run")
        without = f"; without {left_out}" if self.unfinished else ""
        boards = f" and the sweep file of {', '.join(self.boards)}" if self.boards else ""
        contents = f"{format_count(self.runs, 'run')}{boards}, {format_bytes(self.size)}"
        return f"{self.out}: {contents}{without}\nsha256 {self.sha256}"


def submit_runs(
    results: Path, words: Sequence[str], out: Path, note: str | None = None, by: str | None = None
) -> WrittenBundle:
    """Pack the runs that the words name, and the runs that those start from.

    The bundle is verified before it gets its name, so that no recipient would refuse it.

    Args:
        results: The results folder.
        words: Names of boards, and keys of runs or beginnings of keys.
        out: The file to write.
        note: A message to the recipient.
        by: Who submits.
    """
    from qbench.submissions.verify import verify_bundle

    if not words:
        raise UsageError("nothing to submit: name a board or runs")
    finished, unfinished = collect_finished_attempts(results, words)
    boards = read_sweep_files(results, words)
    # Next to the target, so that the last step is a rename within one file system.
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with open(scratch, "w+b") as file:
            write_bundle(file, finished, note, by, boards)
            # The data must be on the disk before the rename makes the file visible.
            file.flush()
            os.fsync(file.fileno())
        report = verify_bundle(scratch, score=False)
        if not report.passed:
            raise QbenchError(f"these runs would be refused: {report.failures()[0]}")
        with open(scratch, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        scratch.replace(out)
    except OSError as error:
        raise QbenchError(f"{out}: {os.strerror(error.errno or 0)}") from None
    finally:
        scratch.unlink(missing_ok=True)
    runs, files, file_size = len(finished), report.files, out.stat().st_size
    return WrittenBundle(out, runs, files, file_size, digest, unfinished, tuple(boards))


def collect_finished_attempts(results: Path, words: Iterable[str]) -> tuple[list[Attempt], int]:
    """Return the attempts to submit, sorted by key, and how many runs have no result yet.

    For each run that a word names this is the attempt that decides it. The runs that these start
    from are included, because the recipient needs them to train the others again.
    """
    boards = {members["board"]: members for members in read_all_board_members(results)}
    named, unfinished = [], 0
    for word in words:
        if word not in boards:
            named.append(_find_named_attempt(results, word, boards))
            continue
        # A dict keeps the order and drops keys that several cells share.
        for key in {key: None for cell in boards[word]["cells"] for key in cell["keys"]}:
            if attempt := _find_finished_attempt(results, key):
                named.append(attempt)
            else:
                unfinished += 1
    finished = _with_base_runs(results, named)
    if not finished:
        raise QbenchError(f"no run of {', '.join(words)} has a result yet")
    return [finished[key] for key in sorted(finished)], unfinished


def _find_named_attempt(results: Path, word: str, boards: Mapping[str, Any]) -> Attempt:
    """Return the finished attempt at the run whose key a word is or begins."""
    if not looks_like_key(results, word):
        raise unknown_name_error("board or run", word, boards)
    key = find_key(results, word)
    attempt = _find_finished_attempt(results, key)
    if attempt is None:
        raise UsageError(f"run {key} has no result yet; `qbench sweep` finishes it")
    return attempt


def _find_finished_attempt(results: Path, key: str) -> Attempt | None:
    attempt = read_run_state(results, key).attempt
    return attempt if attempt and attempt.read("result") else None


def _with_base_runs(results: Path, attempts: list[Attempt]) -> dict[str, Attempt]:
    """Return the attempts by key, with the finished runs that they start from."""
    collected = {attempt.key: attempt for attempt in attempts}
    pending = list(attempts)
    while pending:
        base = (pending.pop().read("spec") or {}).get("base")
        if base is None or base in collected:
            continue
        if attempt := _find_finished_attempt(results, base):
            collected[attempt.key] = attempt
            pending.append(attempt)
    return collected


def read_sweep_files(results: Path, words: Iterable[str]) -> dict[str, bytes]:
    """Return the sweep files of the boards among the words, by board, with shortened paths.

    A file is left out if the recipient would refuse it. This includes the file of a board that
    options of `qbench sweep` cut short: it belongs to the complete board.
    """
    from qbench.submissions.sweep_files import decode_sweep_file

    named = [members for members in read_all_board_members(results) if members["board"] in words]
    sweep_files: dict[str, bytes] = {}
    for members in sorted(named, key=lambda members: str(members["board"])):
        lines = str(members["sweep"]).split("\n")
        data = "\n".join(map(redact_paths, lines)).encode()
        with suppress(SubmissionError):
            decode_sweep_file(data, members["board"])
            if len(data) <= MAX_BYTES_OF_FILE[BOARD_FILE]:
                sweep_files[members["board"]] = data
    return sweep_files


def write_bundle(
    file: BinaryIO,
    attempts: Iterable[Attempt],
    note: str | None,
    by: str | None,
    boards: Mapping[str, bytes],
) -> None:
    """Write a bundle of attempts, which are sorted by key, one for each run."""
    from qbench.version import __version__

    listed = [(attempt, _list_submitted_files(attempt)) for attempt in attempts]
    manifest = {
        "bundle_version": BUNDLE_VERSION,
        "made": {"qbench": __version__, "by": by},
        "note": note,
        "runs": [_describe_run(attempt, names) for attempt, names in listed],
        "boards": [{"name": name, **_describe_file(data)} for name, data in sorted(boards.items())],
    }

    # The manifest comes first and holds hashes, so every file is read twice. A generator keeps only
    # one of them in memory.
    def generate_members() -> Iterator[tuple[str, bytes]]:
        yield MANIFEST, encode_manifest(manifest)
        for name, data in sorted(boards.items()):
            yield BOARD_FILE.format(name), data
        for attempt, names in listed:
            for name in names:
                yield f"runs/{attempt.key}/{name}", _read_run_file(attempt, name)

    write_archive(file, generate_members())


def _list_submitted_files(attempt: Attempt) -> list[str]:
    """Return the names of the attempt's files that a bundle holds."""
    names = [name for name in RUN_FILES if (attempt.folder / RUN_FILES[name]).is_file()]
    # No score comes from the artefact of a failed run, and a recipient would refuse it.
    if (attempt.read("result") or {}).get("state") != "ok":
        names = [name for name in names if name != "weights.safetensors"]
    return names


def _describe_run(attempt: Attempt, names: Iterable[str]) -> dict[str, Any]:
    files = {name: _describe_file(_read_run_file(attempt, name)) for name in names}
    return {"key": attempt.key, "attempt": attempt.number, "files": files}


def _read_run_file(attempt: Attempt, name: str) -> bytes:
    return (attempt.folder / RUN_FILES[name]).read_bytes()


def _describe_file(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
