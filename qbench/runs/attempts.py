"""The files of a run, which are the truth: everything else in a results folder is an index of them.

    <results>/runs/<key[:2]>/<key>/<attempt>/
        spec.json       the resolved configuration (config.RunConfig); the key is its hash
        env.json        versions, machine, commit
        curve.jsonl     one line for each logged step of the training
        checkpoint      the state to resume from, while there is no result
        export/         the packed artefact: weights.safetensors with a JSON header
        result.json     written last and atomically: its presence means that the attempt is over
        trust.json      only of a run that was merged from elsewhere: its origin and trust level
        downstream.json, downstream/    the answers of the artefact to downstream tasks, if any

Attempts are numbered from 1. `state` in result.json is `ok` or `failed` with a `reason`; an attempt
without result.json is running or lost. A number that is not finite is written as null, with its
kind (`nan`, `inf`, `-inf`) under `kinds`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.util.json_files import write_atomically
from qbench.util.redact_paths import redact_paths

KEY_PATTERN = re.compile(r"[0-9a-f]{32}")
NEW_ANSWERS_FOLDER = ".answered"


@dataclass(frozen=True)
class Attempt:
    """The folder of one attempt at a run."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.parent.name

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def merged(self) -> bool:
        """Whether the attempt was merged from a submission."""
        return (self.folder / "trust.json").exists()

    @property
    def trained_here(self) -> bool:
        """Whether the attempt was trained, or merged and then reproduced, on this machine.

        Other attempts must not decide a choice, and no run may start from them.
        """
        return not self.merged or (self.read("trust") or {}).get("level") == "reproduced"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def artefact(self) -> Path:
        return self.export / "weights.safetensors"

    @property
    def curve(self) -> Path:
        return self.folder / "curve.jsonl"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the contents of `<name>.json`, or None if the file is missing or cut short."""
        try:
            data = json.loads((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Write `<name>.json` atomically.

        Absolute paths are removed from a message, because records are sent to other people.
        """
        if data.get("message"):
            data = {**data, "message": redact_paths(str(data["message"]))}
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        write_atomically(self.folder / f"{name}.json", text)


def list_attempts(results: Path, key: str) -> list[Attempt]:
    """Return the attempts at a run, oldest first."""
    folder = results / "runs" / key[:2] / key
    if not folder.is_dir():
        return []
    numbers = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    return [Attempt(folder / str(number)) for number in numbers]


def create_attempt(results: Path, key: str) -> Attempt:
    """Create the folder of the next attempt at a run."""
    earlier = list_attempts(results, key)
    number = earlier[-1].number + 1 if earlier else 1
    attempt = Attempt(results / "runs" / key[:2] / key / str(number))
    attempt.folder.mkdir(parents=True)
    return attempt


def iterate_attempts(results: Path) -> Iterator[Attempt]:
    """Yield every attempt in a results folder, ordered by key and number."""
    root = results / "runs"
    if not root.is_dir():
        return
    for prefix in sorted(root.iterdir()):
        for folder in sorted(prefix.iterdir()) if prefix.is_dir() else ():
            if KEY_PATTERN.fullmatch(folder.name):
                yield from list_attempts(results, folder.name)


def mark_new_answers(attempt: Attempt) -> None:
    """Leave a marker file that says that a finished attempt has new downstream answers.

    The next writer of the store reads the markers, so `qbench eval` needs no lock.
    """
    folder = attempt.folder.parents[3] / NEW_ANSWERS_FOLDER
    folder.mkdir(exist_ok=True)
    # Each marker is a file of its own: deleting one that has been read cannot lose a newer one.
    (folder / f"{attempt.key}-{attempt.number}-{time.time_ns()}").touch()


def find_new_answers(results: Path) -> dict[Path, Attempt]:
    """Return the marker files that `mark_new_answers` left, each with its attempt."""
    folder = results / NEW_ANSWERS_FOLDER
    found = {}
    for marker in sorted(folder.iterdir()) if folder.is_dir() else ():
        parts = marker.name.split("-")
        if len(parts) == 3:
            key, number, _ = parts
            found[marker] = Attempt(results / "runs" / key[:2] / key / number)
    return found
