"""The members of each board: `boards/<board>.json`, written by a sweep and read by every viewer.

The file holds the sweep file, the cells of the plan with the keys of their runs, the cells that
were skipped with the reason, and the default parameters of the methods and tasks. So a board can be
built without importing a plugin, and it can name the runs that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qbench.errors import QbenchError, UsageError, unknown_name_error
from qbench.runs.config import RunConfig, format_cell_title
from qbench.util.json_files import write_atomically

BOARD_MEMBERS_VERSION = 1
REQUIRED_KEYS = ("board", "version", "title", "made", "sweep", "seeds", "defaults", "cells")


def save_board_members(results: Path, members: Mapping[str, Any]) -> None:
    """Write the members of a board to its file."""
    folder = results / "boards"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(members, allow_nan=False) + "\n"
    write_atomically(folder / f"{members['board']}.json", text)


def read_all_board_members(results: Path) -> Iterator[dict[str, Any]]:
    """Yield the members of every board in a results folder."""
    for file in sorted((results / "boards").glob("*.json")):
        try:
            members = json.loads(file.read_bytes())
            # The key in the file keeps its older name.
            version = members["roster_version"]
            if version != BOARD_MEMBERS_VERSION:
                raise QbenchError(
                    f"{file}: has version {version}; this qbench reads {BOARD_MEMBERS_VERSION}"
                )
            [members[key] for key in REQUIRED_KEYS]
        except (ValueError, KeyError, TypeError):
            raise QbenchError(
                f"{file}: damaged; sweep the board's file again, or delete it"
            ) from None
        yield members


def find_keys_of_cell(results: Path, title: str, board: str | None = None) -> list[str]:
    """Return the keys of a cell's runs.

    Args:
        title: The cell as sweeps name it: `ste int4 grammar/xs`.
        board: The board to search; by default all of them. Several boards may share a cell.
    """
    boards = [one for one in read_all_board_members(results) if board in (None, one["board"])]
    if board and not boards:
        raise unknown_name_error(
            "board", board, [one["board"] for one in read_all_board_members(results)]
        )
    cells = [cell for members in boards for cell in _list_titled_cells(members)]
    choices = {tuple(keys) for name, keys in cells if name == " ".join(title.split())}
    if not choices:
        raise unknown_name_error("run or cell", title, {name for name, _ in cells})
    if len(choices) > 1:
        raise UsageError(
            f"{title!r} names {len(choices)} cells with different runs: "
            "name a board (--board), or a run by its key"
        )
    return list(next(iter(choices)))


def _list_titled_cells(members: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the title and the keys of each cell that has runs."""
    for cell in members["cells"]:
        if cell["keys"]:
            config = RunConfig.from_json(cell["spec"])
            yield format_cell_title(cell["label"], config, cell["variant"]), cell["keys"]
