"""Who belongs to a board: `boards/<board>.json`, written by a sweep and read by whoever shows it.

It holds the sweep file, the cells that it came to with the keys of their runs, the cells that were skipped and why, and the default
parameters of the methods and tasks in it, so that a board can be put together without importing a plugin, and with what is missing in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError, UsageError, unknown
from qbench.runs.config import RunConfig, cell_title
from qbench.util.json_files import write_atomically

ROSTER_VERSION = 1
NEEDED = ("board", "version", "title", "made", "sweep", "seeds", "defaults", "cells")


def write(results: Path, roster: Mapping[str, Any]) -> None:
    folder = results / "boards"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{roster['board']}.json", json.dumps(roster, allow_nan=False) + "\n")


def keys_of_cell(results: Path, title: str, board: str | None = None) -> list[str]:
    """The keys of a cell's runs, the cell named as sweeps name it: `ste int4 grammar/xs`. Several boards may share it."""
    rosters = [roster for roster in read_all(results) if board in (None, roster["board"])]
    if board and not rosters:
        raise unknown("board", board, [roster["board"] for roster in read_all(results)])
    cells = [cell for roster in rosters for cell in _titles(roster)]
    chosen = {tuple(keys) for name, keys in cells if name == " ".join(title.split())}
    if not chosen:
        raise unknown("run or cell", title, {name for name, _ in cells})
    if len(chosen) > 1:
        raise UsageError(
            f"{title!r} stands for {len(chosen)} cells with other runs in each: name a board (--board), or a run by its key"
        )
    return list(next(iter(chosen)))


def _titles(roster: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for cell in roster["cells"]:
        if cell["keys"]:
            yield (
                cell_title(cell["label"], RunConfig.from_json(cell["spec"]), cell["variant"]),
                cell["keys"],
            )


def read_all(results: Path) -> Iterator[dict[str, Any]]:
    """Every board's roster in a results folder."""
    for file in sorted((results / "boards").glob("*.json")):
        try:
            roster = json.loads(file.read_bytes())
            if roster["roster_version"] != ROSTER_VERSION:
                raise QbenchError(
                    f"{file}: roster version {roster['roster_version']}; this qbench reads {ROSTER_VERSION}"
                )
            [roster[word] for word in NEEDED]
        except (ValueError, KeyError, TypeError):
            raise QbenchError(
                f"{file}: damaged; sweep the board's file again, or delete it"
            ) from None
        yield roster
