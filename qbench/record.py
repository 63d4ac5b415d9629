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
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.errors import UsageError
from qbench.places import unplaced

_KEY = re.compile(r"[0-9a-f]{32}")
_BEGINNING = re.compile(r"[0-9a-f]{2,32}")
LEAST, MOST_NAMED = 6, 8
"""Letters of a key that name a run; runs that an error lists."""


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
        write_atomically(self.folder / f"{name}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")


def attempts(results: Path, key: str) -> list[Attempt]:
    """The attempts at a run, oldest first."""
    home = results / "runs" / key[:2] / key
    numbers = sorted(int(d.name) for d in home.iterdir() if d.name.isdigit()) if home.is_dir() else []
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
    return {w: Attempt(results / "runs" / name[0][:2] / name[0] / name[1]) for w, name in named.items() if len(name) == 3}


def only(results: Path, beginning: str) -> str:
    """The key of the one run whose key begins so."""
    found = _beginning(results, beginning)
    if not LEAST <= len(beginning) <= 32 or not _BEGINNING.fullmatch(beginning):
        few = "begins the keys of runs, but" if found else "is no run's key:"
        raise UsageError(f"{beginning!r} {few} it takes at least {LEAST} of a key's 32 letters, which are 0-9 and a-f, to name one")
    if not found:
        raise UsageError(f"no run's key begins with {beginning!r}; `qbench show BOARD --runs` lists the runs of a board with their keys")
    if len(found) > 1:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise UsageError(f"{beginning!r} begins {len(found)} keys, write more of it: {', '.join(found[:MOST_NAMED])}{more}")
    return found[0]


def may_begin(results: Path, word: str) -> bool:
    """Whether a word is meant to be a run's key or the beginning of one: it is as long, or there is a run that it begins."""
    return bool(_BEGINNING.fullmatch(word)) and (len(word) >= LEAST or bool(_beginning(results, word)))


def _beginning(results: Path, word: str) -> list[str]:
    """The keys that begin so."""
    if not re.fullmatch("[0-9a-f]{1,32}", word):
        return []
    return sorted(d.name for d in (results / "runs").glob(f"{word[:2]}*/{word}*") if _KEY.fullmatch(d.name))


def latest(results: Path, beginning: str) -> dict[str, Any]:
    """The files of the latest attempt at a run, which is named by its key or the beginning of it; of merged ones, the first that came."""
    tried = attempts(results, only(results, beginning))
    own = [attempt for attempt in tried if not attempt.merged]
    attempt = own[-1] if own else tried[0]
    lines = attempt.curve.read_text(encoding="utf-8").splitlines() if attempt.curve.exists() else []
    files = {name: attempt.read(name) for name in ("spec", "env", "result", "trust")}
    return {
        "key": attempt.key,
        "attempt": attempt.number,
        "attempts": [_in_short(one) for one in tried],
        "folder": str(attempt.folder),
        **files,
        "curve": [json.loads(line) for line in lines],
    }


def _in_short(attempt: Attempt) -> dict[str, Any]:
    result, trust = attempt.read("result") or {}, attempt.read("trust") or {}
    score = (result.get("scores") or {}).get("packed")
    return {"attempt": attempt.number, "state": result.get("state"), "packed": score, "trust": trust.get("level")}


def finite(numbers: Mapping[str, float]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Numbers as JSON can hold them, and the kinds of those that are not finite."""
    kinds = {name: _kind(x) for name, x in numbers.items() if not math.isfinite(x)}
    return {name: None if name in kinds else x for name, x in numbers.items()}, kinds


def _kind(x: float) -> str:
    return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"


def like_other_files(path: Path) -> None:
    """Readable for whoever may read what else is written here: safetensors makes its files for their owner alone."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    other.touch()
    shutil.copymode(other, path)
    other.unlink()


def write_atomically(path: Path, text: str | bytes) -> None:
    """The whole file or none of it: a temporary name beside it, fsync, rename."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "wb") as f:
            f.write(text.encode() if isinstance(text, str) else text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
