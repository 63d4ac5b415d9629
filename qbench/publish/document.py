"""A board and its runs → one document, plain data: what `board.json` holds and what the page computes with.

`qbench/schemas/site.schema.json` describes it, strictly. Runs lie in their cells as columns, machines and recipes in lists that runs and
cells point into, so that a thousand runs take a hundred kilobytes. Scores of runs keep every digit, since ranks are computed from
them; other numbers have twelve. All text has passed `text.plain`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qbench.boards import words as plaintext
from qbench.boards.board import Board, Cell, Cost, Exam, Row, Section
from qbench.boards.row_groups import parameters
from qbench.boards.section import RANKED_FROM
from qbench.publish import summary_data
from qbench.publish.plain_values import (
    Json,
    estimate,
    known,
    plain,
    score,
    short,
    spelled,
    tidied,
    whole,
    word,
)
from qbench.stats.intervals import CONFIDENCE
from qbench.util.redact_paths import unplaced

if TYPE_CHECKING:
    import pandas as pd

    from qbench.analysis.summary import Summary


SITE_VERSION = 1
ENVIRONMENT = (
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
SPEC = (
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


@dataclass(frozen=True)
class About:
    """What is known of a board beside its table."""

    name: str
    title: str = ""
    track: str = "fair"
    sweep: str = ""
    """The sweep file."""


def document(
    about: About, board: Board, runs: pd.DataFrame, summary: Summary | None = None
) -> Json:
    """The same to the byte for the same board and runs, in whatever order these come."""
    book = Book(runs)
    sections = [_section(section, book) for section in board.sections]
    if summary:
        summary_data.add(sections, board, summary)
    return {
        "$schema": "board.schema.json",
        "site_version": SITE_VERSION,
        "board": plain(about.name),
        "title": plain(about.title or about.name),
        "track": about.track,
        "confidence": CONFIDENCE,
        "ranked_from": RANKED_FROM,
        "runs": len(book.rows),
        "used": sum(
            len(cell["runs"]["key"])
            for section in sections
            for row in section["rows"]
            for cell in row["cells"]
        ),
        "started": book.edge("started", min),
        "finished": book.edge("finished", max),
        "sweep": "\n".join(plain(unplaced(line), keep=True) for line in about.sweep.splitlines()),
        "legend": [plain(line) for line in plaintext.legend(board)],
        "notes": [plain(note) for note in board.notes],
        "environments": [dict(e) for e in book.environments],
        "settings": [dict(s) for s in book.settings],
        "overall": summary_data.overall(summary) if summary else None,
        "sections": sections,
    }


class Book:
    """The runs of a board by their keys, one attempt each, and the lists that they point into."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self.rows = {str(row["key"]): row for row in _one_attempt(runs)}
        self.environments: list[Json] = []
        self.settings: list[Json] = []
        self._places: dict[str, int] = {}

    def edge(self, name: str, which: Any) -> str:
        """The earliest or the latest of a column of times."""
        return str(
            which(
                (str(row[name]) for row in self.rows.values() if known(row.get(name))), default=""
            )
        )

    def environment(self, row: Mapping[str, Any]) -> int:
        return self._number(self.environments, {name: word(row.get(name)) for name in ENVIRONMENT})

    def setting(self, row: Mapping[str, Any]) -> int:
        """What was configured for all seeds of a cell, beside the method's own parameters."""
        found = {
            name: parameters(str(row[name]))
            if name in ("task_params", "recipe")
            else word(row.get(name))
            for name in SPEC
            if name in row
        }
        return self._number(self.settings, tidied(found))

    def _number(self, listed: list[Json], value: Json) -> int:
        spelled = json.dumps(value, sort_keys=True)
        if spelled not in self._places:
            self._places[spelled] = len(listed)
            listed.append(value)
        return self._places[spelled]


def _one_attempt(runs: pd.DataFrame) -> Iterable[Mapping[str, Any]]:
    """Of several attempts at a key the one that the board counts (`tidy`): an outcome before a mishap, our own before a merged one."""
    kept = runs[runs["key"].notna() & (runs["key"] != "")]
    own = kept["trust"].isna() if "trust" in kept else kept["key"].notna()
    good = kept["state"] == "ok"
    merit = kept.assign(
        _outcome=good | (kept["reason"] == "diverged"),
        _own=own,
        _good=good & own,
        _number=kept["attempt"].where(own, -kept["attempt"]),
    )
    ordered = merit.sort_values(["key", "_outcome", "_own", "_good", "_number"], kind="stable")
    frame = ordered.drop_duplicates("key", keep="last").drop(
        columns=["_outcome", "_own", "_good", "_number"]
    )
    names = list(map(str, frame))
    columns = [
        frame[name].astype(object).where(frame[name].notna(), None).to_numpy() for name in names
    ]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _section(section: Section, book: Book) -> Json:
    formats = [plain(column.format) for column in section.columns]
    return {
        "task": plain(section.task),
        "size": plain(section.size),
        "title": plain(section.title),
        "heading": plain(plaintext.heading(section)),
        "setting": plain(section.setting),
        "details": plain(plaintext.details(section)),
        "metric": plain(section.metric),
        "unit": plain(section.unit),
        "better": section.better,
        "digits": section.digits,
        "minimum_effect": spelled(section.minimum_effect),
        "seeds": section.seeds,
        "columns": [
            {
                "format": name,
                "levels": list(c.levels),
                "bits_per_weight": [spelled(b) for b in c.bits_per_weight],
            }
            for name, c in zip(formats, section.columns, strict=True)
        ],
        "rows": [_row(row, section, formats, book) for row in section.rows],
        "notes": [plain(note) for note in section.notes],
        "downstream": [_exam(exam) for exam in section.downstream],
    }


def _exam(exam: Exam) -> Json:
    return {
        "id": plain(exam.id),
        "task": plain(exam.task),
        "sha256": plain(exam.sha256),
        "metric": plain(exam.metric),
        "better": plain(exam.better),
        "items": exam.items,
        "chance": spelled(exam.chance),
        "ceiling": spelled(exam.ceiling),
    }


def _row(row: Row, section: Section, formats: Sequence[str], book: Book) -> Json:
    names = ["fp32"] if row.spans else formats
    return {
        "entrant": plain(row.entrant),
        "method": plain(row.method),
        "version": row.version,
        "params": tidied(parameters(row.params)),
        "provenance": "reconstructed" if row.reconstructed else "paper",
        "role": row.role,
        "main": row.main,
        "retired": row.retired,
        "rank": list(row.rank) if row.rank else None,
        "cost": _cost(row.cost),
        "cells": [
            _cell(cell, row, section, name, book)
            for cell, name in zip(row.cells, names, strict=True)
        ],
    }


def _cost(cost: Cost) -> Json:
    return {
        "step_ratio": spelled(cost.step_ratio),
        "step_runs": cost.step_runs,
        "train_s": spelled(cost.train_s),
        "peak_memory_bytes": cost.peak_memory_bytes,
        "audits": cost.audits,
        "audits_failed": cost.audits_failed,
    }


def _cell(cell: Cell, row: Row, section: Section, fmt: str, book: Book) -> Json:
    found = sorted(
        (book.rows[key] for key in cell.keys if key in book.rows),
        key=lambda r: (whole(r.get("seed")) or 0, str(r["key"])),
    )
    return {
        "id": cell_id(section, row, fmt),
        "format": fmt,
        "state": cell.state,
        "seeds": cell.seeds,
        "asked": cell.asked,
        "score": estimate(cell.score),
        "gap": estimate(cell.gap),
        "rr": spelled(cell.rr),
        "bits_per_weight": spelled(cell.bits_per_weight),
        "levels": cell.levels,
        "lr": spelled(cell.lr),
        "rates": cell.rates,
        "failures": {plain(reason): count for reason, count in cell.failures.items()},
        "message": plain(cell.message),
        "audits_failed": cell.audits_failed,
        "best": cell.best,
        "notes": list(cell.notes),
        "chosen": tidied(cell.chosen),
        "at_edge": [plain(name) for name in cell.at_edge],
        "trials": cell.trials,
        "best_of": [spelled(x) for x in cell.best_of],
        "best_of_share": spelled(cell.best_of_share),
        "downstream": {
            plain(exam): {"score": estimate(grade.score), "seeds": grade.seeds}
            for exam, grade in cell.downstream.items()
        },
        "cost": None,
        "front": False,
        "equal_time": None,
        "setting": book.setting(found[0]) if found else None,
        "runs": _runs(found, book),
    }


def _runs(rows: Sequence[Mapping[str, Any]], book: Book) -> Json:
    """Seed by seed, as columns."""
    return {
        "key": [str(row["key"]) for row in rows],
        "seed": [whole(row.get("seed")) for row in rows],
        "attempt": [whole(row.get("attempt")) for row in rows],
        "state": [
            plain(row["state"] if row["state"] != "failed" else row.get("reason") or "failed")
            for row in rows
        ],
        "score": [score(row) for row in rows],
        "audit": [
            None if not known(row.get("audit_passed")) else bool(row["audit_passed"])
            for row in rows
        ],
        "trust": [plain(row["trust"]) if known(row.get("trust")) else "own" for row in rows],
        "environment": [book.environment(row) for row in rows],
        "train_s": [short(row.get("train_s")) for row in rows],
    }


def cell_id(section: Section, row: Row, fmt: str) -> str:
    """What a link to a cell says: readable, and the same whoever else is on the board."""
    identity = json.dumps(
        [section.task, section.title, section.setting, row.entrant, row.params, fmt]
    )
    words = (
        re.sub(r"[^a-z0-9]+", "-", f"{section.task} {section.size} {row.entrant} {fmt}".lower())
        .strip("-")[:48]
        .strip("-")
    )
    return f"{words}-{hashlib.sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
