"""Render `index.html` from the document.

The page is one file that loads nothing from the network, and without scripts it still is a set of
plain tables with figures. Names on it may come from strangers: a content security policy lists the
hashes of the page's one style sheet and one script, so that nothing else on it can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from qbench.boards.board import Board
from qbench.publish.embed import encode_page_data
from qbench.publish.figures import overall
from qbench.publish.figures.loss_curves import LossCurve
from qbench.publish.figures.panels import Styles, assign_styles
from qbench.publish.page_sections import prepare_section, render_figures, render_legend
from qbench.util import text

Json = dict[str, Any]
SCRIPTS = ("model.js", "details.js", "page.js")
FILES = {
    "leaderboard.md": "the tables as Markdown",
    "leaderboard.tex": "the tables for LaTeX, with booktabs",
    "cells.csv": "one line per cell",
    "runs.parquet": "one row per run, with everything that is stored about it",
    "board.json": "the data of this page",
    "board.schema.json": "the JSON schema of board.json",
    "SHA256SUMS": "checksums of all files, for sha256sum --check",
}


def render_page(doc: Json, board: Board, curves: Mapping[str, LossCurve]) -> str:
    """Return the page of a board; `curves` are the training losses by cell."""
    style = _read_template("page.css")
    script = "\n".join(_strip_comments(_read_template(name)) for name in SCRIPTS)
    styles = assign_styles(doc["sections"])
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    return environment.from_string(_read_template("index.html.jinja")).render(
        doc=doc,
        summary=_summarize_board(doc),
        rules=_describe_rules(doc),
        overall=_prepare_overall(doc, styles),
        sections=[
            prepare_section(data, section, styles, curves)
            for data, section in zip(doc["sections"], board.sections, strict=True)
        ],
        files=list(FILES.items()),
        machines=_list_machines(doc),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash_for_policy(style),
        script_hash=_hash_for_policy(script),
        data=Markup(encode_page_data(doc)),
    )


def _read_template(name: str) -> str:
    return (resources.files("qbench.publish") / "templates" / name).read_text(encoding="utf-8")


def _strip_comments(script: str) -> str:
    """Return a script without indentation, empty lines and lines of comment.

    This is safe because no string in our scripts goes over the end of a line.
    """
    lines = map(str.strip, script.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _hash_for_policy(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


# ---- words above and below the tables ----


def _summarize_board(doc: Json) -> str:
    """Return `7 entrants, 2 tasks, 2 formats, 10 seeds: 1,050 runs.`."""
    sections = doc["sections"]
    entrants = {row["entrant"] for section in sections for row in section["rows"]}
    tasks = {(section["task"], section["size"]) for section in sections}
    formats = {column["format"] for section in sections for column in section["columns"]}
    seeds = text.format_range(tuple(sorted({float(section["seeds"]) for section in sections})))
    counts = (
        text.format_count(len(entrants), "entrant"),
        text.format_count(len(tasks), "task"),
        text.format_count(len(formats), "format"),
        f"{seeds} seed{'s' * (seeds != '1')}",
    )
    return f"{', '.join(counts)}: {text.format_count(doc['runs'], 'run')}."


def _describe_rules(doc: Json) -> str:
    """Return how the entrants were trained and ranked, and when."""
    training = "All entrants had the same training loop, start, data order and budget."
    if doc["track"] == "as-published":
        training = "Each entrant was trained with the recipe of its own paper."
    ranking = f"They are not ranked: ranks need {doc['ranked_from']} shared seeds."
    if any(row["rank"] for section in doc["sections"] for row in section["rows"]):
        ranking = "Entrants whose difference is not clear share a range of ranks."
    days = dict.fromkeys(time[:10] for time in (doc["started"], doc["finished"]) if time)
    trained = f" Trained {' to '.join(days)}." if days else ""
    return f"{training} {ranking}{trained}"


def _list_machines(doc: Json) -> list[str]:
    """Return a line for each combination of code and machine."""
    lines = []
    for environment in doc["environments"]:
        commit = "no commit"
        if environment.get("commit_id"):
            changes = " with changes" if environment["dirty"] else ""
            commit = f"commit {str(environment['commit_id'])[:12]}{changes}"
        parts = (
            f"qbench {environment['qbench']}",
            commit,
            f"torch {environment['torch']}",
            f"Python {environment['python']}",
            environment["cpu"],
            f"device {environment['device']}",
        )
        # Merged runs may not say everything about their machine.
        known = [part for part in parts if part and "None" not in str(part)]
        lines.append(", ".join(text.clean_line(part, 60) for part in known))
    # Machines may differ in what is not shown here.
    return list(dict.fromkeys(lines))


def _prepare_overall(doc: Json, styles: Styles) -> Json | None:
    """Return the view over all cells for the template, or None if there is nothing to show."""
    data = doc["overall"]
    figures = overall.draw_overall_figures(data, styles) if data else []
    if not figures:
        return None
    return {
        "legend": render_legend([styles[row["entrant"]] for row in data["rows"]]),
        "figures": render_figures(figures),
        "notes": data["notes"],
        "cells": text.format_count(data["cells"], "cell"),
    }
