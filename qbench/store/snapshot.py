"""The read-only copy that viewers open."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import duckdb

from qbench.errors import LockedError, QbenchError
from qbench.runs.attempts import announced
from qbench.store.database import (
    DATABASE,
    SNAPSHOT,
    Store,
    _connect,
    _first_line,
    _migrate,
    _version,
    _wal,
)
from qbench.store.schema import MIGRATIONS

__all__ = ["view"]


# ---- readers ----


@contextmanager
def view(results: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The store as it was at the latest snapshot, to read. One that is missing, damaged or behind is made anew if nobody is writing."""
    if not (results / "runs").is_dir() and not (results / "boards").is_dir():
        raise QbenchError(
            f"{results}: no runs here yet; `qbench sweep` makes some, --results names another folder"
        )
    if _behind(results):
        _catch_up(results)
    try:
        connection = _connect(results / SNAPSHOT, read_only=True)
        version = _version(connection)
    except duckdb.Error:
        (results / SNAPSHOT).unlink(missing_ok=True)
        _catch_up(results)
        connection = _connect(results / SNAPSHOT, read_only=True)
        version = _version(connection)
    with ExitStack() as stack:
        if version < len(MIGRATIONS):
            connection.close()
            connection = _newer(results, stack)
        stack.enter_context(closing(connection))
        if version > len(MIGRATIONS):
            raise QbenchError(
                f"{results / SNAPSHOT} was made by a newer qbench (schema {version}): upgrade qbench"
            )
        try:
            yield connection
        except duckdb.Error as error:
            raise QbenchError(
                f"{results / SNAPSHOT}: {_first_line(error)}; run `qbench db rebuild`"
            ) from error


def _newer(results: Path, stack: ExitStack) -> duckdb.DuckDBPyConnection:
    """The snapshot of an older qbench, brought up to date; where that cannot be written, a copy."""
    with suppress(OSError):
        _catch_up(results)
    connection = _connect(results / SNAPSHOT, read_only=True)
    if _version(connection) == len(MIGRATIONS):
        return connection
    connection.close()
    copy = (
        Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbench-snapshot-"))) / SNAPSHOT
    )
    shutil.copyfile(results / SNAPSHOT, copy)
    connection = _connect(copy)
    _migrate(connection, copy)
    return connection


def _behind(results: Path) -> bool:
    """Whether the writer left without a snapshot of its last words, or runs have answered something since."""
    snapshot = results / SNAPSHOT
    if not snapshot.exists() or announced(results):
        return True
    made = snapshot.stat().st_mtime_ns
    return any(
        f.exists() and f.stat().st_mtime_ns > made and f.stat().st_size
        for f in (results / DATABASE, _wal(results / DATABASE))
    )


def _catch_up(results: Path) -> None:
    """A fresh snapshot. While somebody writes, theirs must do, and theirs comes within seconds."""
    try:
        with Store(results) as store:
            store.snapshot()
    except LockedError:
        if not (results / SNAPSHOT).exists():
            raise
