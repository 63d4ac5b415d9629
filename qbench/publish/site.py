"""`qbench publish`: write a board as a folder for any web server, or to be opened from a disk.

`document` holds the board and its runs as plain data; `page` makes index.html of it, with `figures`
and `templates`; `latex` writes leaderboard.tex; `admission` refuses a board that must not be
published; `site_folder` writes the files. The same rows give the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.boards.csv_files import to_csv
from qbench.boards.markdown import to_markdown
from qbench.errors import UsageError
from qbench.publish import admission, latex, page, site_folder
from qbench.publish.document import BoardDescription, build_document
from qbench.publish.figures.loss_curves import average_loss_curves

if TYPE_CHECKING:
    import pandas as pd

    from qbench.analysis.results import Results
    from qbench.analysis.summary import BoardSummary
    from qbench.boards.board import Board

__all__ = ["PublishedSite", "build_site_files", "publish_site"]


SCHEMA_FILE = "board.schema.json"
"""The name of the schema in the site, where it describes board.json."""


@dataclass(frozen=True)
class PublishedSite:
    """What was written: the fields are those of `qbench publish --json`."""

    board: str
    folder: str
    runs: int
    sections: int
    sizes: dict[str, int]
    """Bytes of each file, by its name."""


def publish_site(results: Results, name: str | None, out: Path) -> PublishedSite:
    """Write the site of a board to the folder `out` and return what was written.

    Without a name it is the site of the latest board.
    """
    name = results.board_name(name)
    board, runs = results.board(name), results.board_runs(name)
    admission.refuse_unpublishable(name, board, runs)
    about, losses = _read_description(results, name), _read_losses(results, name)
    files = build_site_files(about, board, runs, losses, results.summary(name))
    try:
        site_folder.write_site_folder(files, out)
    except OSError as error:
        raise UsageError(
            f"{out}: the site cannot be written there: {error.strerror or error}"
        ) from None
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return PublishedSite(name, str(out), len(runs), len(board.sections), sizes)


def build_site_files(
    about: BoardDescription,
    board: Board,
    runs: pd.DataFrame,
    losses: pd.DataFrame,
    summary: BoardSummary | None = None,
) -> dict[str, bytes]:
    """Return the files of the site by name, without their checksums.

    Args:
        about: the board's name and sweep file.
        board: the tables.
        runs: one row per attempt at a run.
        losses: one row per recorded loss, with the columns key, step and loss.
        summary: the view over all cells, if the page shows it.
    """
    doc = build_document(about, board, runs, summary)
    cells = {
        key: cell["id"]
        for section in doc["sections"]
        for row in section["rows"]
        for cell in row["cells"]
        for key in cell["runs"]["key"]
    }
    texts = {
        "index.html": page.render_page(doc, board, average_loss_curves(losses, cells)),
        "board.json": json.dumps(doc, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        SCHEMA_FILE: read_site_schema(),
        "cells.csv": to_csv(board),
        "leaderboard.md": to_markdown(board),
        "leaderboard.tex": latex.to_latex(board),
    }
    files = {name: text.encode() for name, text in texts.items()}
    return files | {"runs.parquet": site_folder.encode_parquet(runs)}


def read_site_schema() -> str:
    """Return the JSON schema of the document."""
    return (resources.files("qbench") / "schemas" / "site.schema.json").read_text(encoding="utf-8")


def _read_description(results: Results, name: str) -> BoardDescription:
    row = results.query("SELECT title, track, sweep FROM boards WHERE board = ?", [name]).iloc[0]
    title, track, sweep = (value if isinstance(value, str) else "" for value in row)
    return BoardDescription(name, title, track, sweep)


def _read_losses(results: Results, name: str) -> pd.DataFrame:
    """Return the training losses of a board's finished runs, of the last attempt at each."""
    attempts = """
        SELECT r.key, max(r.attempt) AS attempt FROM runs r JOIN entries e USING (key)
        WHERE e.board = ? AND r.state = 'ok' GROUP BY r.key
    """
    return results.query(
        f"SELECT key, step, loss FROM curves JOIN ({attempts}) USING (key, attempt) "
        "ORDER BY key, step",
        [name],
    )
