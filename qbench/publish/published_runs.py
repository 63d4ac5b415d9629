"""The runs of a board by their keys, with the lists of machines and settings they point into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qbench.boards.row_groups import parse_parameters
from qbench.publish.plain_values import Json, is_known, to_int, to_json_value, to_plain_value

if TYPE_CHECKING:
    import pandas as pd


ENVIRONMENT_COLUMNS = (
    "qbench",
    "torch",
    "commit_id",
    "dirty",
    "python",
    "platform",
    "cpu",
    "device",
    "device_name",
    "threads",
)
SETTING_COLUMNS = (
    "task_version",
    "task_params",
    "data",
    "start",
    "weights_format",
    "weights_granularity",
    "act_format",
    "act_granularity",
    "recipe",
)


class PublishedRuns:
    """The runs of a board, one attempt at each, and what they have in common.

    `environments` and `settings` grow while cells are described: each is stored once, and its place
    in the list is what a run or a cell refers to.
    """

    def __init__(self, runs: pd.DataFrame) -> None:
        self.rows = {str(row["key"]): row for row in _select_attempts(runs)}
        self.environments: list[Json] = []
        self.settings: list[Json] = []
        self._places: dict[str, int] = {}

    def find_runs(self, keys: Iterable[str]) -> list[Mapping[str, Any]]:
        """Return the runs with these keys, ordered by seed and key."""
        runs = [self.rows[key] for key in keys if key in self.rows]
        return sorted(runs, key=lambda row: (to_int(row.get("seed")) or 0, str(row["key"])))

    def list_times(self, column: str) -> list[str]:
        """Return the known times in a column; as ISO text they sort by time."""
        return [str(row[column]) for row in self.rows.values() if is_known(row.get(column))]

    def add_environment(self, row: Mapping[str, Any]) -> int:
        """Return the place of a run's code and machine in `environments`."""
        environment = {name: to_json_value(row.get(name)) for name in ENVIRONMENT_COLUMNS}
        return self._add_once(self.environments, environment)

    def add_setting(self, row: Mapping[str, Any]) -> int:
        """Return the place in `settings` of what all seeds of a cell have in common.

        The parameters of the method are not part of it.
        """
        setting = {
            name: parse_parameters(str(row[name]))
            if name in ("task_params", "recipe")
            else to_json_value(row.get(name))
            for name in SETTING_COLUMNS
            if name in row
        }
        return self._add_once(self.settings, to_plain_value(setting))

    def _add_once(self, values: list[Json], value: Json) -> int:
        written = json.dumps(value, sort_keys=True)
        if written not in self._places:
            self._places[written] = len(values)
            values.append(value)
        return self._places[written]


def _select_attempts(runs: pd.DataFrame) -> Sequence[Mapping[str, Any]]:
    """Return one attempt at each key: the one that the board counts (`run_table.keep_one_attempt`).

    An attempt that ended (in a score or by diverging) goes before one that was interrupted, an own
    one before one that was merged. Among the rest our latest and the first merged one win.
    """
    keyed = runs[runs["key"].notna() & (runs["key"] != "")]
    own = keyed["trust"].isna() if "trust" in keyed else keyed["key"].notna()
    finished = keyed["state"] == "ok"
    order = {
        "_ended": finished | (keyed["reason"] == "diverged"),
        "_own": own,
        "_own_finished": finished & own,
        "_number": keyed["attempt"].where(own, -keyed["attempt"]),
    }
    ranked = keyed.assign(**order).sort_values(["key", *order], kind="stable")
    frame = ranked.drop_duplicates("key", keep="last").drop(columns=list(order))
    names = list(map(str, frame))
    # Object columns keep integers and None as they are; a float column would have NaN for None.
    columns = [
        frame[name].astype(object).where(frame[name].notna(), None).to_numpy() for name in names
    ]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
