"""A table of runs as NumPy columns, which the arithmetic of boards works on.

Text is stored as indices into a vocabulary. The store delivers runs in this form without pandas,
because the import of pandas alone takes a third of the second in which a board of a hundred
thousand runs is to be shown. A pandas frame is converted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qbench.util.text import format_count

if TYPE_CHECKING:
    import pandas as pd


Array = npt.NDArray[Any]

TEXT_COLUMNS = [
    "state",
    "reason",
    "message",
    "method",
    "label",
    "params",
    "provenance",
    "task",
    "task_params",
    "size",
    "data",
    "start",
    "recipe",
    "weights_format",
    "weights_granularity",
    "act_format",
    "act_granularity",
    "metric",
    "better",
    "unit",
    "device_name",
    "trust",
    "stage",
    "chosen",
    "retired",
    "downstream",
]
NUMBER_COLUMNS = [
    "attempt",
    "board_version",
    "task_version",
    "method_version",
    "seed",
    "lr",
    "steps",
    "batch",
    "packed",
    "validation",
    "rr_mean",
    "digits",
    "effect",
    "bits_per_weight",
    "levels",
    "train_s",
    "step_s_median",
    "peak_memory_bytes",
    "audit_passed",
    "rung",
    "trial",
    "budget",
    "company",
]


@dataclass(frozen=True)
class RunTable:
    """Columns of equal length: `key`, the `TEXT_COLUMNS` and the `NUMBER_COLUMNS`."""

    columns: dict[str, Array]
    """A text column holds indices into its vocabulary, a number column floats or NaN."""
    vocabularies: dict[str, list[str]]
    """The different texts of each text column; the first is '', which means "no text"."""

    @staticmethod
    def from_columns(
        key: Array, text: Mapping[str, tuple[Array, list[str]]], numbers: Mapping[str, Array]
    ) -> RunTable:
        """Return a table of the given columns; the missing ones hold no text and no numbers."""
        count = len(key)
        empty = (np.zeros(count, dtype=np.int64), [""])
        coded = {name: text.get(name, empty) for name in TEXT_COLUMNS}
        columns = {"key": key} | {name: codes for name, (codes, _) in coded.items()}
        columns |= {name: numbers.get(name, np.full(count, np.nan)) for name in NUMBER_COLUMNS}
        return RunTable(columns, {name: texts for name, (_, texts) in coded.items()})

    def take(self, which: Array) -> RunTable:
        """Return the rows that a mask or an array of indices selects."""
        columns = {name: column[which] for name, column in self.columns.items()}
        return RunTable(columns, self.vocabularies)

    def __len__(self) -> int:
        return len(self.columns["key"])

    def get_code(self, name: str, word: str) -> int:
        """Return the index of a text in a column's vocabulary, or −1, which matches no row."""
        vocabulary = self.vocabularies[name]
        return vocabulary.index(word) if word in vocabulary else -1

    def get_texts(self, name: str) -> Array:
        """Return a text column as an array of strings."""
        return np.array(self.vocabularies[name], dtype=object)[self.columns[name]]

    def map_text(self, name: str, change: Callable[[str], str]) -> RunTable:
        """Return the table with `change` applied to a text column, once for each text."""
        changed = [change(word) for word in self.vocabularies[name]]
        vocabulary = list(dict.fromkeys(["", *changed]))
        # Texts that become equal get one code.
        codes = np.array([vocabulary.index(word) for word in changed], dtype=np.int64)
        columns = self.columns | {name: codes[self.columns[name]]}
        return RunTable(columns, self.vocabularies | {name: vocabulary})


def join_tables(a: RunTable, b: RunTable) -> RunTable:
    """Return the rows of `a` followed by those of `b`."""
    columns, vocabularies = {}, {}
    for name, column in a.columns.items():
        other = b.columns[name]
        if name in a.vocabularies:
            first, second = a.vocabularies[name], b.vocabularies[name]
            vocabularies[name] = list(dict.fromkeys([*first, *second]))
            code = {word: i for i, word in enumerate(vocabularies[name])}
            column = np.array([code[word] for word in first], dtype=np.int64)[column]
            other = np.array([code[word] for word in second], dtype=np.int64)[other]
        columns[name] = np.concatenate([column, other])
    return RunTable(columns, vocabularies)


def number_pairs(a: Array, b: Array, count: int) -> tuple[Array, Array]:
    """Return a number for each row's pair of codes, and the first row of each different pair.

    The codes in `b` must be smaller than `count`.
    """
    # One integer for each pair: unique over integers is much faster than over rows.
    pairs = a * max(count, 1) + b
    _, first, codes = np.unique(pairs, return_index=True, return_inverse=True)
    return codes.astype(np.int64), first


def number_combinations(
    table: RunTable, names: Sequence[str]
) -> tuple[Array, list[dict[str, Any]]]:
    """Return a number for each row's combination of some columns, and the combinations."""
    codes = np.zeros(len(table), dtype=np.int64)
    first = np.zeros(min(len(table), 1), dtype=np.int64)
    for name in names:
        column = table.columns[name]
        is_text = name in table.vocabularies
        part = column if is_text else np.unique(column, return_inverse=True)[1]
        # A column that is the same in all rows tells nothing apart.
        if len(part) and part.min() != part.max():
            # The codes are numbered anew each time, so their product cannot overflow.
            codes, first = number_pairs(codes, part, int(part.max()) + 1)
    values: dict[str, list[Any]] = {}
    for name in names:
        kept = table.columns[name][first].tolist()
        vocabulary = table.vocabularies.get(name)
        values[name] = kept if vocabulary is None else [vocabulary[code] for code in kept]
    return codes, [{name: values[name][i] for name in names} for i in range(len(first))]


# ---- from a pandas frame ----


def read_frame(frame: pd.DataFrame) -> RunTable:
    """Return the columns of a frame that boards use.

    A missing text becomes '', and a missing or infinite number becomes NaN.
    """
    key = _read_objects(frame["key"]) if "key" in frame else np.full(len(frame), "", dtype=object)
    text = {name: _encode_text(frame[name]) for name in TEXT_COLUMNS if name in frame}
    numbers = {name: _read_floats(frame[name]) for name in NUMBER_COLUMNS if name in frame}
    return RunTable.from_columns(key, text, numbers)


def _read_objects(column: pd.Series[Any]) -> Array:
    import pandas as pd

    values = column.astype(object).to_numpy()
    return np.where(pd.isna(values), "", values) if column.hasnans else values


def _encode_text(column: pd.Series[Any]) -> tuple[Array, list[str]]:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, values = column.cat.codes.to_numpy(dtype=np.int64), column.cat.categories
    else:
        codes, values = pd.factorize(column)
    vocabulary = ["", *map(str, values)]
    # pandas codes a missing value as −1, so that adding one makes it '', the first text.
    codes = codes.astype(np.int64) + 1
    if "" in vocabulary[1:]:
        # An empty text in the frame means "no text" as well.
        codes[codes == vocabulary.index("", 1)] = 0
    return codes, vocabulary


def _read_floats(column: pd.Series[Any]) -> Array:
    import pandas as pd

    if column.dtype == object or isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype)):
        column = pd.to_numeric(column.astype(object), errors="coerce")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


# ---- which rows count on a board: one attempt of each run, newest versions only ----
#
# Both functions append to `notes` what readers of the board must know about dropped rows.


def keep_one_attempt(table: RunTable, notes: list[str]) -> RunTable:
    """Return the table with one row for each run.

    An attempt that trained to an end (ok or diverged) is preferred to a mishap, and our own
    attempts to merged ones. Of our own attempts a successful one counts, else the last one; of
    merged ones the one that was merged first.
    """
    identity = _identify_runs(table)
    if len(set(identity)) == len(identity):
        return table
    attempt = np.nan_to_num(table.columns["attempt"])
    own = table.columns["trust"] == 0
    ok, has_outcome = _find_outcomes(table)
    # Compared from left to right. The sign makes the last own attempt and the first merged one
    # the largest.
    preference = list(
        zip(has_outcome, own, ok & own, np.where(own, attempt, -attempt), strict=True)
    )
    best: dict[str, int] = {}
    for i, run in enumerate(identity):
        # Rows without a key, such as cells that were skipped, are no attempts at one run.
        if run and (run not in best or preference[i] > preference[best[run]]):
            best[run] = i
    chosen = np.array([best.get(run, i) for i, run in enumerate(identity)], dtype=np.int64)
    _report_conflicts(table, identity, chosen, notes)
    return table.take(chosen == np.arange(len(identity)))


def _find_outcomes(table: RunTable) -> tuple[Array, Array]:
    """Return which rows are ok, and which have an outcome of training: ok or diverged."""
    ok = table.columns["state"] == table.get_code("state", "ok")
    return ok, ok | (table.columns["reason"] == table.get_code("reason", "diverged"))


def _report_conflicts(table: RunTable, identity: Array, chosen: Array, notes: list[str]) -> None:
    """Add a note if attempts at one run, which should agree, have different scores."""
    score, effect = table.columns["packed"], table.columns["effect"]
    last_digit = 10.0 ** -np.nan_to_num(table.columns["digits"], nan=3.0)
    tolerance = np.where(np.isfinite(effect), effect, last_digit)
    both_missing = np.isnan(score) & np.isnan(score[chosen])
    same = (np.abs(score - score[chosen]) <= tolerance) | both_missing
    _, has_outcome = _find_outcomes(table)
    if conflicts := sorted(set(identity[has_outcome & has_outcome[chosen] & ~same])):
        notes.append(
            f"conflict: {format_count(len(conflicts), 'run')} with attempts whose scores differ:"
            f" qbench show {conflicts[0][:12]}"
        )


def _identify_runs(table: RunTable) -> Array:
    """Return the text that attempts at one run share: its key.

    In a tuned board several trials may fall on the same values. They are one run and have one
    key, but each of them counts as a trial, so stage, rung and number are added.
    """
    key = table.columns["key"]
    if not any(table.vocabularies["stage"]):
        return key
    names = ("stage", "rung", "trial")
    trials = zip(key, *(table.columns[name] for name in names), strict=True)
    return np.array(
        [f"{k} {stage} {rung:g} {trial:g}" if k else "" for k, stage, rung, trial in trials],
        dtype=object,
    )


def drop_old_versions(table: RunTable, notes: list[str]) -> RunTable:
    """Return the rows of the newest version of the board and of each task and each method."""
    # In this order: the newest version of a task is looked for among rows of the newest board.
    for version, owner in (
        ("board_version", ""),
        ("task_version", "task"),
        ("method_version", "method"),
    ):
        number = np.nan_to_num(table.columns[version])
        code = table.columns[owner] if owner else np.zeros(len(table), dtype=np.int64)
        names = table.vocabularies[owner] if owner else ["board"]
        newest = np.zeros(len(names))
        # `maximum.at` and not `newest[code] = ...`: a code occurs in many rows, and plain
        # assignment would keep the last of them.
        np.maximum.at(newest, code, number)
        old = number < newest[code]
        if old.any():
            dropped = {(names[c], int(n)) for c, n in zip(code[old], number[old], strict=True)}
            listed = ", ".join(f"{name} version {n}" for name, n in sorted(dropped))
            notes.append(
                f"left out: {format_count(int(old.sum()), 'run')} of older versions: {listed}"
            )
            table = table.take(~old)
    return table
