"""What a board is made of, as values: sections of rows of cells. `leaderboard` makes them, `render` and `plaintext` print them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qbench.stats.intervals import Estimate

State = Literal["ok", "partial", "failed", "skipped", "planned", "absent"]


@dataclass(frozen=True)
class Exam:
    """A downstream task in one definition, whose hash is its identity: another definition under the same name is another exam."""

    id: str
    task: str
    sha256: str
    metric: str
    better: str
    items: int | None
    chance: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Grade:
    """What the runs of a cell came to in an exam: the mean over the seeds with a finite answer."""

    score: Estimate | None
    seeds: int


@dataclass(frozen=True)
class Cell:
    """One entrant under one format."""

    state: State
    """ok: all seeds finite; partial: some; failed: none, and one was tried; planned: none yet; absent: nobody asked for it."""
    seeds: int = 0
    """Seeds with a finite score: those in `score`."""
    asked: int = 0
    score: Estimate | None = None
    gap: Estimate | None = None
    """(m − RTN)/(FP − RTN); None is printed “–”."""
    rr: float | None = None
    """The mean score after randomised rounding."""
    bits_per_weight: float | None = None
    levels: int | None = None
    lr: float | None = None
    rates: int = 1
    """Learning rates tried; the best on validation is shown."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Runs by what became of them, other than ok: diverged, oom, planned, skipped …"""
    message: str = ""
    audits_failed: int = 0
    best: bool = False
    notes: tuple[int, ...] = ()
    """Numbers, from 1, of the section's notes."""
    keys: tuple[str, ...] = ()
    """The runs it comes from."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """In a tuned board, the values that were best on validation."""
    at_edge: tuple[str, ...] = ()
    """Those of them at an end of what was tried."""
    trials: int = 0
    best_of: tuple[float | None, ...] = ()
    """For n = 1 … the expected test score, at the tuning seeds, of the best of n trials on validation; None where that could be a failed one."""
    best_of_share: float = 1.0
    """Of the steps, in the runs that `best_of` is of: under halving only the first rung has every trial."""
    downstream: Mapping[str, Grade] = field(default_factory=dict)
    """By the exam's id, for the exams of the section that its runs were asked."""

    @property
    def whole(self) -> bool:
        """Every seed has a score and no audit failed: what may be compared."""
        return self.state == "ok" and not self.audits_failed


@dataclass(frozen=True)
class Cost:
    """What training the entrant costs, over its runs in a section."""

    step_ratio: float | None = None
    """Median step time over full precision's, on the same device and in as large a company."""
    step_runs: int = 0
    train_s: float | None = None
    peak_memory_bytes: int | None = None
    audits: int = 0
    audits_failed: int = 0


@dataclass(frozen=True)
class Row:
    """An entrant. A row of full precision has one cell, which spans all columns."""

    entrant: str
    method: str
    version: int
    params: str
    reconstructed: bool
    role: Literal["reference", "control", ""]
    main: bool
    """The reference and the control that gaps are measured with; there may be others of their kind."""
    cells: tuple[Cell, ...]
    cost: Cost
    rank: tuple[int, int] | None = None
    retired: str = ""
    """Why this version was withdrawn; its row is compared with nobody."""

    @property
    def spans(self) -> bool:
        return self.role == "reference"


@dataclass(frozen=True)
class Column:
    format: str
    levels: tuple[int, ...]
    bits_per_weight: tuple[float, ...]
    """The least and the most among its cells; one number where they agree."""


@dataclass(frozen=True)
class Section:
    """A table: what was trained on one task and size from one start with one budget."""

    task: str
    size: str
    title: str
    """`digits/xs`, with the task's options where they are not its defaults."""
    setting: str
    """Start and budget."""
    metric: str
    unit: str
    better: str
    digits: int
    minimum_effect: float
    seeds: int
    """Of its fullest cell."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    downstream: tuple[Exam, ...] = ()
    """What its runs were asked once they were finished; the answers are in the cells."""


@dataclass(frozen=True)
class Board:
    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"board_schema": 1, **plain(self)}


def place_names(places: Sequence[tuple[str, str]]) -> list[str]:
    """What to call sections by title and setting: by the title alone where there is one of it only."""
    titles = Counter(title for title, _ in places)
    return [title if titles[title] == 1 else f"{title} ({setting})" for title, setting in places]


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON has them, without the deep copies of `asdict`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        # Twelve digits are the same whatever order numpy sums in.
        return float(f"{value:.12g}") if math.isfinite(value) else None
    return value
