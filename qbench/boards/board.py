"""The values that a board consists of: sections of rows of cells.

`build` makes them from runs; `markdown`, `csv_files`, the terminal and the site print them. The
names of the fields are keys of `qbench show --json` and of a site's `board.json`.
"""

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
class Board:
    """All tables of a sweep."""

    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"board_schema": 1, **to_plain_data(self)}


@dataclass(frozen=True)
class Section:
    """One table: everything that was trained on one task and size with one start and budget."""

    task: str
    size: str
    title: str
    """`digits/xs`, with the options of the task that are not at their defaults."""
    setting: str
    """Start and budget."""
    metric: str
    unit: str
    better: str
    digits: int
    minimum_effect: float
    seeds: int
    """The number of seeds of the cell that has most."""
    columns: tuple[FormatColumn, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    downstream: tuple[DownstreamTask, ...] = ()
    """The downstream tasks that its runs have answered; the scores are in the cells."""


@dataclass(frozen=True)
class FormatColumn:
    """A column of a section: one format."""

    format: str
    levels: tuple[int, ...]
    """The different numbers of levels among its cells."""
    bits_per_weight: tuple[float, ...]
    """The least and the most among its cells; one number where they agree."""


@dataclass(frozen=True)
class Row:
    """An entrant. A row of full precision has one cell, which spans all columns."""

    entrant: str
    method: str
    version: int
    params: str
    provenance: str
    role: Literal["reference", "control", ""]
    main: bool
    """Whether gaps are measured with it. There may be other entrants of a control's method."""
    cells: tuple[BoardCell, ...]
    cost: Cost
    rank: tuple[int, int] | None = None
    retired: str = ""
    """Why this version was withdrawn; a retired row is compared with no other."""

    @property
    def spans_columns(self) -> bool:
        return self.role == "reference"

    @property
    def reconstructed(self) -> bool:
        return self.provenance == "reconstructed"


@dataclass(frozen=True)
class BoardCell:
    """One entrant under one format."""

    state: State
    """ok: all runs have finite scores. partial: some have. failed: none has, and one was tried.
    planned: no run has finished. skipped: the method refuses the format. absent: no run is asked
    for."""
    seeds: int = 0
    """The number of seeds with a finite score, which are those that `score` averages."""
    asked: int = 0
    """The number of runs that the sweep asks for."""
    score: Estimate | None = None
    gap: Estimate | None = None
    """(m − RTN)/(FP − RTN); None is printed as “–”."""
    rr: float | None = None
    """The mean score after randomised rounding."""
    bits_per_weight: float | None = None
    levels: int | None = None
    lr: float | None = None
    rates: int = 1
    """How many learning rates were tried; the cell shows the best on validation."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """The number of runs for each outcome that is not ok: diverged, oom, planned, skipped …"""
    message: str = ""
    audits_failed: int = 0
    best: bool = False
    """Whether the cell is clearly better than all others of its column."""
    notes: tuple[int, ...] = ()
    """Numbers, from 1, of notes of the section."""
    keys: tuple[str, ...] = ()
    """The keys of its runs."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """In a tuned board, the hyper-parameters that were best on validation."""
    at_edge: tuple[str, ...] = ()
    """Those of them that lie at an end of the range that was tried."""
    trials: int = 0
    best_of: tuple[float | None, ...] = ()
    """For n = 1 … the expected test score, at the tuning seeds, of the best on validation of n
    trials; None where that could be a failed trial."""
    best_of_share: float = 1.0
    """The share of the steps that the runs behind `best_of` were trained for. Under successive
    halving only the short runs of the first rung include every trial."""
    downstream: Mapping[str, DownstreamScore] = field(default_factory=dict)
    """By the id of the downstream task, for the tasks that its runs have answered."""

    @property
    def is_complete(self) -> bool:
        """Whether every seed has a score and no audit failed. Only such cells are compared."""
        return self.state == "ok" and not self.audits_failed


@dataclass(frozen=True)
class Cost:
    """What it costs to train the entrant, over its runs in a section."""

    step_ratio: float | None = None
    """Median step time divided by that of full precision, on the same device and with as many
    stacked runs."""
    step_runs: int = 0
    train_s: float | None = None
    peak_memory_bytes: int | None = None
    audits: int = 0
    audits_failed: int = 0


@dataclass(frozen=True)
class DownstreamTask:
    """A downstream task in one definition.

    The hash of the definition is its identity: another definition under the same name is another
    task.
    """

    id: str
    task: str
    sha256: str
    metric: str
    better: str
    items: int | None
    chance: float | None
    ceiling: float | None


@dataclass(frozen=True)
class DownstreamScore:
    """The mean of a cell's runs on a downstream task, over the seeds with a finite answer."""

    score: Estimate | None
    seeds: int


def name_sections(sections: Sequence[tuple[str, str]]) -> list[str]:
    """Return a unique name for each (title, setting): the title alone where that is enough."""
    titles = Counter(title for title, _ in sections)
    return [title if titles[title] == 1 else f"{title} ({setting})" for title, setting in sections]


def to_plain_data(value: Any) -> Any:
    """Return dataclasses and tuples as JSON has them.

    `dataclasses.asdict` is not used because it copies every value, which is slow on large boards.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain_data(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain_data(v) for v in value]
    if isinstance(value, float):
        # The order in which NumPy adds depends on the machine and changes the last digits. Twelve
        # digits are the same everywhere. JSON has neither NaN nor infinity.
        return float(f"{value:.12g}") if math.isfinite(value) else None
    return value
