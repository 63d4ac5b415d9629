"""The store: one DuckDB file that indexes the run folders and the boards' files.

The coordinator of a sweep is the only writer, and holds a lock on the results folder. While it has
the file open no other process can even read it, so readers open a snapshot, which the writer
replaces atomically. Nothing in the store is precious: what is damaged or missing is rebuilt from
the files.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from qbench.runs.attempts import Attempt, find_new_answers, iterate_attempts
from qbench.store.board_members import read_all_board_members, save_board_members
from qbench.store.connection import (
    DATABASE,
    SNAPSHOT,
    connect,
    insert_rows,
    log_file,
    migrate,
    raise_if_disk_full,
    read_column_types,
    translate_errors,
)
from qbench.store.file_rows import IncomingRows, make_answer_rows, make_board_rows
from qbench.store.lock import acquire_lock, release_lock

__all__ = ["Store", "StoredRun"]


ATTEMPTS_PER_TRANSACTION = 2000
StoredRun = tuple[dict[str, Any], int, list[dict[str, Any]]]
"""A row of the table `runs`, the number of points of its curve, and its downstream answers."""


class Store:
    """The store of a results folder, open for writing; a context manager.

    Args:
        results: The results folder. It is created if it does not exist.
        rebuild: Whether to rebuild the database from the files, even if there is one.
    """

    def __init__(self, results: Path, rebuild: bool = False) -> None:
        self.results, self.path, self.rebuild = results, results / DATABASE, rebuild
        self.known_attempts: set[tuple[str, int]] = set()
        """Key and number of every attempt in the store."""
        self.refused: list[str] = []
        """Why each folder was refused whose files contradict each other, after a rebuild."""
        self.snapshot_is_stale = True

    def __enter__(self) -> Store:
        self.results.mkdir(parents=True, exist_ok=True)
        self.lock = acquire_lock(self.results)
        try:
            self._open_database()
        except BaseException:
            release_lock(self.lock)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whatever closing does, the lock must be released.
        try:
            with suppress(duckdb.Error):
                self.connection.close()
        finally:
            release_lock(self.lock)

    # ---- writing ----

    def ingest_attempts(self, attempts: Iterable[Attempt]) -> list[str]:
        """Add finished attempts that are not in the store yet, all of them or none.

        Returns:
            Why each attempt was refused whose files contradict each other.
        """
        incoming = IncomingRows()
        for attempt in attempts:
            if (attempt.key, attempt.number) not in self.known_attempts:
                incoming.add_attempt(attempt)
        if incoming.runs:
            with self._open_transaction():
                self._insert_rows("runs", incoming.runs)
                self._insert_rows("curves", incoming.curves)
                self._insert_rows("downstream", incoming.answers)
            self.known_attempts |= {(row["key"], row["attempt"]) for row in incoming.runs}
        return incoming.refused

    def refresh_answers(self) -> None:
        """Replace the downstream answers of attempts that have new ones."""
        markers = find_new_answers(self.results)
        # An attempt that is not in the store brings its answers when it is ingested.
        attempts = [
            attempt
            for attempt in dict.fromkeys(markers.values())
            if (attempt.key, attempt.number) in self.known_attempts
        ]
        for batch in _split_into_batches(attempts, ATTEMPTS_PER_TRANSACTION):
            with self._open_transaction():
                for attempt in batch:
                    self.connection.execute(
                        "DELETE FROM downstream WHERE key = ? AND attempt = ?",
                        [attempt.key, attempt.number],
                    )
                rows = [row for attempt in batch for row in make_answer_rows(attempt)]
                self._insert_rows("downstream", rows)
        # A marker is deleted only after its answers are committed: a crash loses none of them.
        for marker in markers:
            marker.unlink(missing_ok=True)

    def save_board(self, members: Mapping[str, Any]) -> None:
        """Write the file with a board's members, and replace the board in the store."""
        save_board_members(self.results, members)
        with self._open_transaction():
            self._replace_board(members)

    def delete_runs(self, keys: Iterable[str]) -> None:
        """Delete runs whose folders have been removed.

        A run that is trained again counts its attempts from 1, so the old rows must go first.
        """
        known = {key for key, _ in self.known_attempts}
        parameters = [[key] for key in known.intersection(keys)]
        if parameters:
            with self._open_transaction():
                for table in ("runs", "curves", "downstream"):
                    self.connection.executemany(f"DELETE FROM {table} WHERE key = ?", parameters)
            self.known_attempts = self._read_known_attempts()

    def set_trust(self, key: str, attempt: int, level: str) -> None:
        """Set the trust level of a merged run."""
        with self._open_transaction():
            self.connection.execute(
                "UPDATE runs SET trust = ? WHERE key = ? AND attempt = ?", [level, key, attempt]
            )

    def write_snapshot(self) -> None:
        """Replace the snapshot, so that readers see the present state of the store."""
        self.refresh_answers()
        if not self.snapshot_is_stale:
            return
        # Only a checkpoint moves the write-ahead log into the file that is copied.
        with translate_errors(self.path):
            self.connection.execute("CHECKPOINT")
        # The rename is atomic: a reader opens either the old snapshot or the new one.
        scratch = self.results / f".{SNAPSHOT}.{os.getpid()}"
        try:
            shutil.copyfile(self.path, scratch)
            scratch.replace(self.results / SNAPSHOT)
        finally:
            scratch.unlink(missing_ok=True)
        self.snapshot_is_stale = False

    # ---- reading ----

    def read_runs(self) -> Iterator[StoredRun]:
        """Yield every run as it is stored; its answers are in the order of their tasks."""
        answers: dict[tuple[str, int], list[dict[str, Any]]] = {}
        names = list(read_column_types(self.connection, "downstream"))
        query = f"SELECT {', '.join(names)} FROM downstream ORDER BY task"
        for values in self.connection.execute(query).fetchall():
            answers.setdefault(values[:2], []).append(dict(zip(names, values, strict=True)))
        names = list(read_column_types(self.connection, "runs"))
        points = "(SELECT key, attempt, count(*) AS points FROM curves GROUP BY ALL)"
        cursor = self.connection.execute(
            f"SELECT {', '.join(names)}, coalesce(points, 0)"
            f" FROM runs LEFT JOIN {points} USING (key, attempt)"
        )
        while row := cursor.fetchone():
            # Key and attempt are the first two columns, the number of points is the last.
            yield dict(zip(names, row, strict=False)), row[-1], answers.get(row[:2], [])

    def _read_known_attempts(self) -> set[tuple[str, int]]:
        rows = self.connection.execute("SELECT key, attempt FROM runs").fetchall()
        return {(str(key), int(attempt)) for key, attempt in rows}

    # ---- opening ----

    def _open_database(self) -> None:
        """Open and migrate the database; rebuild it if it is missing or damaged."""
        if self.rebuild or not self.path.exists():
            return self._rebuild_from_files()
        try:
            self.connection = connect(self.path)
            migrate(self.connection, self.path)
            self.known_attempts = self._read_known_attempts()
            return None
        except duckdb.Error as error:
            raise_if_disk_full(error, self.path)
        # The error may have come from connecting, and then there is nothing to close.
        if hasattr(self, "connection"):
            self.connection.close()
        # The damaged file is kept, in case somebody wants to know what happened to it.
        aside = self.path.with_name(f"{DATABASE}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.rename(aside)
        self._rebuild_from_files()
        print(
            f"qbench: {self.path} was damaged and has been made again from the run folders; "
            f"the old one is {aside.name}",
            file=sys.stderr,
        )
        return None

    def _rebuild_from_files(self) -> None:
        """Build a new database from the files, then put it in the place of the old one."""
        scratch = self.results / f".{DATABASE}.new"
        for file in (scratch, log_file(scratch)):
            file.unlink(missing_ok=True)
        with translate_errors(self.path):
            self.connection = connect(scratch)
            self.known_attempts = set()
            migrate(self.connection, scratch)
            self._ingest_all_files()
            self.connection.close()
            # DuckDB would replay an old log into the new file, so the log goes before the rename.
            log_file(self.path).unlink(missing_ok=True)
            scratch.replace(self.path)
            self.connection = connect(self.path)

    def _ingest_all_files(self) -> None:
        attempts = iterate_attempts(self.results)
        for batch in _split_into_batches(attempts, ATTEMPTS_PER_TRANSACTION):
            self.refused += self.ingest_attempts(batch)
        for members in read_all_board_members(self.results):
            with self._open_transaction():
                self._replace_board(members)
        self.connection.execute("CHECKPOINT")

    # ---- inside a transaction ----

    @contextmanager
    def _open_transaction(self) -> Iterator[None]:
        """Commit what the block has changed, or roll it back if the block fails."""
        with translate_errors(self.path):
            self.connection.execute("BEGIN")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                # DuckDB rolls back by itself after some errors, and then refuses to do so again.
                with suppress(duckdb.Error):
                    self.connection.execute("ROLLBACK")
                raise
        self.snapshot_is_stale = True

    def _replace_board(self, members: Mapping[str, Any]) -> None:
        for table in ("boards", "cells", "entries"):
            self.connection.execute(f"DELETE FROM {table} WHERE board = ?", [members["board"]])
        columns = ("board", "version", "title", "made", "sweep")
        values = [members[name] for name in columns]
        defaults = json.dumps(members["defaults"])
        tuning = json.dumps(members["tuning"]) if members.get("tuning") else None
        self.connection.execute(
            f"INSERT INTO boards ({', '.join(columns)}, defaults, track, tuning)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [*values, defaults, members.get("track", "fair"), tuning],
        )
        cells, entries = make_board_rows(members)
        self._insert_rows("cells", cells)
        self._insert_rows("entries", entries)

    def _insert_rows(
        self, table: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
    ) -> None:
        insert_rows(self.connection, table, rows)


def _split_into_batches(attempts: Iterable[Attempt], size: int) -> Iterator[list[Attempt]]:
    source = iter(attempts)
    while batch := list(islice(source, size)):
        yield batch
