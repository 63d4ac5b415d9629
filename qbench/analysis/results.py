"""Results as pandas, for notebooks and for boards.

found = qbench.results("results")
found.runs                      # a row for each finished attempt
found.curves                    # a row for each point of every curve; found.curve("3fa9c1") of one run
found.downstream                # a row for each downstream task that a run has answered
found.cells("quick")            # a row for each cell of a board: mean, interval, gap recovered
found.board("quick")            # the board itself, as `qbench show` prints it
found.summary("quick")          # the board in a few numbers, as `qbench show --summary` prints it
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.analysis.board_query import ANSWERS, ASKED, BUDGET, UNTUNED, answers, finished, missing
from qbench.boards.run_table import Table
from qbench.errors import QbenchError, UsageError, unknown
from qbench.store.schema import SHARED_COLUMNS
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.tuning_space import Tuning
from qbench.util import text

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

    from qbench.analysis.compare import Comparison
    from qbench.analysis.compare_downstream import Difference
    from qbench.analysis.equal_time import Evaluations
    from qbench.analysis.summary import Summary
    from qbench.boards.board import Board


LATEST = "ORDER BY made DESC, board"
EVALUATED = """
    SELECT key, attempt, seconds, progress, val AS value FROM curves
    WHERE val IS NOT NULL AND seconds IS NOT NULL AND progress IS NOT NULL AND key IN (SELECT key FROM entries WHERE board = ?)
    ORDER BY key, attempt, step
"""
TUNED = "c.stage, c.chosen, " + ", ".join(f"{source} AS {name}" for name, source in BUDGET.items())


def results(folder: str | Path = "results") -> Results:
    """The runs, curves and boards of a results folder."""
    return Results(Path(folder))


@dataclass(frozen=True)
class Results:
    """What a results folder holds, read when it is asked for."""

    folder: Path

    def query(self, sql: str, values: list[Any] | dict[str, Any] | None = None) -> pd.DataFrame:
        """Any question to the store, in DuckDB's SQL; the tables are in `qbench/schema.py`."""
        with open_snapshot(self.folder) as connection:
            frame: pd.DataFrame = connection.execute(sql, values or []).df()
            return frame

    @cached_property
    def runs(self) -> pd.DataFrame:
        return self.query("SELECT * FROM runs ORDER BY key, attempt")

    @cached_property
    def curves(self) -> pd.DataFrame:
        return self.query("SELECT * FROM curves ORDER BY key, attempt, step")

    @cached_property
    def downstream(self) -> pd.DataFrame:
        return self.query("SELECT * FROM downstream ORDER BY key, attempt, task")

    def curve(self, run: str) -> pd.DataFrame:
        """The curve of the latest attempt at a run, named by its key or the beginning of it."""
        found = self.query(
            "SELECT * FROM curves WHERE starts_with(key, ?) ORDER BY key, attempt, step", [run]
        )
        if found["key"].nunique() != 1:
            raise UsageError(
                f"{run!r} begins the keys of {text.count(found['key'].nunique(), 'run')} with a curve"
            )
        latest: pd.DataFrame = found.loc[found["attempt"] == found["attempt"].max()]
        return latest

    @cached_property
    def boards(self) -> pd.DataFrame:
        """The boards that were swept here, the latest first."""
        return self.query(f"SELECT board, version, title, made FROM boards {LATEST}")

    def cells(self, board: str | None = None) -> pd.DataFrame:
        """A row for each cell of a board: mean, interval, gap recovered, bits, cost."""
        import pandas as pd

        from qbench.boards.csv_files import to_csv

        return pd.read_csv(
            io.StringIO(to_csv(self.board(board))), keep_default_na=False, na_values=[""]
        )

    def board(self, name: str | None = None) -> Board:
        """A board by name, or the latest."""
        from qbench.boards.build import build_board

        title, runs, planned, defaults, track, tuning = self._parts(name)
        return build_board(
            runs, planned=planned, defaults=defaults, title=title, track=track, tuning=tuning
        )

    def summary(self, name: str | None = None) -> Summary:
        """A board in a few numbers: gaps recovered over all its cells, what is on the front, and the view at equal training time."""
        from qbench.analysis.summary import summarise
        from qbench.boards.build import section_makers

        title, runs, planned, defaults, track, tuning = self._parts(name)
        makers = section_makers(runs, planned, defaults, track=track, tuning=tuning)[1]
        return summarise(makers, self.evaluations(self.board_name(name)), title)

    def evaluations(self, board: str) -> dict[tuple[str, int], Evaluations]:
        """The validation of each attempt at a board's runs, by key and attempt, in the order of its steps."""
        from qbench.analysis.equal_time import Evaluations

        with open_snapshot(self.folder) as connection:
            found = connection.execute(EVALUATED, [board]).fetchnumpy()
        key, attempt = found["key"], found["attempt"]
        ends = [
            0,
            *(np.flatnonzero((key[1:] != key[:-1]) | (attempt[1:] != attempt[:-1])) + 1),
            len(key),
        ]
        values = [np.asarray(found[name], dtype=np.float64) for name in Evaluations._fields]
        return {
            (key[i], int(attempt[i])): Evaluations(*(v[i:j] for v in values))
            for i, j in itertools.pairwise(ends)
            if i < j
        }

    def compare(self, one: str, other: str, board: str | None = None) -> list[Comparison]:
        """Two entrants of a board by their labels, section by section, paired by seed."""
        from qbench.analysis.compare import compare
        from qbench.boards.build import section_makers

        _, runs, planned, defaults, track, _ = self._parts(board)
        return compare(section_makers(runs, planned, defaults, track=track)[1], one, other)

    def compare_downstream(
        self, one: str, other: str, board: str | None = None
    ) -> list[Difference]:
        """The same of what they answered downstream: by seed, and item by item."""
        from qbench.analysis.compare_downstream import compare
        from qbench.boards.build import section_makers

        _, runs, planned, defaults, track, _ = self._parts(board)
        return compare(
            section_makers(runs, planned, defaults, track=track)[1], self.folder, one, other
        )

    def _parts(
        self, name: str | None
    ) -> tuple[str, Table, Table, dict[str, Any], str, Tuning | None]:
        """What a board is made of: its title, its runs, what it lacks, the default parameters, its track and how it was tuned."""
        with open_snapshot(self.folder) as connection:
            name = self._known(connection, name)
            asked = "SELECT title, defaults, track, tuning FROM boards WHERE board = ?"
            title, defaults, track, tuning = connection.execute(asked, [name]).fetchall()[0]
            space = Tuning.from_json(json.loads(tuning)) if tuning else None
            return (
                title or name,
                finished(connection, name),
                missing(connection, name),
                json.loads(defaults),
                track,
                space,
            )

    def board_name(self, name: str | None) -> str:
        """The name of a board that is known, or of the latest."""
        with open_snapshot(self.folder) as connection:
            return self._known(connection, name)

    def _known(self, connection: DuckDBPyConnection, name: str | None) -> str:
        known = [
            row[0] for row in connection.execute(f"SELECT board FROM boards {LATEST}").fetchall()
        ]
        if not known:
            raise QbenchError(
                f"{self.folder}: no board was swept here; `qbench sweep FILE` makes one"
            )
        if name is None:
            return str(known[0])
        if name not in known:
            raise unknown("board", name, known, str(self.folder))
        return name

    def board_runs(self, name: str) -> pd.DataFrame:
        """The finished attempts at a board's runs, what the board calls them, and what they answered downstream if any did."""
        frame = self._board_runs(name)
        with open_snapshot(self.folder) as connection:
            told = answers(connection, name)
        if not told:
            return frame
        places = zip(frame["key"], frame["attempt"], strict=True)
        frame[ANSWERS] = [
            None if number != number else told.get((key, int(number))) for key, number in places
        ]
        return frame

    def _board_runs(self, name: str) -> pd.DataFrame:
        if len(
            self.query("SELECT board FROM boards WHERE board = ? AND tuning IS NOT NULL", [name])
        ):
            return self._tuned_runs(name)
        retired = self.query(
            "SELECT board FROM cells WHERE board = ? AND retired IS NOT NULL LIMIT 1", [name]
        )
        more = ", c.retired" * len(retired)
        return self.query(
            f"SELECT r.*, c.label, c.provenance{more} FROM {ASKED} JOIN runs r USING (key) WHERE e.board = ?",
            [name],
        )

    def _tuned_runs(self, name: str) -> pd.DataFrame:
        """Trials with what they tried, runs with what was chosen, and a row without a key for each that was not attempted as every trial failed."""
        own = ", ".join(f"c.{column.name}" for column in SHARED_COLUMNS)
        return self.query(
            f"""
            SELECT r.*, c.label, c.provenance, {TUNED} FROM {ASKED} JOIN runs r USING (key) WHERE e.board = $board
            UNION ALL BY NAME
            SELECT 'failed' AS state, '{UNTUNED}' AS reason, c.failure AS message, e.seed, {own}, c.label, c.provenance, {TUNED}
            FROM {ASKED} WHERE e.board = $board AND c.failure IS NOT NULL
            ORDER BY ALL
            """,
            {"board": name},
        )
