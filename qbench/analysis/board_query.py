"""The runs of a board out of the index."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qbench.boards import downstream_scores
from qbench.boards.run_table import NUMBERS, TEXT, Table
from qbench.store.schema import SHARED_COLUMNS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


ASKED = "entries e JOIN cells c USING (board, cell)"
OF_CELLS = {
    "label",
    "provenance",
    "stage",
    "chosen",
    "rung",
    "trial",
    "retired",
    *(column.name for column in SHARED_COLUMNS),
}
"""What a cell says of its runs."""
BUDGET = {"rung": "c.rung", "trial": "c.trial", "budget": "c.steps"}
"""Numbers of cells beside their runs' own: under halving a trial's run has a share of the steps."""
ANSWERS = "downstream"
"""The one column of text that is made here, of a table of its own."""
UNTUNED = "untuned"
"""Why a run was not attempted of whose cell every trial failed."""


# ---- a board's runs ----


def finished(connection: DuckDBPyConnection, board: str) -> Table:
    """The finished attempts at a board's runs, with what they answered downstream."""
    text = {name: f"{'c' if name in OF_CELLS else 'r'}.{name}" for name in TEXT if name != ANSWERS}
    found = _fetch(
        connection,
        board,
        f"{ASKED} JOIN runs r USING (key)",
        "r.key",
        text,
        {name: f"r.{name}" for name in NUMBERS} | BUDGET,
    )
    if not (told := answers(connection, board)):
        return found
    place = {run: code for code, run in enumerate(told, 1)}
    codes = [
        place.get((key, int(number)), 0)
        for key, number in zip(found.columns["key"], found.columns["attempt"], strict=True)
    ]
    columns = found.columns | {ANSWERS: np.array(codes, dtype=np.int64)}
    return Table(columns, found.words | {ANSWERS: ["", *told.values()]})


def answers(connection: DuckDBPyConnection, board: str) -> dict[tuple[str, int], str]:
    """What the attempts at a board's runs answered downstream, as JSON by task (`grades.spelled`)."""
    of = "key IN (SELECT key FROM entries WHERE board = ?) ORDER BY key, attempt, task"
    rows = connection.execute(
        f"SELECT key, attempt, task, {', '.join(downstream_scores.STORED)} FROM downstream WHERE {of}",
        [board],
    ).fetchall()
    each = itertools.groupby(rows, key=lambda row: row[:2])
    return {
        run: downstream_scores.spelled(
            {row[2]: dict(zip(downstream_scores.STORED, row[3:], strict=True)) for row in told}
        )
        for run, told in each
    }


def missing(connection: DuckDBPyConnection, board: str) -> Table:
    """What a board asks for and nobody has finished, what was skipped and why, and what is not attempted as every trial failed."""
    text = {name: f"c.{name}" for name in TEXT if name in OF_CELLS} | {
        "message": "c.refusal",
        "reason": "c.failure",
    }
    numbers = (
        {name: f"c.{name}" for name in NUMBERS if name in OF_CELLS} | {"seed": "e.seed"} | BUDGET
    )
    found = _fetch(
        connection, board, f"{ASKED} ANTI JOIN runs r USING (key)", "e.key", text, numbers
    )
    found = found.take(found.columns["retired"] == 0)
    refusal, failure = found.columns["message"], found.columns["reason"]
    refusals, failures = found.words["message"], found.words["reason"]
    columns = {
        "state": np.where(failure > 0, 3, np.where(refusal > 0, 2, 1)),
        "reason": np.where(failure > 0, 1, 0),
        "message": np.where(failure > 0, len(refusals) + failure - 1, refusal),
    }
    words = {
        "state": ["", "planned", "skipped", "failed"],
        "reason": ["", UNTUNED],
        "message": [*refusals, *failures[1:]],
    }
    return Table({**found.columns, **columns}, {**found.words, **words})


def _fetch(
    connection: DuckDBPyConnection,
    board: str,
    source: str,
    key: str,
    text: Mapping[str, str],
    numbers: Mapping[str, str],
) -> Table:
    """Columns by their expressions. Text comes as numbers of an ENUM's words, and not at all where there is only one word."""
    words = _words(connection, board, text)
    asked = [
        f"coalesce({key}, '') AS key",
        *(f"CAST({expression} AS DOUBLE) AS {name}" for name, expression in numbers.items()),
    ]
    for name, expression in text.items():
        if len(words[name]) > 1:
            enum = f"ENUM({', '.join(map(_quoted, words[name]))})"
            asked.append(
                f"coalesce(enum_code(CAST(nullif({expression}, '') AS {enum})) + 1, 0) AS {name}"
            )
        elif words[name]:
            asked.append(f"(coalesce({expression}, '') <> '') AS {name}")
    found: dict[str, Any] = connection.execute(
        f"SELECT {', '.join(asked)} FROM {source} WHERE e.board = ?", [board]
    ).fetchnumpy()
    coded = {
        name: (found[name].astype(np.int64), ["", *words[name]]) for name in text if words[name]
    }
    return Table.of(
        found["key"],
        coded,
        {name: np.ma.filled(found[name].astype(np.float64), np.nan) for name in numbers},
    )


def _words(
    connection: DuckDBPyConnection, board: str, text: Mapping[str, str]
) -> dict[str, list[str]]:
    """The different words of each expression, from the smallest table that has them all."""
    runs, cells = "runs r", f"(FROM cells WHERE board = {_quoted(board)}) c"
    columns = (
        f"SELECT DISTINCT '{name}', {told} AS word FROM {cells if told.startswith('c.') else runs}"
        for name, told in text.items()
    )
    found: dict[str, list[str]] = {name: [] for name in text}
    for name, word in connection.execute(
        f"FROM ({' UNION ALL '.join(columns)}) WHERE word <> '' ORDER BY word"
    ).fetchall():
        found[name].append(word)
    return found


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
