"""The runs and boards of a results folder as pandas frames, for notebooks and for commands.

results = qbench.results("results")
results.runs                # a row for each finished attempt
results.curves              # a row for each point of every curve
results.curve("3fa9c1")     # the curve of one run, by the beginning of its key
results.downstream          # a row for each downstream task that a run has answered
results.cells("quick")      # a row for each cell of a board: mean, interval, gap recovered
results.board("quick")      # the board itself, as `qbench show` prints it
results.summary("quick")    # the board in a few numbers, as `qbench show --summary` prints it
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qbench.analysis.board_query import (
    ANSWERS_COLUMN,
    BOARD_ENTRIES,
    BUDGET_COLUMNS,
    UNTUNED,
    query_downstream_answers,
    query_finished_runs,
    query_missing_runs,
)
from qbench.boards.run_table import RunTable
from qbench.errors import QbenchError, UsageError, unknown_name_error
from qbench.store.schema import SHARED_COLUMNS
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.tuning_space import Tuning
from qbench.util import text

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

    from qbench.analysis.compare import Comparison
    from qbench.analysis.compare_downstream import DownstreamDifference
    from qbench.analysis.equal_time import ValidationCurve
    from qbench.analysis.summary import BoardSummary
    from qbench.boards.board import Board
    from qbench.boards.section import SectionBuilder


NEWEST_FIRST = "ORDER BY made DESC, board"
VALIDATION_QUERY = """
    SELECT key, attempt, seconds, progress, val AS value FROM curves
    WHERE val IS NOT NULL AND seconds IS NOT NULL AND progress IS NOT NULL
    AND key IN (SELECT key FROM entries WHERE board = ?)
    ORDER BY key, attempt, step
"""
TUNING_COLUMNS = "c.stage, c.chosen, " + ", ".join(
    f"{source} AS {name}" for name, source in BUDGET_COLUMNS.items()
)


def results(folder: str | Path = "results") -> Results:
    """Return the runs, curves and boards of a results folder."""
    return Results(Path(folder))


class _BoardData(NamedTuple):
    """What a board is built from."""

    title: str
    runs: RunTable
    planned: RunTable
    defaults: dict[str, Any]
    track: str
    tuning: Tuning | None


@dataclass(frozen=True)
class Results:
    """The contents of a results folder. Each frame is read when it is first used."""

    folder: Path

    # ---- frames ----

    def query(self, sql: str, values: list[Any] | dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the result of a query in DuckDB's SQL; see `qbench/store/schema.py` for tables."""
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

    @cached_property
    def boards(self) -> pd.DataFrame:
        """The boards that were swept here, the newest first."""
        return self.query(f"SELECT board, version, title, made FROM boards {NEWEST_FIRST}")

    def curve(self, run: str) -> pd.DataFrame:
        """Return the curve of a run's latest attempt. `run` is its key or the beginning of it."""
        points = self.query(
            "SELECT * FROM curves WHERE starts_with(key, ?) ORDER BY key, attempt, step", [run]
        )
        runs = points["key"].nunique()
        if runs != 1:
            raise UsageError(
                f"{run!r} matches {text.format_count(runs, 'run')} with a curve: give the "
                "beginning of exactly one key"
            )
        latest: pd.DataFrame = points.loc[points["attempt"] == points["attempt"].max()]
        return latest

    def cells(self, board: str | None = None) -> pd.DataFrame:
        """Return a row for each cell of a board: mean, interval, gap recovered, bits, cost."""
        import pandas as pd

        from qbench.boards.csv_files import to_csv

        csv = io.StringIO(to_csv(self.board(board)))
        # An entrant or a format may be called "NA" or "null", so only an empty field is missing.
        return pd.read_csv(csv, keep_default_na=False, na_values=[""])

    # ---- boards ----

    def board(self, name: str | None = None) -> Board:
        """Return a board by name, or the newest one."""
        from qbench.boards.build import build_board

        data = self._load_board(name)
        return build_board(
            data.runs,
            planned=data.planned,
            defaults=data.defaults,
            title=data.title,
            track=data.track,
            tuning=data.tuning,
        )

    def summary(self, name: str | None = None) -> BoardSummary:
        """Return a board in a few numbers.

        These are the gaps recovered over all its cells, the Pareto fronts of its sections, and
        the scores at equal training time.
        """
        from qbench.analysis.summary import summarise_board

        data = self._load_board(name)
        curves = self.validation_curves(self.board_name(name))
        return summarise_board(_make_builders(data, data.tuning), curves, data.title)

    def compare(self, one: str, other: str, board: str | None = None) -> list[Comparison]:
        """Compare two entrants of a board, given by label, in each section, paired by seed."""
        from qbench.analysis.compare import compare_entrants

        return compare_entrants(_make_builders(self._load_board(board)), one, other)

    def compare_downstream(
        self, one: str, other: str, board: str | None = None
    ) -> list[DownstreamDifference]:
        """Compare two entrants of a board on downstream tasks, by seed and item by item."""
        from qbench.analysis.compare_downstream import compare_downstream

        builders = _make_builders(self._load_board(board))
        return compare_downstream(builders, self.folder, one, other)

    def validation_curves(self, board: str) -> dict[tuple[str, int], ValidationCurve]:
        """Return the evaluations of a board's runs on validation, by key and attempt."""
        from qbench.analysis.equal_time import ValidationCurve

        with open_snapshot(self.folder) as connection:
            points = connection.execute(VALIDATION_QUERY, [board]).fetchnumpy()
        key, attempt = points["key"], points["attempt"]
        # Points are sorted by run: a new run starts where the key or the attempt changes.
        changes = np.flatnonzero((key[1:] != key[:-1]) | (attempt[1:] != attempt[:-1])) + 1
        bounds = [0, *changes, len(key)]
        values = [np.asarray(points[name], dtype=np.float64) for name in ValidationCurve._fields]
        return {
            (key[i], int(attempt[i])): ValidationCurve(*(v[i:j] for v in values))
            for i, j in itertools.pairwise(bounds)
            if i < j
        }

    def board_name(self, name: str | None) -> str:
        """Return `name` if there is such a board. Without a name, return the newest board's."""
        with open_snapshot(self.folder) as connection:
            return self._find_board(connection, name)

    def _find_board(self, connection: DuckDBPyConnection, name: str | None) -> str:
        rows = connection.execute(f"SELECT board FROM boards {NEWEST_FIRST}").fetchall()
        boards = [str(row[0]) for row in rows]
        if not boards:
            raise QbenchError(
                f"{self.folder}: no board was swept here; `qbench sweep FILE` makes one"
            )
        if name is None:
            return boards[0]
        if name not in boards:
            raise unknown_name_error("board", name, boards, str(self.folder))
        return name

    def _load_board(self, name: str | None) -> _BoardData:
        with open_snapshot(self.folder) as connection:
            name = self._find_board(connection, name)
            title, defaults, track, tuning = connection.execute(
                "SELECT title, defaults, track, tuning FROM boards WHERE board = ?", [name]
            ).fetchall()[0]
            return _BoardData(
                title or name,
                query_finished_runs(connection, name),
                query_missing_runs(connection, name),
                json.loads(defaults),
                track,
                Tuning.from_json(json.loads(tuning)) if tuning else None,
            )

    # ---- the runs of a board ----

    def board_runs(self, name: str) -> pd.DataFrame:
        """Return the finished attempts at a board's runs, with their labels on the board.

        If any run was asked downstream tasks, there is a column with the answers.
        """
        frame = self._query_board_runs(name)
        with open_snapshot(self.folder) as connection:
            answers = query_downstream_answers(connection, name)
        if answers:
            frame[ANSWERS_COLUMN] = [
                # Runs that were never attempted have no number of an attempt: NaN ≠ NaN.
                None if attempt != attempt else answers.get((key, int(attempt)))
                for key, attempt in zip(frame["key"], frame["attempt"], strict=True)
            ]
        return frame

    def _query_board_runs(self, name: str) -> pd.DataFrame:
        tuned = "SELECT board FROM boards WHERE board = ? AND tuning IS NOT NULL"
        if len(self.query(tuned, [name])):
            return self._query_tuned_runs(name)
        retired = "SELECT board FROM cells WHERE board = ? AND retired IS NOT NULL LIMIT 1"
        extra = ", c.retired" if len(self.query(retired, [name])) else ""
        return self.query(
            f"SELECT r.*, c.label, c.provenance{extra} FROM {BOARD_ENTRIES} "
            "JOIN runs r USING (key) WHERE e.board = ?",
            [name],
        )

    def _query_tuned_runs(self, name: str) -> pd.DataFrame:
        """Return trials with the values they tried, and runs with the values that were chosen.

        A run that was not attempted, because every trial of its cell failed, has a row without a
        key.
        """
        cell_columns = ", ".join(f"c.{column.name}" for column in SHARED_COLUMNS)
        labels = f"c.label, c.provenance, {TUNING_COLUMNS}"
        return self.query(
            f"""
            SELECT r.*, {labels} FROM {BOARD_ENTRIES} JOIN runs r USING (key)
            WHERE e.board = $board
            UNION ALL BY NAME
            SELECT 'failed' AS state, '{UNTUNED}' AS reason, c.failure AS message, e.seed,
                {cell_columns}, {labels}
            FROM {BOARD_ENTRIES} WHERE e.board = $board AND c.failure IS NOT NULL
            ORDER BY ALL
            """,
            {"board": name},
        )


def _make_builders(data: _BoardData, tuning: Tuning | None = None) -> list[SectionBuilder]:
    from qbench.boards.build import make_section_builders

    return make_section_builders(
        data.runs, data.planned, data.defaults, track=data.track, tuning=tuning
    )[1]
