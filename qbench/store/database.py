"""The store: one DuckDB file that indexes the run folders and the boards' rosters. Only this module knows DuckDB.

The coordinator of a sweep is the only writer; a lock on the results folder says so. While it has the file open nobody else can even read it,
so readers get a snapshot, replaced in one rename. Nothing here is precious: whatever is damaged or missing is made again from the files.

    qbench.duckdb             the writer's
    qbench-snapshot.duckdb    everybody else's
    .lock                     held by the writer, with its process number in it
"""

from __future__ import annotations

import errno
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
from typing import TYPE_CHECKING, Any

import duckdb

from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt, all_attempts, announce, announced
from qbench.store import board_members
from qbench.store.file_rows import Batch, answers_of, cell_row
from qbench.store.lock import hold, release
from qbench.store.schema import ANSWERS_SINCE, MIGRATIONS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Store"]


DATABASE, SNAPSHOT = "qbench.duckdb", "qbench-snapshot.duckdb"
OLDEST_READER = "v1.5.0"
BATCH = 2000
"""Attempts in one transaction of a rebuild."""


# ---- the writer ----


class Store:
    """The store of a results folder, open for writing: a context manager."""

    def __init__(self, results: Path, anew: bool = False) -> None:
        self.results, self.path, self.anew = results, results / DATABASE, anew
        self.refused: list[str] = []
        """Folders that are not what they say, met while the store was made."""
        self.changed = True
        """Whether the snapshot is out of date."""

    def __enter__(self) -> Store:
        self.results.mkdir(parents=True, exist_ok=True)
        self.lock = hold(self.results)
        try:
            self._open()
        except BaseException:
            release(self.lock)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with suppress(duckdb.Error):
                self.connection.close()
        finally:
            release(self.lock)

    def _open(self) -> None:
        """Open and migrate. A file that is missing or no longer a database is made from the run folders."""
        if self.anew or not self.path.exists():
            return self._make()
        try:
            self.connection = _connect(self.path)
            _migrate(self.connection, self.path)
            self.known = self._known()
            return None
        except duckdb.Error as error:
            if _full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
        if hasattr(self, "connection"):
            self.connection.close()
        aside = self.path.with_name(f"{DATABASE}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.rename(aside)
        self._make()
        print(
            f"qbench: {self.path} was damaged and has been made again from the run folders; the old one is {aside.name}",
            file=sys.stderr,
        )
        return None

    def _make(self) -> None:
        """Everything there is, in a new file that takes the name when it is complete."""
        scratch = self.results / f".{DATABASE}.new"
        for file in (scratch, _wal(scratch)):
            file.unlink(missing_ok=True)
        with self._plainly():
            self.connection, self.known = _connect(scratch), set()
            _migrate(self.connection, scratch)
            self._restore()
            self.connection.close()
            _wal(self.path).unlink(missing_ok=True)
            scratch.replace(self.path)
            self.connection = _connect(self.path)

    def _restore(self) -> None:
        for chunk in _batched(all_attempts(self.results), BATCH):
            self.refused += self.ingest(chunk)
        for members in board_members.read_all(self.results):
            with self._transaction():
                self._take_board(members)
        self.connection.execute("CHECKPOINT")

    def _known(self) -> set[tuple[str, int]]:
        return {
            (str(k), int(a))
            for k, a in self.connection.execute("SELECT key, attempt FROM runs").fetchall()
        }

    def set_board(self, members: Mapping[str, Any]) -> None:
        """Write a board's roster, and take it in."""
        board_members.write(self.results, members)
        with self._transaction():
            self._take_board(members)

    def ingest(self, attempts: Iterable[Attempt]) -> list[str]:
        """Take in the finished attempts that are not known yet, all or none; returns what was refused and why."""
        batch = Batch()
        for attempt in attempts:
            if (attempt.key, attempt.number) not in self.known:
                batch.add(attempt)
        if batch.runs:
            with self._transaction():
                self._insert("runs", batch.runs)
                self._insert("curves", batch.curves)
                self._insert("downstream", batch.answers)
            self.known |= {(row["key"], row["attempt"]) for row in batch.runs}
        return batch.refused

    def hear(self) -> None:
        """Take in anew what known attempts have answered since they were taken in."""
        words = announced(self.results)
        for chunk in _batched(
            (a for a in dict.fromkeys(words.values()) if (a.key, a.number) in self.known), BATCH
        ):
            with self._transaction():
                for attempt in chunk:
                    self.connection.execute(
                        "DELETE FROM downstream WHERE key = ? AND attempt = ?",
                        [attempt.key, attempt.number],
                    )
                self._insert(
                    "downstream", [row for attempt in chunk for row in answers_of(attempt)]
                )
        for word in words:
            word.unlink(missing_ok=True)

    def forget(self, keys: Iterable[str]) -> None:
        """Runs whose folders somebody has removed, and which count their attempts from 1 when they are made again."""
        gone = [[key] for key in {key for key, _ in self.known}.intersection(keys)]
        if gone:
            with self._transaction():
                for table in ("runs", "curves", "downstream"):
                    self.connection.executemany(f"DELETE FROM {table} WHERE key = ?", gone)
            self.known = self._known()

    def set_trust(self, key: str, attempt: int, level: str) -> None:
        """What is believed of a merged run from now on."""
        with self._transaction():
            self.connection.execute(
                "UPDATE runs SET trust = ? WHERE key = ? AND attempt = ?", [level, key, attempt]
            )

    def rows(self) -> Iterator[tuple[dict[str, Any], int, list[dict[str, Any]]]]:
        """Every run as it is stored, the number of its curve's points, and its answers in the order of their tasks."""
        answers: dict[tuple[str, int], list[dict[str, Any]]] = {}
        told = list(_types(self.connection, "downstream"))
        for values in self.connection.execute(
            f"SELECT {', '.join(told)} FROM downstream ORDER BY task"
        ).fetchall():
            answers.setdefault(values[:2], []).append(dict(zip(told, values, strict=True)))
        names = list(_types(self.connection, "runs"))
        points = "(SELECT key, attempt, count(*) AS points FROM curves GROUP BY ALL)"
        cursor = self.connection.execute(
            f"SELECT {', '.join(names)}, coalesce(points, 0) FROM runs LEFT JOIN {points} USING (key, attempt)"
        )
        while row := cursor.fetchone():
            yield dict(zip(names, row, strict=False)), row[-1], answers.get(row[:2], [])

    def snapshot(self) -> None:
        """Let readers see what there is."""
        self.hear()
        if not self.changed:
            return
        with self._plainly():
            self.connection.execute("CHECKPOINT")
        scratch = self.results / f".{SNAPSHOT}.{os.getpid()}"
        try:
            shutil.copyfile(self.path, scratch)
            scratch.replace(self.results / SNAPSHOT)
        finally:
            scratch.unlink(missing_ok=True)
        self.changed = False

    def _take_board(self, members: Mapping[str, Any]) -> None:
        board, run = members["board"], self.connection.execute
        for table in ("boards", "cells", "entries"):
            run(f"DELETE FROM {table} WHERE board = ?", [board])
        plain = [members[name] for name in ("version", "title", "made", "sweep")]
        tuning = json.dumps(members["tuning"]) if members.get("tuning") else None
        names = "board, version, title, made, sweep, defaults, track, tuning"
        run(
            f"INSERT INTO boards ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [board, *plain, json.dumps(members["defaults"]), members.get("track", "fair"), tuning],
        )
        cells: list[dict[str, Any]] = []
        entries: dict[str, list[Any]] = {name: [] for name in ("board", "cell", "seed", "key")}
        for number, cell in enumerate(members["cells"]):
            words = {name: cell[name] for name in ("label", "variant", "provenance", "refusal")}
            tuned = {
                name: cell.get(name) for name in ("stage", "rung", "trial", "failure", "retired")
            }
            tuned["chosen"] = (
                json.dumps(cell["chosen"], sort_keys=True) if cell.get("chosen") else None
            )
            cells.append(
                {"board": board, "cell": number, **words, **tuned, **cell_row(cell["spec"])}
            )
            seeds = cell.get("seeds", members["seeds"])
            keys = cell["keys"] or [None] * len(seeds)
            entries["board"] += [board] * len(keys)
            entries["cell"] += [number] * len(keys)
            entries["seed"] += seeds
            entries["key"] += keys
        self._insert("cells", cells)
        self._insert("entries", entries)

    def _insert(
        self, table: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
    ) -> None:
        frame = _frame(self.connection, table, rows)
        if len(frame):
            self.connection.register("incoming", frame)
            types = {
                name: kind for name, kind in _types(self.connection, table).items() if name in frame
            }
            values = ", ".join(f"CAST({name} AS {kind})" for name, kind in types.items())
            self.connection.execute(
                f"INSERT INTO {table} ({', '.join(types)}) SELECT {values} FROM incoming"
            )
            self.connection.unregister("incoming")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._plainly():
            self.connection.execute("BEGIN")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                with suppress(duckdb.Error):
                    self.connection.execute("ROLLBACK")
                raise
        self.changed = True

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What DuckDB says, as a full disk or as one line."""
        try:
            yield
        except duckdb.Error as error:
            if _full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from error
            raise QbenchError(
                f"{self.path}: {_first_line(error)}; the runs are safe: `qbench db rebuild` makes the store again"
            ) from error


def _connect(path: Path, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        str(path),
        read_only=read_only,
        config={} if read_only else {"storage_compatibility_version": OLDEST_READER},
    )


def _migrate(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Bring the tables up to date. DDL stays out of the write-ahead log: a checkpoint follows each step."""
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER)")
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise QbenchError(
            f"{path} was made by a newer qbench (schema {version}, this one knows {len(MIGRATIONS)}): "
            f"upgrade qbench, or delete the file and run `qbench db rebuild`"
        )
    if 0 < version < ANSWERS_SINCE:
        for attempt in all_attempts(path.parent):
            if (attempt.folder / "downstream.json").exists():
                announce(attempt)
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute("BEGIN")
        connection.execute(statements)
        connection.execute("DELETE FROM schema_version")
        connection.execute("INSERT INTO schema_version VALUES (?)", [number])
        connection.execute("COMMIT")
        connection.execute("CHECKPOINT")


def _version(connection: duckdb.DuckDBPyConnection) -> int:
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _types(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    rows = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index",
        [table],
    )
    return {str(name): str(kind) for name, kind in rows.fetchall()}


def _frame(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
) -> pd.DataFrame:
    """Rows as a frame whose types are the table's: nothing is guessed from a column that happens to be empty."""
    import numpy as np
    import pandas as pd

    columns: Mapping[str, Sequence[Any]]
    columns = (
        rows
        if isinstance(rows, Mapping)
        else {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    )
    types = _types(connection, table)
    made = {}
    for name, values in columns.items():
        numeric = types[name] in ("DOUBLE", "BIGINT", "INTEGER")
        made[name] = (
            np.array(values, dtype=np.float64) if numeric else np.array(values, dtype=object)
        )
    return pd.DataFrame(made)


def _batched(things: Iterable[Attempt], size: int) -> Iterator[list[Attempt]]:
    source = iter(things)
    while chunk := list(islice(source, size)):
        yield chunk


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _full(error: Exception) -> bool:
    return any(
        words in str(error) for words in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
