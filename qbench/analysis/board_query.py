"""Read the runs of a board from the index (DuckDB) into a `RunTable`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.boards import downstream_scores
from qbench.boards.run_table import NUMBER_COLUMNS, TEXT_COLUMNS, RunTable
from qbench.store.schema import SHARED_COLUMNS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


BOARD_ENTRIES = "entries e JOIN cells c USING (board, cell)"
"""SQL for the runs that boards ask for, each with its cell."""
CELL_COLUMNS = {
    "label",
    "provenance",
    "stage",
    "chosen",
    "rung",
    "trial",
    "retired",
    *(column.name for column in SHARED_COLUMNS),
}
"""The columns that are read from the cell and not from the run."""
BUDGET_COLUMNS = {"rung": "c.rung", "trial": "c.trial", "budget": "c.steps"}
"""SQL for the numbers that say what share of its cell's steps a trial was trained for."""
ANSWERS_COLUMN = "downstream"
"""The one text column that is not read by SQL alone: it comes from a table of its own."""
UNTUNED = "untuned"
"""The reason of runs that are not attempted because every trial of their cell failed."""


# ---- a board's runs ----


def query_finished_runs(connection: DuckDBPyConnection, board: str) -> RunTable:
    """Return the finished attempts at a board's runs, with their downstream answers."""
    text = {
        name: f"{'c' if name in CELL_COLUMNS else 'r'}.{name}"
        for name in TEXT_COLUMNS
        if name != ANSWERS_COLUMN
    }
    numbers = {name: f"r.{name}" for name in NUMBER_COLUMNS} | BUDGET_COLUMNS
    runs = _query_run_table(
        connection, board, f"{BOARD_ENTRIES} JOIN runs r USING (key)", "r.key", text, numbers
    )
    answers = query_downstream_answers(connection, board)
    return _add_answers(runs, answers) if answers else runs


def _add_answers(runs: RunTable, answers: Mapping[tuple[str, int], str]) -> RunTable:
    # Code 0 stands for the empty text, so the answers are numbered from 1.
    codes_of_runs = {run: code for code, run in enumerate(answers, 1)}
    codes = [
        codes_of_runs.get((key, int(attempt)), 0)
        for key, attempt in zip(runs.columns["key"], runs.columns["attempt"], strict=True)
    ]
    return RunTable(
        runs.columns | {ANSWERS_COLUMN: np.array(codes, dtype=np.int64)},
        runs.vocabularies | {ANSWERS_COLUMN: ["", *answers.values()]},
    )


def query_downstream_answers(
    connection: DuckDBPyConnection, board: str
) -> dict[tuple[str, int], str]:
    """Return the downstream answers of a board's runs, by key and attempt.

    The answers of a run are JSON by task, as `downstream_scores.answers_to_json` writes it.
    """
    fields = downstream_scores.ANSWER_FIELDS
    rows = connection.execute(
        f"SELECT key, attempt, task, {', '.join(fields)} FROM downstream "
        "WHERE key IN (SELECT key FROM entries WHERE board = ?) ORDER BY key, attempt, task",
        [board],
    ).fetchall()
    # groupby needs the rows of one run to be adjacent; the query sorts them.
    return {
        run: downstream_scores.answers_to_json(
            {row[2]: dict(zip(fields, row[3:], strict=True)) for row in rows_of_run}
        )
        for run, rows_of_run in itertools.groupby(rows, key=lambda row: row[:2])
    }


def query_missing_runs(connection: DuckDBPyConnection, board: str) -> RunTable:
    """Return the runs that a board asks for and that nobody has finished, with the reason.

    Their state is "planned", "skipped" if the method or task refuses the cell, or "failed" if
    they are not attempted because every trial of their cell failed.
    """
    text = {name: f"c.{name}" for name in TEXT_COLUMNS if name in CELL_COLUMNS} | {
        "message": "c.refusal",
        "reason": "c.failure",
    }
    numbers = {name: f"c.{name}" for name in NUMBER_COLUMNS if name in CELL_COLUMNS}
    numbers |= {"seed": "e.seed"} | BUDGET_COLUMNS
    runs = _query_run_table(
        connection, board, f"{BOARD_ENTRIES} ANTI JOIN runs r USING (key)", "e.key", text, numbers
    )
    return _add_states(runs.take(runs.columns["retired"] == 0))


def _add_states(runs: RunTable) -> RunTable:
    """Derive state, reason and message, given refusals as messages and failures as reasons."""
    refusal, failure = runs.columns["message"], runs.columns["reason"]
    refusals, failures = runs.vocabularies["message"], runs.vocabularies["reason"]
    columns = {
        "state": np.where(failure > 0, 3, np.where(refusal > 0, 2, 1)),
        "reason": np.where(failure > 0, 1, 0),
        # Both kinds of message share one vocabulary: the failures follow the refusals, without
        # the empty text that each of the two begins with.
        "message": np.where(failure > 0, len(refusals) + failure - 1, refusal),
    }
    vocabularies = {
        "state": ["", "planned", "skipped", "failed"],
        "reason": ["", UNTUNED],
        "message": [*refusals, *failures[1:]],
    }
    return RunTable({**runs.columns, **columns}, {**runs.vocabularies, **vocabularies})


# ---- from SQL to columns ----


def _query_run_table(
    connection: DuckDBPyConnection,
    board: str,
    source: str,
    key: str,
    text: Mapping[str, str],
    numbers: Mapping[str, str],
) -> RunTable:
    """Return a board's rows from `source`; `text` and `numbers` hold SQL by column name.

    Strings are slow to bring from DuckDB to NumPy. So DuckDB is given the different words of each
    text column as an ENUM and returns their numbers. A column with a single word needs only a
    test for its presence, and an empty column is not queried at all.
    """
    words = _query_distinct_words(connection, board, text)
    selected = [
        f"coalesce({key}, '') AS key",
        *(f"CAST({sql} AS DOUBLE) AS {name}" for name, sql in numbers.items()),
    ]
    for name, sql in text.items():
        if len(words[name]) > 1:
            enum = f"ENUM({', '.join(map(_quote_sql, words[name]))})"
            selected.append(
                f"coalesce(enum_code(CAST(nullif({sql}, '') AS {enum})) + 1, 0) AS {name}"
            )
        elif words[name]:
            selected.append(f"(coalesce({sql}, '') <> '') AS {name}")
    columns: dict[str, Any] = connection.execute(
        f"SELECT {', '.join(selected)} FROM {source} WHERE e.board = ?", [board]
    ).fetchnumpy()
    coded = {
        name: (columns[name].astype(np.int64), ["", *words[name]]) for name in text if words[name]
    }
    # DuckDB returns columns with NULL as masked arrays.
    values = {name: np.ma.filled(columns[name].astype(np.float64), np.nan) for name in numbers}
    return RunTable.from_columns(columns["key"], coded, values)


def _query_distinct_words(
    connection: DuckDBPyConnection, board: str, text: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the different words of each text column, sorted.

    The words of runs are taken from all runs, not only from those of the board: a scan of one
    column is faster than the join, and additional words do no harm.
    """
    cells = f"(FROM cells WHERE board = {_quote_sql(board)}) c"
    queries = (
        f"SELECT DISTINCT '{name}', {sql} AS word "
        f"FROM {cells if sql.startswith('c.') else 'runs r'}"
        for name, sql in text.items()
    )
    words: dict[str, list[str]] = {name: [] for name in text}
    for name, word in connection.execute(
        f"FROM ({' UNION ALL '.join(queries)}) WHERE word <> '' ORDER BY word"
    ).fetchall():
        words[name].append(word)
    return words


def _quote_sql(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
