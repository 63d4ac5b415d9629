"""Transfer of a run's files between machines that share no disk.

A file is read in parts, written under a temporary name, and renamed when it is complete, so that a
reader sees a whole file or none. If a file is replaced while it is read, the old version is read to
its end. The files that say that a run is over are sent last: when they arrive, the rest is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from qbench.errors import QbenchError

PART_BYTES = 32 << 20
FIRST_FILES = ("spec.json", "env.json")
"""Sent as soon as they exist. They say that a run has begun."""
LAST_FILES = ("downstream.json", "result.json")
"""Sent after all files that they refer to."""
NO_DATA = b""
"""The data of a part that says that its file was deleted."""


@dataclass(frozen=True)
class FilePart:
    """A part of a file, whose name is its path in the run's folder.

    A part without data that is not the last one means that the file was deleted.
    """

    name: str
    data: bytes
    last: bool


def read_parts(folder: Path, name: str, part_bytes: int = PART_BYTES) -> Iterator[FilePart]:
    """Yield the parts of a file. A file that does not exist has no parts."""
    # Files are replaced by renaming, and an open file keeps its content then. So all parts belong
    # to one version, however long the transfer takes.
    try:
        file = open(folder / name, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    with file:
        # One part is read ahead, to know which part is the last. An empty file has one empty part.
        data = file.read(part_bytes)
        while following := file.read(part_bytes):
            yield FilePart(name, data, False)
            data = following
        yield FilePart(name, data, True)


def read_all_parts(folder: Path, names: Iterable[str] | None = None) -> Iterator[FilePart]:
    """Yield the parts of the named files, or of all files of a run's folder."""
    for name in list_files(folder) if names is None else names:
        yield from read_parts(folder, name)


def list_files(folder: Path) -> list[str]:
    """Return the names of a run's files in the order in which they must be sent."""
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        # A name that begins with a dot belongs to a file that is being written.
        if path.is_file() and not path.name.startswith(".")
    ]
    return sorted(names, key=lambda name: (name in LAST_FILES, name))


@dataclass
class FileSender:
    """Yields the files of a run that have changed since they were last sent."""

    folder: Path
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The version of each file that was sent."""

    def mark_all_as_sent(self) -> None:
        """Treat all files that exist now as sent."""
        self.versions = {name: self._read_version(name) for name in list_files(self.folder)}

    def send_first_files(self) -> Iterator[FilePart]:
        """Yield the files that say that the run has begun."""
        yield from self._send_changed(FIRST_FILES)

    def send_checkpoint(self) -> Iterator[FilePart]:
        """Yield the checkpoint if it is new, and then the curve.

        The curve follows because it is written first: at this moment it has all points up to the
        checkpoint, so whoever resumes from the checkpoint has a complete curve.
        """
        for part in self._send_changed(["checkpoint"]):
            yield part
            if part.last:
                yield from self._send_changed(["curve.jsonl"])

    def send_remaining(self) -> Iterator[FilePart]:
        """Yield all that has not been sent when the run is over, and the checkpoint's deletion."""
        names = list_files(self.folder)
        yield from self._send_changed(name for name in names if name not in LAST_FILES)
        # A finished run has no checkpoint. It is deleted there before the result arrives.
        if "checkpoint" in self.versions and "checkpoint" not in names:
            yield FilePart("checkpoint", NO_DATA, False)
        yield from self._send_changed(name for name in names if name in LAST_FILES)

    def _send_changed(self, names: Iterable[str]) -> Iterator[FilePart]:
        for name in names:
            version = self._read_version(name)
            if version != (0, 0) and self.versions.get(name) != version:
                # The version is noted before the file is read. A file that is replaced in between
                # is sent once more, which is better than not at all.
                self.versions[name] = version
                yield from read_parts(self.folder, name)

    def _read_version(self, name: str) -> tuple[int, int]:
        """Return the time and size of a file, or zeros if there is none."""
        try:
            stat = (self.folder / name).stat()
        except OSError:
            return 0, 0
        return stat.st_mtime_ns, stat.st_size


@dataclass
class FileReceiver:
    """Writes parts of files into a folder.

    The parts of a file must arrive one after the other. A file that never becomes complete leaves
    the version that was there before.
    """

    folder: Path
    name: str = ""
    file: IO[bytes] | None = None

    def write_part(self, part: FilePart) -> None:
        """Write a part to the temporary file, and put the file in its place after the last part."""
        path = self.folder / check_relative_path(part.name)
        if not part.last and part.data == NO_DATA:
            path.unlink(missing_ok=True)
            return
        temporary = temporary_path(path)
        if self.file is None or self.name != part.name:
            self.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self.name, self.file = part.name, open(temporary, "wb")  # noqa: SIM115
        self.file.write(part.data)
        if part.last:
            # The data must be on the disk before the name is. Otherwise a power failure could leave
            # an empty file under the final name.
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None
            temporary.replace(path)

    def close(self) -> None:
        """Delete the temporary file of a file that is not complete."""
        if self.file is not None:
            self.file.close()
            temporary_path(self.folder / self.name).unlink(missing_ok=True)
            self.file = None


def temporary_path(path: Path) -> Path:
    """Return the name under which a file is written. `list_files` skips such names."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def check_relative_path(name: str) -> PurePosixPath:
    """Return a file's name as a path, or raise QbenchError if it leads out of the run's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise QbenchError(
            f"a worker sent a file with the name {name!r}, which is not a path in the run's folder"
        )
    return path
