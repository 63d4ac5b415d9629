"""A bundle: finished runs in one zip file, and nothing else from the folder they come from.

    manifest.json         the format version, who made the bundle with which qbench, and the
                          boards and runs with the hash and size of each file
    boards/<name>.toml    the sweep file of each board that was submitted by its name
    runs/<key>/<file>     spec.json, env.json, result.json, curve.jsonl and weights.safetensors,
                          as far as the run has them

A bundle holds one attempt of each run. The runs are sorted by key and the archive can be written
in one way only (`canonical_zip`), so the same runs always give the same bytes. The members are not
compressed, because compressors differ between versions and because a small file must not expand
to a large one. Whatever is read has a maximum size and is compared with the hash in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qbench.errors import UsageError
from qbench.submissions.canonical_zip import CanonicalZip
from qbench.submissions.strict_json import SubmissionError, parse_json, require_schema

BUNDLE_VERSION = 2
MANIFEST = "manifest.json"
RUN_FILES = {
    "spec.json": "spec.json",
    "env.json": "env.json",
    "result.json": "result.json",
    "curve.jsonl": "curve.jsonl",
    "weights.safetensors": "export/weights.safetensors",
}
"""The files of a run that a bundle holds, and where each lies in the run's folder."""
BOARD_FILE = "boards/{}.toml"
MAX_BYTES_OF_FILE = {
    MANIFEST: 1 << 25,
    BOARD_FILE: 1 << 18,
    "spec.json": 1 << 16,
    "env.json": 1 << 16,
    "result.json": 1 << 22,
    "curve.jsonl": 1 << 24,
    "weights.safetensors": 1 << 30,
}
"""How many bytes each file may have; a larger file is refused unread."""


@dataclass(frozen=True)
class ManifestRun:
    """A run as the manifest lists it."""

    key: str
    attempt: int
    files: Mapping[str, Mapping[str, Any]]

    def __str__(self) -> str:
        return self.key[:12]


class Bundle:
    """An open bundle; its archive holds the files that its manifest lists and no others."""

    def __init__(self, file: BinaryIO) -> None:
        self.archive = CanonicalZip(file)
        if next(iter(self.archive.members)) != MANIFEST:
            raise SubmissionError(
                f"the first member is not {MANIFEST}: `qbench submit` did not write this file"
            )
        manifest = self.archive.read_member(MANIFEST, MAX_BYTES_OF_FILE[MANIFEST])
        self.manifest = _parse_manifest(manifest)
        self.runs = [
            ManifestRun(run["key"], int(run["attempt"]), run["files"])
            for run in self.manifest["runs"]
        ]
        # Bundles of version 1 have no boards.
        listed_boards = self.manifest.get("boards", [])
        self.boards = {board["name"]: board for board in listed_boards}
        self._require_sorted_and_unique([board["name"] for board in listed_boards])
        self._require_listed_members()

    def read_board(self, name: str) -> bytes:
        """Return a board's sweep file; refuse one that differs from the manifest's hash."""
        member = BOARD_FILE.format(name)
        data = self.archive.read_member(member, MAX_BYTES_OF_FILE[BOARD_FILE])
        if not _matches_manifest(data, self.boards[name]):
            raise SubmissionError(f"{member} does not match its hash in {MANIFEST}")
        return data

    def read_file(self, run: ManifestRun, name: str) -> bytes | None:
        """Return a file of a run, or None if the run has no file of that name.

        A file that differs from the manifest's hash is refused.
        """
        if name not in run.files:
            return None
        data = self.archive.read_member(f"runs/{run.key}/{name}", MAX_BYTES_OF_FILE[name])
        if not _matches_manifest(data, run.files[name]):
            raise SubmissionError(f"run {run}: {name} does not match its hash in {MANIFEST}")
        return data

    def _require_sorted_and_unique(self, boards: list[str]) -> None:
        # Two names that differ only in case would be one file on some file systems.
        if boards != sorted({name.lower(): name for name in self.boards}.values()):
            raise SubmissionError(f"{MANIFEST}: the boards are not sorted by name, each once")
        keys = [run.key for run in self.runs]
        if keys != sorted(set(keys)):
            raise SubmissionError(f"{MANIFEST}: the runs are not sorted by key, each once")

    def _require_listed_members(self) -> None:
        """Refuse an archive whose members are not those of the manifest in the same order."""
        listed = [MANIFEST, *map(BOARD_FILE.format, self.boards)]
        for run in self.runs:
            listed += [f"runs/{run.key}/{name}" for name in RUN_FILES if name in run.files]
        members = list(self.archive.members)
        if members == listed:
            return
        unlisted = [name for name in members if name not in set(listed)]
        missing = [name for name in listed if name not in self.archive.members]
        if unlisted:
            problem = f"the manifest does not list {unlisted[0]}"
        elif missing:
            problem = f"{missing[0]} is missing"
        else:
            problem = "the members are in another order"
        raise SubmissionError(f"{MANIFEST} and the archive disagree: {problem}")


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle for reading; the message of every refusal begins with its path."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the `with` below closes it
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}") from None
    with file:
        try:
            yield Bundle(file)
        except SubmissionError as error:
            raise SubmissionError(f"{path}: {error}") from None


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest; there is only one way to write it."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return (text + "\n").encode()


def _parse_manifest(data: bytes) -> dict[str, Any]:
    manifest = parse_json(data, MANIFEST)
    version = manifest.get("bundle_version") if isinstance(manifest, dict) else None
    # A newer manifest may break today's schema, so the version is read first.
    if isinstance(version, int) and version > BUNDLE_VERSION:
        raise SubmissionError(
            f"a newer qbench made this bundle (bundle version {version}; "
            f"this one reads {BUNDLE_VERSION}): upgrade qbench"
        )
    require_schema(manifest, "manifest", MANIFEST)
    if encode_manifest(manifest) != data:
        raise SubmissionError(f"{MANIFEST} is not formatted as `qbench submit` formats it")
    checked: dict[str, Any] = manifest
    return checked


def _matches_manifest(data: bytes, listed: Mapping[str, Any]) -> bool:
    digest = hashlib.sha256(data).hexdigest()
    return (len(data), digest) == (listed["size"], listed["sha256"])
