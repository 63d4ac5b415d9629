"""The read-only copy of the store that viewers open."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import duckdb

from qbench.errors import LockedError, QbenchError
from qbench.runs.attempts import find_new_answers
from qbench.store import schema
from qbench.store.connection import (
    DATABASE,
    SNAPSHOT,
    connect,
    first_line,
    log_file,
    migrate,
    read_version,
)
from qbench.store.database import Store

__all__ = ["open_snapshot"]


@contextmanager
def open_snapshot(results: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the latest snapshot of the store for reading.

    A snapshot that is missing, damaged or out of date is made again, unless another process is
    writing to the store.
    """
    if not (results / "runs").is_dir() and not (results / "boards").is_dir():
        raise QbenchError(
            f"{results}: no runs here yet; `qbench sweep` makes some, "
            "--results names another folder"
        )
    if _is_stale(results):
        _update_snapshot(results)
    file, latest = results / SNAPSHOT, len(schema.MIGRATIONS)
    connection, version = _connect_or_replace(results)
    with ExitStack() as stack:
        if version < latest:
            connection.close()
            connection = _open_migrated(results, stack)
        stack.enter_context(closing(connection))
        if version > latest:
            raise QbenchError(
                f"{file} was made by a newer qbench (schema {version}): upgrade qbench"
            )
        try:
            yield connection
        except duckdb.Error as error:
            raise QbenchError(f"{file}: {first_line(error)}; run `qbench db rebuild`") from error


def _connect_or_replace(results: Path) -> tuple[duckdb.DuckDBPyConnection, int]:
    """Open the snapshot and read its version; if it is damaged, replace it first."""
    file = results / SNAPSHOT
    try:
        connection = connect(file, read_only=True)
        return connection, read_version(connection)
    except duckdb.Error:
        file.unlink(missing_ok=True)
        _update_snapshot(results)
        connection = connect(file, read_only=True)
        return connection, read_version(connection)


def _open_migrated(results: Path, stack: ExitStack) -> duckdb.DuckDBPyConnection:
    """Open the snapshot of an older qbench with its tables brought up to date.

    If the folder is locked or cannot be written, a temporary copy is migrated instead; `stack`
    deletes it.
    """
    # A LockedError does not get here: `_update_snapshot` accepts the writer's snapshot as it is.
    with suppress(OSError):
        _update_snapshot(results)
    connection = connect(results / SNAPSHOT, read_only=True)
    if read_version(connection) == len(schema.MIGRATIONS):
        return connection
    connection.close()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qbench-snapshot-"))
    copy = Path(folder) / SNAPSHOT
    shutil.copyfile(results / SNAPSHOT, copy)
    connection = connect(copy)
    migrate(connection, copy)
    return connection


def _is_stale(results: Path) -> bool:
    """Return whether the store or the runs' answers have changed since the snapshot was made."""
    snapshot = results / SNAPSHOT
    if not snapshot.exists() or find_new_answers(results):
        return True
    made = snapshot.stat().st_mtime_ns
    # A writer that was killed leaves a database or a log that is newer than its last snapshot.
    files = (results / DATABASE, log_file(results / DATABASE))
    stats = [file.stat() for file in files if file.exists()]
    return any(stat.st_mtime_ns > made and stat.st_size for stat in stats)


def _update_snapshot(results: Path) -> None:
    """Write a fresh snapshot. While another process writes, its latest snapshot is used instead."""
    try:
        with Store(results) as store:
            store.write_snapshot()
    except LockedError:
        # A sweep writes a new snapshot every few seconds, so an existing one is recent enough.
        if not (results / SNAPSHOT).exists():
            raise
