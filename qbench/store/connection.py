"""Connections to the DuckDB files of a results folder, and the version of their tables.

Only this package knows DuckDB.

    qbench.duckdb             the database, which only the writer opens
    qbench-snapshot.duckdb    a copy, which all readers open
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from qbench.errors import QbenchError
from qbench.runs.attempts import iterate_attempts, mark_new_answers
from qbench.store import schema

if TYPE_CHECKING:
    import pandas as pd

DATABASE, SNAPSHOT = "qbench.duckdb", "qbench-snapshot.duckdb"
OLDEST_READER = "v1.5.0"
"""The oldest release of DuckDB that can read the files."""


def connect(path: Path, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    # The storage version is a property of the file: it can only be set when writing.
    if read_only:
        return duckdb.connect(str(path), read_only=True)
    return duckdb.connect(str(path), config={"storage_compatibility_version": OLDEST_READER})


def migrate(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Bring the tables of a database up to the present version."""
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER)")
    version, latest = read_version(connection), len(schema.MIGRATIONS)
    if version > latest:
        raise QbenchError(
            f"{path} was made by a newer qbench (schema {version}, this one knows {latest}): "
            f"upgrade qbench, or delete the file and run `qbench db rebuild`"
        )
    if 0 < version < schema.FIRST_VERSION_WITH_ANSWERS:
        _mark_all_answers(path.parent)
    for number, statements in enumerate(schema.MIGRATIONS[version:], version + 1):
        connection.execute("BEGIN")
        connection.execute(statements)
        connection.execute("DELETE FROM schema_version")
        connection.execute("INSERT INTO schema_version VALUES (?)", [number])
        connection.execute("COMMIT")
        # A checkpoint after each step keeps changes of tables out of the write-ahead log.
        connection.execute("CHECKPOINT")


def _mark_all_answers(results: Path) -> None:
    """Mark all answers as new: a store of this version has never ingested any."""
    for attempt in iterate_attempts(results):
        if (attempt.folder / "downstream.json").exists():
            mark_new_answers(attempt)


def read_version(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the version of a database's tables; 0 before the first migration."""
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def read_column_types(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """Return the SQL type of each column of a table, in the order of the columns."""
    rows = connection.execute(
        "SELECT column_name, data_type FROM duckdb_columns()"
        " WHERE table_name = ? ORDER BY column_index",
        [table],
    )
    return {str(name): str(kind) for name, kind in rows.fetchall()}


def insert_rows(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
) -> None:
    """Insert rows, given as a list of rows or as columns by name."""
    columns: Mapping[str, Sequence[Any]]
    if isinstance(rows, Mapping):
        columns = rows
    else:
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    all_types = read_column_types(connection, table)
    types = {name: kind for name, kind in all_types.items() if name in columns}
    frame = _make_frame(columns, types)
    if len(frame):
        # DuckDB reads a registered frame column by column, much faster than row by row.
        connection.register("incoming", frame)
        values = ", ".join(f"CAST({name} AS {kind})" for name, kind in types.items())
        connection.execute(
            f"INSERT INTO {table} ({', '.join(types)}) SELECT {values} FROM incoming"
        )
        connection.unregister("incoming")


def _make_frame(columns: Mapping[str, Sequence[Any]], types: Mapping[str, str]) -> pd.DataFrame:
    """Return columns as a frame with the types of the table.

    pandas must not infer the types: it would do so wrongly for a column that happens to be empty.
    """
    import numpy as np
    import pandas as pd

    made = {}
    for name, values in columns.items():
        # float64 holds None as nan, which DuckDB casts to NULL in integer columns as well.
        numeric = types[name] in ("DOUBLE", "BIGINT", "INTEGER")
        made[name] = np.array(values, dtype=np.float64 if numeric else object)
    return pd.DataFrame(made)


def log_file(path: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return path.with_name(path.name + ".wal")


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn an error of DuckDB into an OSError if the disk is full, else into one line."""
    try:
        yield
    except duckdb.Error as error:
        raise_if_disk_full(error, path)
        raise QbenchError(
            f"{path}: {first_line(error)}; "
            "the runs are safe: `qbench db rebuild` makes the store again"
        ) from error


def raise_if_disk_full(error: Exception, path: Path) -> None:
    """Raise an OSError that names the file if DuckDB failed because the disk or a quota is full."""
    # DuckDB has no code for this: only the system's message tells.
    if any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
