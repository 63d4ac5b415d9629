"""Results as pandas, for notebooks and for boards.

found = qbench.results("results")
found.runs                      # a row for each finished attempt
found.curves                    # a row for each point of every curve; found.curve("3fa9c1") of one run
found.cells("quick")            # a row for each cell of a board: mean, interval, gap recovered
found.board("quick")            # the board itself, as `qbench show` prints it
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.errors import QbenchError, UsageError, unknown
from qbench.schema import IDENTITY
from qbench.store import view
from qbench.table import NUMBERS, TEXT, Table

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

    from qbench.board import Board
    from qbench.compare import Comparison

ASKED = "entries e JOIN cells c USING (board, cell)"
LATEST = "ORDER BY made DESC, board"
OF_CELLS = {"label", "provenance", *(column.name for column in IDENTITY)}
"""What a cell says of its runs."""


def results(folder: str | Path = "results") -> Results:
    """The runs, curves and boards of a results folder."""
    return Results(Path(folder))


@dataclass(frozen=True)
class Results:
    """What a results folder holds, read when it is asked for."""

    folder: Path

    def query(self, sql: str, values: list[Any] | None = None) -> pd.DataFrame:
        """Any question to the store, in DuckDB's SQL; the tables are in `qbench/schema.py`."""
        with view(self.folder) as connection:
            frame: pd.DataFrame = connection.execute(sql, values or []).df()
            return frame

    @cached_property
    def runs(self) -> pd.DataFrame:
        return self.query("SELECT * FROM runs ORDER BY key, attempt")

    @cached_property
    def curves(self) -> pd.DataFrame:
        return self.query("SELECT * FROM curves ORDER BY key, attempt, step")

    def curve(self, run: str) -> pd.DataFrame:
        """The curve of the latest attempt at a run, named by its key or the beginning of it."""
        found = self.query("SELECT * FROM curves WHERE starts_with(key, ?) ORDER BY key, attempt, step", [run])
        if found["key"].nunique() != 1:
            raise UsageError(f"{run!r} begins the keys of {found['key'].nunique()} runs with a curve")
        latest: pd.DataFrame = found.loc[found["attempt"] == found["attempt"].max()]
        return latest

    @cached_property
    def boards(self) -> pd.DataFrame:
        """The boards that were swept here, the latest first."""
        return self.query(f"SELECT board, version, title, made FROM boards {LATEST}")

    def cells(self, board: str | None = None) -> pd.DataFrame:
        """A row for each cell of a board: mean, interval, gap recovered, bits, cost."""
        import pandas as pd

        from qbench.plaintext import to_csv

        return pd.read_csv(io.StringIO(to_csv(self.board(board))), keep_default_na=False, na_values=[""])

    def board(self, name: str | None = None) -> Board:
        """A board by name, or the latest."""
        from qbench.leaderboard import build

        title, runs, planned, defaults, track = self._parts(name)
        return build(runs, planned=planned, defaults=defaults, title=title, track=track)

    def compare(self, one: str, other: str, board: str | None = None) -> list[Comparison]:
        """Two entrants of a board by their labels, section by section, paired by seed."""
        from qbench.compare import compare
        from qbench.leaderboard import section_makers

        _, runs, planned, defaults, track = self._parts(board)
        return compare(section_makers(runs, planned, defaults, track=track)[1], one, other)

    def _parts(self, name: str | None) -> tuple[str, Table, Table, dict[str, Any], str]:
        """What a board is made of: its title, its runs, what it lacks, the default parameters and its track."""
        with view(self.folder) as connection:
            name = self._known(connection, name)
            title, defaults, track = connection.execute("SELECT title, defaults, track FROM boards WHERE board = ?", [name]).fetchall()[0]
            return title or name, finished(connection, name), missing(connection, name), json.loads(defaults), track

    def board_name(self, name: str | None) -> str:
        """The name of a board that is known, or of the latest."""
        with view(self.folder) as connection:
            return self._known(connection, name)

    def _known(self, connection: DuckDBPyConnection, name: str | None) -> str:
        known = [row[0] for row in connection.execute(f"SELECT board FROM boards {LATEST}").fetchall()]
        if not known:
            raise QbenchError(f"{self.folder}: no board was swept here; `qbench sweep FILE` makes one")
        if name is None:
            return str(known[0])
        if name not in known:
            raise unknown("board", name, known, str(self.folder))
        return name

    def board_runs(self, name: str) -> pd.DataFrame:
        """The finished attempts at a board's runs, and what the board calls them."""
        return self.query(f"SELECT r.*, c.label, c.provenance FROM {ASKED} JOIN runs r USING (key) WHERE e.board = ?", [name])


# ---- a board's runs ----


def finished(connection: DuckDBPyConnection, board: str) -> Table:
    """The finished attempts at a board's runs."""
    text = {name: f"{'c' if name in OF_CELLS else 'r'}.{name}" for name in TEXT}
    return _fetch(connection, board, f"{ASKED} JOIN runs r USING (key)", "r.key", text, {name: f"r.{name}" for name in NUMBERS})


def missing(connection: DuckDBPyConnection, board: str) -> Table:
    """What a board asks for and nobody has finished, and what was skipped and why."""
    text = {name: f"c.{name}" for name in TEXT if name in OF_CELLS} | {"message": "c.refusal"}
    numbers = {name: f"c.{name}" for name in NUMBERS if name in OF_CELLS} | {"seed": "e.seed"}
    found = _fetch(connection, board, f"{ASKED} ANTI JOIN runs r USING (key)", "e.key", text, numbers)
    words = {**found.words, "state": ["", "planned", "skipped"]}
    return Table({**found.columns, "state": np.where(found.columns["message"] > 0, 2, 1)}, words)


def _fetch(connection: DuckDBPyConnection, board: str, source: str, key: str, text: Mapping[str, str], numbers: Mapping[str, str]) -> Table:
    """Columns by their expressions. Text comes as numbers of an ENUM's words, and not at all where there is only one word."""
    words = _words(connection, board, text)
    asked = [f"coalesce({key}, '') AS key", *(f"CAST({expression} AS DOUBLE) AS {name}" for name, expression in numbers.items())]
    for name, expression in text.items():
        if len(words[name]) > 1:
            enum = f"ENUM({', '.join(map(_quoted, words[name]))})"
            asked.append(f"coalesce(enum_code(CAST(nullif({expression}, '') AS {enum})) + 1, 0) AS {name}")
        elif words[name]:
            asked.append(f"(coalesce({expression}, '') <> '') AS {name}")
    found: dict[str, Any] = connection.execute(f"SELECT {', '.join(asked)} FROM {source} WHERE e.board = ?", [board]).fetchnumpy()
    coded = {name: (found[name].astype(np.int64), ["", *words[name]]) for name in text if words[name]}
    return Table.of(found["key"], coded, {name: np.ma.filled(found[name].astype(np.float64), np.nan) for name in numbers})


def _words(connection: DuckDBPyConnection, board: str, text: Mapping[str, str]) -> dict[str, list[str]]:
    """The different words of each expression, from the smallest table that has them all."""
    found: dict[str, list[str]] = {}
    for table, alias in ((f"cells WHERE board = {_quoted(board)}", "c."), ("runs", "r.")):
        names = {name: expression.removeprefix(alias) for name, expression in text.items() if expression.startswith(alias)}
        if names:
            lists = ", ".join(f"list(DISTINCT {column} ORDER BY {column}) FILTER ({column} <> '')" for column in names.values())
            values = connection.execute(f"SELECT {lists} FROM {table}").fetchall()[0]
            found |= {name: words or [] for name, words in zip(names, values, strict=True)}
    return found


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
