"""Published boards made without training: rows with numbers of the test's choice, through the real leaderboard and the real page."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from qbench.analysis.summary import Summary, summarise
from qbench.boards.board import Board
from qbench.boards.build import build_board, section_makers
from qbench.publish.document import About
from qbench.publish.site import site
from tests.synthetic_runs import DEFAULTS, failed, frame, run, runs

MEANS = {
    "rtn": (0.90, 0.30),
    "ste": (0.50, 0.26),
    "lotion": (0.42, 0.26),
    "pege": (0.41, 0.25),
    "lsq": (0.33, 0.23),
    "ewgs": (0.32, 0.24),
    "gdnsq": (0.31, 0.18),
}
FORMATS = ("int2", "int4")
ENV = {
    "qbench": "0.1.0", "torch": "2.13.0", "commit_id": "c" * 40, "dirty": False, "python": "3.11.7", "platform": "Linux", "cpu": "AMD EPYC", "device": "cpu",
    "threads": 1, "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-02T00:00:00+00:00", "effect": 0.01, "recipe": '{"steps": 300, "lr": 0.003}',
    "data": "0" * 16, "start": "scratch", "board_version": 1,
}  # fmt: skip


def ranked(
    seeds: int = 12,
    methods: Sequence[str] = tuple(MEANS),
    noise: float = 0.02,
    tasks: Sequence[str] = ("digits", "grammar"),
) -> pd.DataFrame:
    """A board of two tasks whose entrants differ, some by more than their seeds do."""
    chance, parts = random.Random(0), []
    for task in tasks:
        shared = [chance.gauss(0, 0.03) for _ in range(seeds)]

        def scores(mean: float, shared: Sequence[float] = shared) -> list[float]:
            return [mean + s + chance.gauss(0, noise) for s in shared]

        parts.append(runs("fp", None, scores(0.2), task=task, **ENV))
        for method in methods:
            parts += [
                runs(method, fmt, scores(mean), task=task, **ENV)
                for fmt, mean in zip(FORMATS, MEANS[method], strict=True)
            ]
    return frame(*parts)


def one_of_everything() -> pd.DataFrame:
    """What a board can hold: a failed cell, a part of one, a failed audit, a tie without spread."""
    parts = [
        runs("fp", None, [0.1, 0.12, 0.09], **ENV), runs("rtn", "int2", [0.9, 0.92, 0.88], **ENV), runs("rtn", "int4", [0.2, 0.21, 0.2], **ENV),
        runs("ste", "int2", [0.3, 0.31, 0.3], **ENV), runs("ste", "int4", [0.15, 0.15, 0.16], **ENV),
        runs("lotion", "int2", [0.4, 0.41], **ENV), [failed("lotion", "int2", 2, message="the loss is nan at step 57", **ENV)],
        [failed("lotion", "int4", s, "oom", "out of memory on cpu", **ENV) for s in range(3)],
        [run("pege", "int2", s, 0.35, audit_passed=False, provenance="reconstructed", **ENV) for s in range(3)],
    ]  # fmt: skip
    return frame(*parts)


def losses(rows: pd.DataFrame, points: int = 20) -> pd.DataFrame:
    """A falling curve for each run that has a score."""
    keys = rows.loc[rows["packed"].notna(), ["key", "packed"]].drop_duplicates("key")
    steps = pd.DataFrame({"step": [15 * (n + 1) for n in range(points)]})
    found = keys.merge(steps, how="cross")
    return found.assign(loss=found["packed"] + 3 / found["step"]).drop(columns="packed")


def board(rows: pd.DataFrame, **more: Any) -> tuple[Board, Summary]:
    _, makers = section_makers(rows, more.pop("planned", None), DEFAULTS)
    return build_board(rows, defaults=DEFAULTS, **{"title": "Made up", **more}), summarise(
        makers, {}
    )


def files(rows: pd.DataFrame, name: str = "made", **more: Any) -> Mapping[str, bytes]:
    """The site of some rows."""
    built, summary = board(rows, **more)
    return site(
        About(name, "Made up", sweep=f'board = "{name}"\nmethods = ["fp", "rtn"]\n'),
        built,
        rows,
        losses(rows),
        summary,
    )
