"""Build the document of a board: plain data that `board.json` holds and the page is made of.

`qbench/schemas/site.schema.json` describes it strictly. To keep it small, the runs of a cell are
stored as columns, and machines and settings as lists that runs and cells point into. Scores of runs
keep every digit, so that everything else can be computed from them; other numbers have twelve. All
text has passed `to_plain_text`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qbench.boards import board_text
from qbench.boards.board import Board, BoardCell, Cost, DownstreamTask, Row, Section
from qbench.boards.row_groups import parse_parameters
from qbench.boards.section import MIN_RANKED_SEEDS
from qbench.publish import summary_data
from qbench.publish.plain_values import (
    Json,
    estimate_to_json,
    get_run_score,
    is_known,
    round_cost,
    round_number,
    to_int,
    to_plain_text,
    to_plain_value,
)
from qbench.publish.published_runs import PublishedRuns
from qbench.stats.intervals import CONFIDENCE
from qbench.util.redact_paths import redact_paths

if TYPE_CHECKING:
    import pandas as pd

    from qbench.analysis.summary import BoardSummary


SITE_VERSION = 1


@dataclass(frozen=True)
class BoardDescription:
    """What is known about a board besides its tables."""

    name: str
    title: str = ""
    track: str = "fair"
    sweep: str = ""
    """The text of the sweep file."""


def build_document(
    about: BoardDescription, board: Board, runs: pd.DataFrame, summary: BoardSummary | None = None
) -> Json:
    """Return the document, which is the same whatever order the runs come in.

    Args:
        about: the board's name and sweep file.
        board: the tables.
        runs: one row per attempt at a run.
        summary: the view over all cells, if the page shows it.
    """
    published = PublishedRuns(runs)
    sections = [_describe_section(section, published) for section in board.sections]
    if summary:
        summary_data.add_cell_summaries(sections, board, summary)
    cells = [cell for section in sections for row in section["rows"] for cell in row["cells"]]
    # Paths of the machine are private: a sweep file may name a corpus in somebody's home folder.
    sweep = [
        to_plain_text(redact_paths(line), keep_indent=True) for line in about.sweep.splitlines()
    ]
    return {
        "$schema": "board.schema.json",
        "site_version": SITE_VERSION,
        "board": to_plain_text(about.name),
        "title": to_plain_text(about.title or about.name),
        "track": about.track,
        "confidence": CONFIDENCE,
        "ranked_from": MIN_RANKED_SEEDS,
        "runs": len(published.rows),
        "used": sum(len(cell["runs"]["key"]) for cell in cells),
        "started": min(published.list_times("started"), default=""),
        "finished": max(published.list_times("finished"), default=""),
        "sweep": "\n".join(sweep),
        "legend": [to_plain_text(line) for line in board_text.write_legend(board)],
        "notes": [to_plain_text(note) for note in board.notes],
        "environments": published.environments,
        "settings": published.settings,
        "overall": summary_data.describe_overall(summary) if summary else None,
        "sections": sections,
    }


def make_cell_id(section: Section, row: Row, fmt: str) -> str:
    """Return the name of a cell in links: readable, and independent of who else is on the board."""
    identity = json.dumps(
        [section.task, section.title, section.setting, row.entrant, row.params, fmt]
    )
    name = f"{section.task} {section.size} {row.entrant} {fmt}".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")[:48].strip("-")
    # The hash tells names apart that differ only in what the slug leaves out. A name may hold half
    # of a surrogate pair, which plain UTF-8 refuses.
    digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{slug}-{digest[:8]}"


# ---- sections, rows, cells ----


def _describe_section(section: Section, published: PublishedRuns) -> Json:
    formats = [to_plain_text(column.format) for column in section.columns]
    columns = [
        {
            "format": name,
            "levels": list(column.levels),
            "bits_per_weight": [round_number(b) for b in column.bits_per_weight],
        }
        for name, column in zip(formats, section.columns, strict=True)
    ]
    return {
        "task": to_plain_text(section.task),
        "size": to_plain_text(section.size),
        "title": to_plain_text(section.title),
        "heading": to_plain_text(board_text.describe_metric(section)),
        "setting": to_plain_text(section.setting),
        "details": to_plain_text(board_text.describe_setting(section)),
        "metric": to_plain_text(section.metric),
        "unit": to_plain_text(section.unit),
        "better": section.better,
        "digits": section.digits,
        "minimum_effect": round_number(section.minimum_effect),
        "seeds": section.seeds,
        "columns": columns,
        "rows": [_describe_row(row, section, formats, published) for row in section.rows],
        "notes": [to_plain_text(note) for note in section.notes],
        "downstream": [_describe_exam(exam) for exam in section.downstream],
    }


def _describe_exam(exam: DownstreamTask) -> Json:
    return {
        "id": to_plain_text(exam.id),
        "task": to_plain_text(exam.task),
        "sha256": to_plain_text(exam.sha256),
        "metric": to_plain_text(exam.metric),
        "better": to_plain_text(exam.better),
        "items": exam.items,
        "chance": round_number(exam.chance),
        "ceiling": round_number(exam.ceiling),
    }


def _describe_row(
    row: Row, section: Section, formats: Sequence[str], published: PublishedRuns
) -> Json:
    # Full precision has one cell, which spans all columns.
    names = ["fp32"] if row.spans_columns else formats
    return {
        "entrant": to_plain_text(row.entrant),
        "method": to_plain_text(row.method),
        "version": row.version,
        "params": to_plain_value(parse_parameters(row.params)),
        "provenance": row.provenance,
        "role": row.role,
        "main": row.main,
        "retired": row.retired,
        "rank": list(row.rank) if row.rank else None,
        "cost": _describe_cost(row.cost),
        "cells": [
            _describe_cell(cell, make_cell_id(section, row, name), name, published)
            for cell, name in zip(row.cells, names, strict=True)
        ],
    }


def _describe_cost(cost: Cost) -> Json:
    return {
        "step_ratio": round_number(cost.step_ratio),
        "step_runs": cost.step_runs,
        "train_s": round_number(cost.train_s),
        "peak_memory_bytes": cost.peak_memory_bytes,
        "audits": cost.audits,
        "audits_failed": cost.audits_failed,
    }


def _describe_cell(cell: BoardCell, identity: str, fmt: str, published: PublishedRuns) -> Json:
    runs = published.find_runs(cell.keys)
    return {
        "id": identity,
        "format": fmt,
        "state": cell.state,
        "seeds": cell.seeds,
        "asked": cell.asked,
        "score": estimate_to_json(cell.score),
        "gap": estimate_to_json(cell.gap),
        "rr": round_number(cell.rr),
        "bits_per_weight": round_number(cell.bits_per_weight),
        "levels": cell.levels,
        "lr": round_number(cell.lr),
        "rates": cell.rates,
        "failures": {to_plain_text(reason): count for reason, count in cell.failures.items()},
        "message": to_plain_text(cell.message),
        "audits_failed": cell.audits_failed,
        "best": cell.best,
        "notes": list(cell.notes),
        "chosen": to_plain_value(cell.chosen),
        "at_edge": [to_plain_text(name) for name in cell.at_edge],
        "trials": cell.trials,
        "best_of": [round_number(x) for x in cell.best_of],
        "best_of_share": round_number(cell.best_of_share),
        "downstream": {
            to_plain_text(exam): {"score": estimate_to_json(grade.score), "seeds": grade.seeds}
            for exam, grade in cell.downstream.items()
        },
        # The summary of the board fills in these three.
        "cost": None,
        "front": False,
        "equal_time": None,
        "setting": published.add_setting(runs[0]) if runs else None,
        "runs": _describe_runs(runs, published),
    }


def _describe_runs(rows: Sequence[Mapping[str, Any]], published: PublishedRuns) -> Json:
    """Return the runs of a cell as columns of equal length."""
    return {
        "key": [str(row["key"]) for row in rows],
        "seed": [to_int(row.get("seed")) for row in rows],
        "attempt": [to_int(row.get("attempt")) for row in rows],
        "state": [to_plain_text(_get_outcome(row)) for row in rows],
        "score": [get_run_score(row) for row in rows],
        "audit": [
            bool(row["audit_passed"]) if is_known(row.get("audit_passed")) else None for row in rows
        ],
        "trust": [
            to_plain_text(row["trust"]) if is_known(row.get("trust")) else "own" for row in rows
        ],
        "environment": [published.add_environment(row) for row in rows],
        "train_s": [round_cost(row.get("train_s")) for row in rows],
    }


def _get_outcome(row: Mapping[str, Any]) -> str:
    """Return a run's state, or the reason if it failed."""
    return str(row.get("reason") or "failed") if row["state"] == "failed" else str(row["state"])
