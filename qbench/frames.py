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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from qbench.errors import QbenchError, UsageError, unknown
from qbench.schema import IDENTITY
from qbench.store import view
from qbench.tidy import NUMBERS, TEXT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from qbench.board import Board

ASKED = "entries e JOIN cells c USING (board, cell)"
STATE = "CASE WHEN c.refusal IS NULL THEN 'planned' ELSE 'skipped' END AS state, c.refusal AS message"
MISSING = f"SELECT c.*, e.key, e.seed, {STATE} FROM {ASKED} ANTI JOIN runs r USING (key) WHERE e.board = ?"
"""What a board asks for and nobody has finished, and what was skipped."""


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
            return pd.DataFrame(connection.execute(sql, values or []).df())

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
        return self.query("SELECT board, version, title, made FROM boards ORDER BY made DESC, board")

    def cells(self, board: str | None = None) -> pd.DataFrame:
        from qbench.plaintext import to_csv

        return pd.read_csv(io.StringIO(to_csv(self.board(board))), keep_default_na=False, na_values=[""])

    def board(self, name: str | None = None) -> Board:
        """A board by name, or the latest."""
        from qbench.leaderboard import build

        name = self.board_name(name)
        with view(self.folder) as connection:
            title, defaults, track = connection.execute("SELECT title, defaults, track FROM boards WHERE board = ?", [name]).fetchall()[0]
            runs = connection.execute(_compact(connection, name), [name]).df()
            planned = connection.execute(MISSING, [name]).df()
        return build(runs, planned=planned, defaults=json.loads(defaults), title=title or name, track=track)

    def board_name(self, name: str | None) -> str:
        known = list(self.boards["board"])
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


def _compact(connection: DuckDBPyConnection, board: str) -> str:
    """A query for a board's runs with the columns that a board uses, text as categories: a hundred thousand rows take a tenth of a second."""
    of_cells = {"label", "provenance", *(column.name for column in IDENTITY)}
    chosen = ["r.key", *(f"r.{name}" for name in NUMBERS)]
    for table, alias, names in (
        (f"cells WHERE board = {_quoted(board)}", "c", [name for name in TEXT if name in of_cells]),
        ("runs", "r", [name for name in TEXT if name not in of_cells]),
    ):
        lists = ", ".join(f"list(DISTINCT {name} ORDER BY {name}) FILTER ({name} IS NOT NULL)" for name in names)
        found = connection.execute(f"SELECT {lists} FROM {table}").fetchall()[0]
        for name, words in zip(names, found, strict=True):
            if words:
                chosen.append(f"CAST({alias}.{name} AS ENUM({', '.join(map(_quoted, words))})) AS {name}")
    return f"SELECT {', '.join(chosen)} FROM {ASKED} JOIN runs r USING (key) WHERE e.board = ?"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
