"""The document → `index.html`: one file that asks the network for nothing and reads as plain tables where scripts do not run.

A content security policy names the hashes of the one style sheet and the one script, so that nothing else on the page can act, whatever a
submission calls itself. The data lies in the page as JSON in which no `<` is left.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from qbench.boards import words as plaintext
from qbench.boards.board import Board, Cell, Row, Section
from qbench.publish.embed import embedded
from qbench.publish.figures import cost, overall
from qbench.publish.figures.loss_curves import Curve
from qbench.publish.figures.panels import Figure, styles
from qbench.publish.figures.section import figures
from qbench.publish.figures.svg import Style
from qbench.publish.plain_values import plain
from qbench.util import text

Json = dict[str, Any]
NOTE = 1000
"""Letters of a note."""
SCRIPTS = ("model.js", "stats.js", "details.js", "page.js")
FILES = {
    "leaderboard.md": "the tables as Markdown",
    "leaderboard.tex": "the tables for LaTeX, with booktabs",
    "cells.csv": "a line a cell",
    "runs.parquet": "a row a run, everything that is stored",
    "board.json": "this page's data",
    "board.schema.json": "what board.json holds",
    "SHA256SUMS": "for sha256sum --check",
}


def index(doc: Json, board: Board, losses: Mapping[str, Curve]) -> str:
    style, script = _read("page.css"), "\n".join(_bare(_read(name)) for name in SCRIPTS)
    looks = styles(doc["sections"])
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    return environment.from_string(_read("index.html.jinja")).render(
        doc=doc,
        summary=_summary(doc),
        facts=_facts(doc),
        overall=_overall(doc, looks),
        sections=[
            _section(s, section, looks, losses)
            for s, section in zip(doc["sections"], board.sections, strict=True)
        ],
        files=list(FILES.items()),
        machines=_machines(doc),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(embedded(doc)),
    )


def _read(name: str) -> str:
    return (resources.files("qbench.publish.site") / "templates" / name).read_text(encoding="utf-8")


def _bare(script: str) -> str:
    """Without indentation and lines of comment: no template of ours goes over a line's end."""
    lines = map(str.strip, script.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _hash(words: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(words.encode()).digest()).decode()


# ---- words ----


def _summary(doc: Json) -> str:
    sections = doc["sections"]
    methods = {row["entrant"] for s in sections for row in s["rows"]}
    tasks = {(s["task"], s["size"]) for s in sections}
    formats = {c["format"] for s in sections for c in s["columns"]}
    seeds = sorted({s["seeds"] for s in sections})
    counts = (
        text.count(len(methods), "entrant"),
        text.count(len(tasks), "task"),
        text.count(len(formats), "format"),
    )
    each = text.span(tuple(map(float, seeds)))
    return (
        f"{', '.join(counts)}, {each} seed{'s' * (each != '1')}: {text.count(doc['runs'], 'run')}."
    )


def _facts(doc: Json) -> list[str]:
    when = " to ".join(dict.fromkeys(t[:10] for t in (doc["started"], doc["finished"]) if t))
    ranked = any(row["rank"] for s in doc["sections"] for row in s["rows"])
    rule = (
        "Entrants that cannot be told apart share a range of ranks."
        if ranked
        else f"Unranked: ranks need {doc['ranked_from']} shared seeds."
    )
    track = (
        "Every entrant keeps the recipe of its own paper."
        if doc["track"] == "as-published"
        else "One loop, start, data order and budget for everyone."
    )
    return [f"{track} {rule}{f' Trained {when}.' if when else ''}"]


def _machines(doc: Json) -> list[str]:
    lines = []
    for e in doc["environments"]:
        commit = (
            f"commit {str(e['commit_id'])[:12]}{' with changes' if e['dirty'] else ''}"
            if e.get("commit_id")
            else "no commit"
        )
        words = (
            f"qbench {e['qbench']}",
            commit,
            f"torch {e['torch']}",
            f"Python {e['python']}",
            e["cpu"],
            f"device {e['device']}",
        )
        lines.append(", ".join(text.plain(w, 60) for w in words if w and "None" not in str(w)))
    return list(dict.fromkeys(lines))


def _key(used: list[Style]) -> list[Json]:
    return [{"number": s.number, "name": s.name[:60], "swatch": swatch(s)} for s in used]


def _drawn(found: list[Figure]) -> list[Json]:
    return [
        {
            "name": f.name,
            "title": f.title,
            "caption": f.caption,
            "panels": [p.markup() for p in f.panels],
        }
        for f in found
    ]


def _overall(doc: Json, looks: Mapping[str, Style]) -> Json | None:
    if not doc["overall"]:
        return None
    drawn = _drawn(overall.figures(doc["overall"], looks))
    key = _key([looks[row["entrant"]] for row in doc["overall"]["rows"]])
    return (
        {
            "key": key,
            "figures": drawn,
            "notes": doc["overall"]["notes"],
            "cells": text.count(doc["overall"]["cells"], "cell"),
        }
        if drawn
        else None
    )


# ---- tables ----


def _section(
    doc: Json, section: Section, looks: Mapping[str, Style], losses: Mapping[str, Curve]
) -> Json:
    heading = doc["heading"].removeprefix(doc["title"]).removeprefix(": ")
    return {
        "title": doc["title"],
        "metric": heading,
        "setting": ", ".join(
            filter(None, (doc["setting"], f"minimum effect {section.minimum_effect:g}"))
        ),
        "ranking": _sentence(plaintext.ranking(section)),
        "caption": text.plain(f"{doc['heading']}; {doc['details']}", NOTE),
        "columns": [
            {"format": c["format"], "lines": plaintext.head_lines(own)}
            for c, own in zip(doc["columns"], section.columns, strict=True)
        ],
        "costs": plaintext.COSTS,
        "rows": [
            _row(d, row, section, looks, n)
            for n, (d, row) in enumerate(zip(doc["rows"], section.rows, strict=True))
        ],
        "notes": [text.plain(note, NOTE) for note in doc["notes"]],
        "downstream": _downstream(section, looks),
        "key": _key([looks[row["entrant"]] for row in doc["rows"]]),
        "figures": _drawn(figures(doc, looks, losses)),
        "untold": cost.unknown_time(doc),
    }


def _downstream(section: Section, looks: Mapping[str, Style]) -> Json | None:
    """A table under the section's, plain: who, under which format, and what came of each task."""
    if not section.downstream:
        return None
    formats = [column.format for column in section.columns]
    return {
        "caption": plaintext.DOWNSTREAM,
        "exams": [
            {"task": text.plain(exam.task, 60), "lines": plaintext.exam_lines(exam)}
            for exam in section.downstream
        ],
        "lines": [
            {
                "number": (look := looks[plain(line.row.entrant)]).number,
                "column": "" if line.row.spans else formats.index(line.format),
                "swatch": swatch(look),
                "name": text.plain(line.row.entrant, 60),
                "format": text.plain(line.format),
                "words": line.words,
            }
            for line in plaintext.downstream(section)
        ],
    }


def _row(doc: Json, row: Row, section: Section, looks: Mapping[str, Style], place: int) -> Json:
    look = looks[doc["entrant"]]
    trust = sorted({t for c in doc["cells"] for t in c["runs"]["trust"]} - {"own"})
    last = row.role and (place + 1 == len(section.rows) or not section.rows[place + 1].role)
    return {
        "classes": " ".join(
            filter(
                None,
                (
                    {"reference": "refrow", "control": "ctlrow"}.get(row.role, ""),
                    "lastcontrol" if last else "",
                ),
            )
        ),
        "number": look.number,
        "swatch": swatch(look),
        "name": breakable(text.plain(row.entrant, 60)),
        "tags": ["reconstructed"] * row.reconstructed + trust,
        "rank": plaintext.rank(row) or plaintext.NONE,
        "cells": [
            _cell(d, cell, row, section) for d, cell in zip(doc["cells"], row.cells, strict=True)
        ],
        "costs": plaintext.costs(row.cost),
    }


def _cell(doc: Json, cell: Cell, row: Row, section: Section) -> Json:
    state = (
        "best"
        if cell.best
        else "failed"
        if cell.state == "failed"
        else ""
        if cell.score
        else "none"
    )
    return {
        "id": doc["id"],
        "classes": " ".join(
            filter(None, (state, "span" if row.spans and len(section.columns) > 1 else ""))
        ),
        "linked": cell.state != "absent",
        "span": max(len(section.columns), 1) if row.spans else 0,
        "score": plaintext.score(cell, section.digits),
        "marks": "†" * bool(cell.audits_failed) + ",".join(map(str, cell.notes)),
        "gap": plaintext.gap(cell) if cell.score and not row.spans else "",
        "chosen": plaintext.chosen(cell),
    }


def swatch(style: Style) -> Markup:
    """The mark of an entrant beside its name: one element, drawn by the style sheet."""
    return Markup('<i class="w {} h{}"></i>').format(style.colour, style.shape)


def breakable(name: str) -> Markup:
    """A name that may go on in the next line after its punctuation, as after a blank, and nowhere within a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[,;:/|_])(?=\w)", name))


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."
