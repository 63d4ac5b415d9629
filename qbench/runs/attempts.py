"""The files of a run, which are the truth; everything else is an index of them.

    <results>/runs/<key[:2]>/<key>/<attempt>/
        spec.json       the resolved configuration (config.RunConfig), its key is its hash
        env.json        versions, machine, commit
        curve.jsonl     a line now and then while training
        checkpoint      where to go on from, while there is no result
        export/         the packed artefact: weights.safetensors with a JSON header
        result.json     written last, in one rename: its presence means that the attempt is over
        trust.json      where somebody else's run came from, and what is believed of it; an own run has none
        downstream.json, downstream/    what its artefact answered since, if it was asked (`evaluate`)

An attempt is a number from 1. `state` in result.json is `ok` or `failed` with a `reason`; an attempt without result.json is
running or lost. A number that is not finite is written as null, with its kind (`nan`, `inf`, `-inf`) under `kinds`.
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
from qbench.util.redact_paths import unplaced

_KEY = re.compile(r"[0-9a-f]{32}")


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
        """Whether it was taken from a submission."""
        return (self.folder / "trust.json").exists()

    @property
    def believed(self) -> bool:
        """Whether it was trained here: it is our own, or was merged and then reproduced. Nothing may be chosen, or go on, by another's word."""
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
        """`spec`, `env`, `result` or `trust`; None where the file is missing or cut short."""
        try:
            data = json.loads((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """As JSON. A message loses the places of this machine: records travel."""
        if data.get("message"):
            data = {**data, "message": unplaced(str(data["message"]))}
        write_atomically(
            self.folder / f"{name}.json", json.dumps(data, indent=1, allow_nan=False) + "\n"
        )


def attempts(results: Path, key: str) -> list[Attempt]:
    """The attempts at a run, oldest first."""
    home = results / "runs" / key[:2] / key
    numbers = (
        sorted(int(d.name) for d in home.iterdir() if d.name.isdigit()) if home.is_dir() else []
    )
    return [Attempt(home / str(n)) for n in numbers]


def new_attempt(results: Path, key: str) -> Attempt:
    done = attempts(results, key)
    attempt = Attempt(results / "runs" / key[:2] / key / str(done[-1].number + 1 if done else 1))
    attempt.folder.mkdir(parents=True)
    return attempt


def all_attempts(results: Path) -> Iterator[Attempt]:
    """Every attempt in a results folder, in the order of keys."""
    root = results / "runs"
    if not root.is_dir():
        return
    for shelf in sorted(root.iterdir()):
        for home in sorted(shelf.iterdir()) if shelf.is_dir() else ():
            if _KEY.fullmatch(home.name):
                yield from attempts(results, home.name)


ANSWERED = ".answered"


def announce(attempt: Attempt) -> None:
    """Leave word that a finished attempt has new answers, for whoever writes to the store next: asking needs no lock. Each word is a file of
    its own, so that none is lost while another is heard."""
    home = attempt.folder.parents[3] / ANSWERED
    home.mkdir(exist_ok=True)
    (home / f"{attempt.key}-{attempt.number}-{time.time_ns()}").touch()


def announced(results: Path) -> dict[Path, Attempt]:
    """The words that were left, with the attempts that they are of."""
    words = sorted((results / ANSWERED).iterdir()) if (results / ANSWERED).is_dir() else []
    named = {word: word.name.split("-") for word in words}
    return {
        w: Attempt(results / "runs" / name[0][:2] / name[0] / name[1])
        for w, name in named.items()
        if len(name) == 3
    }
