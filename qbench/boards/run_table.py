"""Runs as columns, as the arithmetic of boards wants them: numbers, and text as numbers of words. From the store they come so, without
pandas, whose import takes a third of the second in which a board of a hundred thousand runs is to be shown; from a frame they are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd


Array = npt.NDArray[Any]

TEXT = (
    *(
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
    ),
    *(
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
    ),
)
NUMBERS = (
    *(
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
    ),
    *(
        "rr_mean",
        "digits",
        "effect",
        "bits_per_weight",
        "levels",
        "train_s",
        "step_s_median",
        "peak_memory_bytes",
        "audit_passed",
    ),
    *("rung", "trial", "budget", "company"),
)


@dataclass(frozen=True)
class Table:
    """Columns of equal length; those of text as numbers of words, of which the first is ''."""

    columns: dict[str, Array]
    words: dict[str, list[str]]

    @staticmethod
    def of(
        key: Array, text: Mapping[str, tuple[Array, list[str]]], numbers: Mapping[str, Array]
    ) -> Table:
        """A board's columns: those that are not given hold no text, or no number."""
        count = len(key)
        coded = {name: text.get(name, (np.zeros(count, dtype=np.int64), [""])) for name in TEXT}
        columns = {"key": key} | {name: codes for name, (codes, _) in coded.items()}
        columns |= {name: numbers.get(name, np.full(count, np.nan)) for name in NUMBERS}
        return Table(columns, {name: words for name, (_, words) in coded.items()})

    def take(self, which: Array) -> Table:
        return Table({name: column[which] for name, column in self.columns.items()}, self.words)

    def __len__(self) -> int:
        return len(self.columns["key"])

    def code(self, name: str, word: str) -> int:
        return self.words[name].index(word) if word in self.words[name] else -1


def read_frame(frame: pd.DataFrame) -> Table:
    """Only the columns that are used, each there, with '' for no text and NaN for no number or an infinite one."""
    key = _objects(frame["key"]) if "key" in frame else np.full(len(frame), "", dtype=object)
    text = {name: _coded(frame[name]) for name in TEXT if name in frame}
    return Table.of(key, text, {name: _floats(frame[name]) for name in NUMBERS if name in frame})


def _objects(column: pd.Series[Any]) -> Array:
    import pandas as pd

    values = column.astype(object).to_numpy()
    return np.where(pd.isna(values), "", values) if column.hasnans else values


def _coded(column: pd.Series[Any]) -> tuple[Array, list[str]]:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, values = column.cat.codes.to_numpy(dtype=np.int64), column.cat.categories
    else:
        codes, values = pd.factorize(column)
    words = ["", *map(str, values)]
    codes = codes.astype(np.int64) + 1
    if "" in words[1:]:
        codes[codes == words.index("", 1)] = 0
    return codes, words


def _floats(column: pd.Series[Any]) -> Array:
    import pandas as pd

    if column.dtype == object or isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype)):
        column = pd.to_numeric(column.astype(object), errors="coerce")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)
