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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qbench.errors import UsageError
from qbench.submissions import canonical_zip, strict_json
from qbench.submissions.strict_json import Refused

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


def spell(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest."""
    return (
        json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"
    ).encode()


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
        self.archive = canonical_zip.Archive(file)
        if next(iter(self.archive.members)) != MANIFEST:
            raise Refused(f"its first member is not {MANIFEST}: not a bundle of `qbench submit`")
        self.manifest = _manifest(self.archive.read(MANIFEST, MOST[MANIFEST]))
        self.runs = [
            Entry(run["key"], int(run["attempt"]), run["files"]) for run in self.manifest["runs"]
        ]
        self.boards = {board["name"]: board for board in self.manifest.get("boards", [])}
        if [board["name"] for board in self.manifest.get("boards", [])] != sorted(
            {name.lower(): name for name in self.boards}.values()
        ):
            raise Refused(f"{MANIFEST}: the boards are not in the order of their names, each once")
        keys = [run.key for run in self.runs]
        if keys != sorted(set(keys)):
            raise Refused(f"{MANIFEST}: the runs are not in the order of their keys, each once")
        listed = [MANIFEST, *map(BOARD.format, self.boards)]
        listed += [
            f"runs/{run.key}/{name}" for run in self.runs for name in FILES if name in run.files
        ]
        if (names := list(self.archive.members)) != listed:
            more, less = (
                [n for n in names if n not in set(listed)],
                [n for n in listed if n not in self.archive.members],
            )
            wrong = (
                f"{more[0]} is not listed"
                if more
                else f"{less[0]} is missing"
                if less
                else "the members are not in their order"
            )
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
    manifest = strict_json.loads(data, MANIFEST)
    version = manifest.get("bundle_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > BUNDLE_VERSION:
        raise Refused(
            f"made by a newer qbench (bundle version {version}; this one reads {BUNDLE_VERSION}): upgrade qbench"
        )
    strict_json.conforms(manifest, "manifest", MANIFEST)
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
