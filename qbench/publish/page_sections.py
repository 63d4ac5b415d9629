"""Prepare the sections of the page for the template: tables as words, figures as markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from qbench.boards import board_text
from qbench.boards.board import BoardCell, Row, Section
from qbench.publish.figures import cost
from qbench.publish.figures.loss_curves import LossCurve
from qbench.publish.figures.panels import Figure, Styles
from qbench.publish.figures.section import draw_section_figures
from qbench.publish.figures.svg import EntrantStyle
from qbench.publish.plain_values import to_plain_text
from qbench.util import text

Json = dict[str, Any]
MAX_NAME, MAX_NOTE = 60, 1000
"""Letters of a name and of a note on the page."""


def prepare_section(
    doc: Json, section: Section, styles: Styles, curves: Mapping[str, LossCurve]
) -> Json:
    """Return what the template shows of a section; `doc` is the section in the document."""
    ranking = board_text.describe_ranking(section)
    setting = (doc["setting"], f"minimum effect {section.minimum_effect:g}")
    return {
        "title": doc["title"],
        "metric": doc["heading"].removeprefix(doc["title"]).removeprefix(": "),
        "setting": ", ".join(filter(None, setting)),
        "ranking": f"{ranking[:1].upper()}{ranking[1:]}.",
        "caption": text.clean_line(f"{doc['heading']}; {doc['details']}", MAX_NOTE),
        "columns": [
            {"format": data["format"], "lines": board_text.describe_column(column)}
            for data, column in zip(doc["columns"], section.columns, strict=True)
        ],
        "costs": board_text.COST_HEADS,
        "rows": [
            _prepare_row(doc["rows"][n], section, n, styles) for n in range(len(section.rows))
        ],
        "notes": [text.clean_line(note, MAX_NOTE) for note in doc["notes"]],
        "downstream": _prepare_downstream(section, styles),
        "legend": render_legend([styles[row["entrant"]] for row in doc["rows"]]),
        "figures": render_figures(draw_section_figures(doc, styles, curves)),
        "missing_figure": cost.explain_missing_equal_time(doc),
    }


def render_figures(figures: Sequence[Figure]) -> list[Json]:
    """Return figures with their panels as markup."""
    return [
        {
            "name": figure.name,
            "title": figure.title,
            "caption": figure.caption,
            "panels": [panel.to_markup() for panel in figure.panels],
        }
        for figure in figures
    ]


def render_legend(styles: Sequence[EntrantStyle]) -> list[Json]:
    """Return the names of entrants with their marks."""
    return [
        {"number": style.number, "name": style.name[:MAX_NAME], "swatch": render_swatch(style)}
        for style in styles
    ]


def render_swatch(style: EntrantStyle) -> Markup:
    """Return the mark in front of an entrant's name, an element that the style sheet draws."""
    return Markup('<i class="w {} h{}"></i>').format(style.colour, style.shape)


def add_line_breaks(name: str) -> Markup:
    """Return a name that may break after punctuation as well as at blanks, never in a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[,;:/|_])(?=\w)", name))


def _prepare_row(doc: Json, section: Section, place: int, styles: Styles) -> Json:
    row, style = section.rows[place], styles[doc["entrant"]]
    # Runs that were merged from elsewhere say how far they are trusted.
    trust = sorted({t for cell in doc["cells"] for t in cell["runs"]["trust"]} - {"own"})
    return {
        "classes": _list_row_classes(section, place),
        "number": style.number,
        "swatch": render_swatch(style),
        "name": add_line_breaks(text.clean_line(row.entrant, MAX_NAME)),
        "tags": ["reconstructed"] * row.reconstructed + trust,
        "rank": board_text.format_rank(row) or board_text.NO_VALUE,
        "cells": [
            _prepare_cell(data["id"], cell, row, section)
            for data, cell in zip(doc["cells"], row.cells, strict=True)
        ],
        "costs": board_text.format_costs(row.cost),
    }


def _list_row_classes(section: Section, place: int) -> str:
    role = section.rows[place].role
    rest = section.rows[place + 1 : place + 2]
    classes = [{"reference": "refrow", "control": "ctlrow"}.get(role, "")]
    if role and not (rest and rest[0].role):
        classes.append("lastcontrol")  # a line separates the controls from the others
    return " ".join(filter(None, classes))


def _prepare_cell(identity: str, cell: BoardCell, row: Row, section: Section) -> Json:
    columns = len(section.columns)
    classes = (_get_cell_class(cell), "span" if row.spans_columns and columns > 1 else "")
    return {
        "id": identity,
        "classes": " ".join(filter(None, classes)),
        "linked": cell.state != "absent",
        "span": max(columns, 1) if row.spans_columns else 0,
        "score": board_text.format_score(cell, section.digits),
        "marks": "†" * bool(cell.audits_failed) + ",".join(map(str, cell.notes)),
        "gap": board_text.format_gap(cell) if cell.score and not row.spans_columns else "",
        "chosen": board_text.format_chosen_values(cell),
    }


def _get_cell_class(cell: BoardCell) -> str:
    if cell.best:
        return "best"
    if cell.state == "failed":
        return "failed"
    return "" if cell.score else "none"


def _prepare_downstream(section: Section, styles: Styles) -> Json | None:
    """Return the table of downstream tasks, or None if the section's runs were asked none."""
    if not section.downstream:
        return None
    exams = [
        {
            "task": text.clean_line(exam.task, MAX_NAME),
            "lines": board_text.describe_downstream_task(exam),
        }
        for exam in section.downstream
    ]
    formats = [column.format for column in section.columns]
    lines = []
    for line in board_text.list_downstream_lines(section):
        style = styles[to_plain_text(line.row.entrant)]
        lines.append(
            {
                "number": style.number,
                # A filter of formats hides the lines of a column; full precision belongs to none.
                "column": "" if line.row.spans_columns else formats.index(line.format),
                "swatch": render_swatch(style),
                "name": text.clean_line(line.row.entrant, MAX_NAME),
                "format": text.clean_line(line.format),
                "words": line.scores,
            }
        )
    return {"caption": board_text.DOWNSTREAM_TITLE, "exams": exams, "lines": lines}
