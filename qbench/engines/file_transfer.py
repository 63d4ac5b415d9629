"""A run's files on their way between machines that share no disk: read in pieces, written under another name, renamed when whole.

A file that is replaced while it is read is read to its end as it was. What decides that a run is over goes last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from qbench.errors import QbenchError

PIECE = 32 << 20
EARLY = ("spec.json", "env.json")
"""Sent as soon as they are there: a run with them has been begun."""
LATE = ("downstream.json", "result.json")
"""Sent behind everything that they speak of."""


@dataclass(frozen=True)
class Piece:
    """A part of a file, by its path in the run's folder; without data and not the last: the file is gone."""

    name: str
    data: bytes
    last: bool


GONE = b""


def read(folder: Path, name: str, piece: int = PIECE) -> Iterator[Piece]:
    """A file as it is now. One that is not there is nothing."""
    try:
        file = open(folder / name, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        data = file.read(piece)
        while following := file.read(piece):
            yield Piece(name, data, False)
            data = following
        yield Piece(name, data, True)


def read_all(folder: Path, names: Iterable[str] | None = None) -> Iterator[Piece]:
    for name in files(folder) if names is None else names:
        yield from read(folder, name)


def files(folder: Path) -> list[str]:
    """What a run's folder holds, in the order in which it may be believed; names that begin with a dot are being written."""
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda name: (name in LATE, name))


@dataclass
class Sender:
    """The files of a run that have changed since they were sent."""

    folder: Path
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    def know(self) -> None:
        """What is there now needs no sending."""
        self.seen = {name: self._state(name) for name in files(self.folder)}

    def beginnings(self) -> Iterator[Piece]:
        yield from self._new(EARLY)

    def checkpoint(self) -> Iterator[Piece]:
        """A new one, and behind it the curve, which has all points up to it."""
        for piece in self._new(["checkpoint"]):
            yield piece
            if piece.last:
                yield from self._new(["curve.jsonl"])

    def rest(self) -> Iterator[Piece]:
        """Everything, when the run is over."""
        there = files(self.folder)
        yield from self._new(name for name in there if name not in LATE)
        if "checkpoint" in self.seen and "checkpoint" not in there:
            yield Piece("checkpoint", GONE, False)
        yield from self._new(name for name in there if name in LATE)

    def _new(self, names: Iterable[str]) -> Iterator[Piece]:
        for name in names:
            state = self._state(name)
            if state != (0, 0) and self.seen.get(name) != state:
                self.seen[name] = state
                yield from read(self.folder, name)

    def _state(self, name: str) -> tuple[int, int]:
        try:
            stat = (self.folder / name).stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_size


@dataclass
class Receiver:
    """Takes pieces into a folder. A file that does not come to its end leaves the one that was there before."""

    folder: Path
    name: str = ""
    file: IO[bytes] | None = None

    def take(self, piece: Piece) -> None:
        path = self.folder / inside(piece.name)
        if not piece.last and piece.data == GONE:
            path.unlink(missing_ok=True)
            return
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        if self.file is None or self.name != piece.name:
            self.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self.name, self.file = piece.name, open(scratch, "wb")  # noqa: SIM115
        self.file.write(piece.data)
        if piece.last:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None
            scratch.replace(path)

    def close(self) -> None:
        """Forget a file that has not come whole."""
        if self.file is not None:
            self.file.close()
            path = self.folder / self.name
            path.with_name(f".{path.name}.{os.getpid()}").unlink(missing_ok=True)
            self.file = None


def inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise QbenchError(f"a worker sent a file by the name of {name!r}")
    return path
