"""Published boards made without training: chosen scores, but the real leaderboard and page."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qbench.analysis.summary import BoardSummary, summarise_board
from qbench.boards.board import Board
from qbench.boards.build import build_board, make_section_builders
from qbench.publish.document import BoardDescription
from qbench.publish.site import build_site_files
from tests.synthetic_runs import DEFAULTS, make_failed_run, make_frame, make_run, make_runs

MEANS = {
    "rtn": (0.90, 0.30),
    "ste": (0.50, 0.26),
    "lotion": (0.42, 0.26),
    "pege": (0.41, 0.25),
    "lsq": (0.33, 0.23),
    "ewgs": (0.32, 0.24),
    "gdnsq": (0.31, 0.18),
}
"""The mean score of each method under each of `FORMATS`."""
FORMATS = ("int2", "int4")
ENV = {
    "qbench": "0.1.0",
    "torch": "2.13.0",
    "commit_id": "c" * 40,
    "dirty": False,
    "python": "3.11.7",
    "platform": "Linux",
    "cpu": "AMD EPYC",
    "device": "cpu",
    "threads": 1,
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-02T00:00:00+00:00",
    "effect": 0.01,
    "recipe": '{"steps": 300, "lr": 0.003}',
    "data": "0" * 16,
    "start": "scratch",
    "board_version": 1,
}
"""Columns that all runs have in common."""


def make_ranked_runs(
    seeds: int = 12,
    methods: Sequence[str] = tuple(MEANS),
    noise: float = 0.02,
    tasks: Sequence[str] = ("digits", "grammar"),
) -> pd.DataFrame:
    """Return the runs of a board where some methods differ by more than their seeds do."""
    rng, parts = random.Random(0), []
    for task in tasks:
        # All methods share the effect of a seed, so that paired tests tell more than intervals.
        seed_effects = [rng.gauss(0, 0.03) for _ in range(seeds)]

        def draw_scores(mean: float, effects: Sequence[float] = seed_effects) -> list[float]:
            return [mean + effect + rng.gauss(0, noise) for effect in effects]

        parts.append(make_runs("fp", None, draw_scores(0.2), task=task, **ENV))
        for method in methods:
            for fmt, mean in zip(FORMATS, MEANS[method], strict=True):
                parts.append(make_runs(method, fmt, draw_scores(mean), task=task, **ENV))
    return make_frame(*parts)


def make_varied_runs() -> pd.DataFrame:
    """Return runs with all outcomes: a failed cell, one that failed in part, a failed audit."""
    diverged = make_failed_run("lotion", "int2", 2, message="the loss is nan at step 57", **ENV)
    out_of_memory = [
        make_failed_run("lotion", "int4", seed, "oom", "out of memory on cpu", **ENV)
        for seed in range(3)
    ]
    failed_audit = [
        make_run("pege", "int2", s, 0.35, audit_passed=False, provenance="reconstructed", **ENV)
        for s in range(3)
    ]
    return make_frame(
        make_runs("fp", None, [0.1, 0.12, 0.09], **ENV),
        make_runs("rtn", "int2", [0.9, 0.92, 0.88], **ENV),
        make_runs("rtn", "int4", [0.2, 0.21, 0.2], **ENV),
        make_runs("ste", "int2", [0.3, 0.31, 0.3], **ENV),
        make_runs("ste", "int4", [0.15, 0.15, 0.16], **ENV),
        make_runs("lotion", "int2", [0.4, 0.41], **ENV),
        [diverged],
        out_of_memory,
        failed_audit,
    )


HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--",
    "]]>",
    "\x1b[31mred\x1b]8;;http://x\x07",
    "a\u202eb\u2066c",
    "\u2028\u2029",
    '"><svg onload=alert(3)>',
    "=HYPERLINK(1)",
    "{{ 7*7 }}",
    "&lt;b&gt;",
    "javascript:alert(4)",
    "العربية",
    "x" * 10_000,
    "' or 1=1 --",
    "\\input{/etc/passwd}",
    "a|b`c$d",
)


def make_hostile_runs() -> pd.DataFrame:
    """Return runs where every text that a plugin or a submission chooses is a hostile one."""
    rows = [
        *make_runs("fp", None, [0.1, 0.2, 0.15], **ENV),
        *make_runs("rtn", "int2", [0.9, 0.8, 0.85], **ENV),
    ]
    for n, name in enumerate(HOSTILE_NAMES):
        texts = {
            "label": name,
            "message": name,
            "params": {"p": name},
            "cpu": name,
            "commit_id": name,
            "provenance": "paper",
        }
        rows += make_runs(f"m{n}{name}", "int2", [0.5, 0.6, 0.55], **{**ENV, **texts})
    texts = {"task": HOSTILE_NAMES[1], "metric": HOSTILE_NAMES[0], "unit": HOSTILE_NAMES[7]}
    return make_frame([{**row, **texts} for row in rows])


def make_losses(rows: pd.DataFrame, points: int = 20) -> pd.DataFrame:
    """Return a falling loss curve for each run that has a score."""
    keys = rows.loc[rows["packed"].notna(), ["key", "packed"]].drop_duplicates("key")
    steps = pd.DataFrame({"step": [15 * (n + 1) for n in range(points)]})
    losses = keys.merge(steps, how="cross")
    return losses.assign(loss=losses["packed"] + 3 / losses["step"]).drop(columns="packed")


def build_board_and_summary(rows: pd.DataFrame, **options: Any) -> tuple[Board, BoardSummary]:
    """Return the board of some runs and its summary; `options` go to `build_board`."""
    _, makers = make_section_builders(rows, options.pop("planned", None), DEFAULTS)
    board = build_board(rows, defaults=DEFAULTS, **{"title": "Made up", **options})
    return board, summarise_board(makers, {})


def make_site_files(rows: pd.DataFrame, name: str = "made", **options: Any) -> Mapping[str, bytes]:
    """Return the files of the site of some runs."""
    board, summary = build_board_and_summary(rows, **options)
    sweep = f'board = "{name}"\nmethods = ["fp", "rtn"]\n'
    about = BoardDescription(name, "Made up", sweep=sweep)
    return build_site_files(about, board, rows, make_losses(rows), summary)
