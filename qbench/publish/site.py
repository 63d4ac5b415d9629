"""`qbench publish`: a board → a folder that can be put on any web server, or opened from a disk. The same to the byte for the same rows.

document    the board and its runs as plain data, with overview and values; everything else is made of it
gate        what is refused
page        index.html, from templates/
figures     inline SVG, with effort and overall; on sketch, axes and svg; curves for the losses
latex       leaderboard.tex
archive     runs.parquet, SHA256SUMS, and the folder in one rename
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
from qbench.publish.document import About, document
from qbench.publish.figures.loss_curves import curves

if TYPE_CHECKING:
    import pandas as pd

    from qbench.analysis.results import Results
    from qbench.analysis.summary import Summary
    from qbench.boards.board import Board

__all__ = ["Site", "publish", "site"]


SCHEMA = "board.schema.json"
"""In the site, where it describes board.json; in qbench/schemas it is the site's."""


@dataclass(frozen=True)
class Site:
    """What was written."""

    board: str
    folder: str
    runs: int
    sections: int
    sizes: dict[str, int]


def publish(results: Results, name: str | None, out: Path) -> Site:
    """Write the site of a board, the latest by default."""
    name = results.board_name(name)
    board, runs = results.board(name), results.board_runs(name)
    admission.admit(name, board, runs)
    files = site(_about(results, name), board, runs, _losses(results, name), results.summary(name))
    try:
        site_folder.place(files, out)
    except OSError as error:
        raise UsageError(
            f"{out}: the site cannot be written there: {error.strerror or error}"
        ) from None
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return Site(name, str(out), len(runs), len(board.sections), sizes)


def site(
    about: About,
    board: Board,
    runs: pd.DataFrame,
    losses: pd.DataFrame,
    summary: Summary | None = None,
) -> dict[str, bytes]:
    """The files by name, but for their sums. `losses` has a row for each point of a curve: key, step, loss."""
    doc = document(about, board, runs, summary)
    cells = {
        key: cell["id"]
        for section in doc["sections"]
        for row in section["rows"]
        for cell in row["cells"]
        for key in cell["runs"]["key"]
    }
    words = {
        "index.html": page.index(doc, board, curves(losses, cells)),
        "board.json": json.dumps(doc, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        SCHEMA: schema(),
        "cells.csv": to_csv(board),
        "leaderboard.md": to_markdown(board),
        "leaderboard.tex": latex.to_latex(board),
    }
    return {name: text.encode() for name, text in words.items()} | {
        "runs.parquet": site_folder.parquet(runs)
    }


def schema() -> str:
    return (resources.files("qbench") / "schemas" / "site.schema.json").read_text(encoding="utf-8")


def _about(results: Results, name: str) -> About:
    row = (
        results.query("SELECT title, track, sweep FROM boards WHERE board = ?", [name])
        .iloc[0]
        .to_dict()
    )
    return About(
        name, **{str(key): value if isinstance(value, str) else "" for key, value in row.items()}
    )


def _losses(results: Results, name: str) -> pd.DataFrame:
    of = "SELECT r.key, max(r.attempt) AS attempt FROM runs r JOIN entries e USING (key) WHERE e.board = ? AND r.state = 'ok' GROUP BY r.key"
    return results.query(
        f"SELECT key, step, loss FROM curves JOIN ({of}) USING (key, attempt) ORDER BY key, step",
        [name],
    )
