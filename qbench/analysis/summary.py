"""A whole board in a few numbers: what each entrant recovers over all sections and columns, and what that costs in bits and training.

The unit of the overall view is a cell's gap recovered, the one number that sections with different metrics share. A column where full precision
is not clearly above rounding has no gap and is left out for everyone, and said. An entrant's own cells that failed, were not asked for or lost an audit
are missing: its mean is over the others, nothing is imputed, and it stands behind those that have them all.

The interval of the mean is Welch–Satterthwaite's over tasks. Cells of one task share its seeds, whatever their size and format, so they are
averaged within each seed first; tasks are independent. A ratio's noise is taken to first order (`stats.linearised`); it covers 95 to 97 % even
where the gap is only just clear. Such a column weighs as much as any other and is noisy; the interquartile mean does not follow it. An entrant of
one cell has that cell's own interval, which is Fieller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qbench.analysis.equal_time import Curves, EqualTime, budgets, equal_time, places
from qbench.boards.board import Cell, Section, place_names, plain
from qbench.boards.run_table import Array
from qbench.boards.section import SectionMaker
from qbench.stats import intervals
from qbench.stats.aggregates import (
    BOOTSTRAP_FROM,
    iqm,
    pareto,
    percentiles,
    profile,
    resampled_ratios,
)
from qbench.stats.intervals import Estimate

THRESHOLDS = tuple(n / 20 for n in range(21))
Scores = Mapping[int, float]


@dataclass(frozen=True)
class Profile:
    """The share of an entrant's cells whose gap recovered reaches each of `THRESHOLDS`; the band is pointwise, and None below ten seeds."""

    share: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True)
class Overall:
    """An entrant over all cells of a board that have a gap to recover."""

    entrant: str
    method: str
    params: str
    reconstructed: bool
    control: bool
    gap: Estimate | None
    """The mean over cells; None where it has none."""
    iqm: Estimate | None
    """The interquartile mean over cells; None below ten seeds."""
    profile: Profile | None
    cells: int
    seeds: int
    """Of its task with the fewest."""
    missing: tuple[str, ...]
    """Where it has no number, and why."""


@dataclass(frozen=True)
class Point:
    """A cell between score, bits and cost."""

    entrant: str
    params: str
    format: str
    score: Estimate
    bits_per_weight: float | None
    cost: float | None
    """Training time over full precision's on the same device. What takes no steps of its own rounds a trained network, whose training is counted."""
    front: bool
    """No other cell is as good in all three and better in one. Of means: whether two scores differ is the board's to say. The bits of
    activations do not count."""


@dataclass(frozen=True)
class SectionSummary:
    title: str
    setting: str
    metric: str
    unit: str
    better: str
    digits: int
    points: tuple[Point, ...]
    equal_time: EqualTime


@dataclass(frozen=True)
class Summary:
    title: str
    thresholds: tuple[float, ...]
    cells: int
    """Those with a gap to recover."""
    overall: tuple[Overall, ...]
    """Whole ones first, by their mean. Not a ranking."""
    sections: tuple[SectionSummary, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"summary_schema": 1, **plain(self)}


def summarise(makers: Sequence[SectionMaker], curves: Curves, title: str = "") -> Summary:
    """The summary of a board's sections (`leaderboard.section_makers`) and the evaluations of its runs."""
    sections = [maker.build() for maker in makers]
    names = place_names([(section.title, section.setting) for section in sections])
    parts = [
        _Part(maker, section, name)
        for maker, section, name in zip(makers, sections, names, strict=True)
    ]
    cells = sum(len(part.open) for part in parts)
    entrants = sorted({n for part in parts for n in part.maker.rivals})
    overall = sorted((_overall(parts, n) for n in entrants), key=_order) if cells else []
    return Summary(
        title,
        THRESHOLDS,
        cells,
        tuple(overall),
        tuple(_section(part, curves) for part in parts),
        tuple(_notes(parts, overall)),
    )


class _Part:
    """A section with its makings: cells by entrant and column, and the columns that have a gap."""

    def __init__(self, maker: SectionMaker, section: Section, name: str) -> None:
        self.maker, self.section, self.name = maker, section, name
        rows = {(row.entrant, row.method, row.params): row for row in section.rows}
        self.cells: dict[tuple[int, int], Cell] = {}
        for n, e in maker.entrants.items():
            own = rows[e.label, e.method, e.params].cells
            self.cells |= {
                (n, column): cell
                for column, cell in zip([-1] if e.reference else maker.columns, own, strict=True)
            }
        control = [] if maker.rtn is None else maker.columns
        self.open = [column for column in control if self.cells[maker.rtn, column].gap is not None]  # type: ignore[index]

    def place(self, column: int) -> str:
        return f"{self.name} {self.maker.data.columns[column]}"

    def ratio(self, n: int, column: int) -> tuple[dict[int, float], dict[int, float]]:
        """What an entrant gains over the control, and the gap, by the seeds that it and both controls have."""
        maker, sign = self.maker, 1 if self.maker.better == "higher" else -1
        assert maker.fp is not None and maker.rtn is not None
        own, fp, rtn = (
            maker.scores[n, column],
            maker.scores[maker.fp, -1],
            maker.scores[maker.rtn, column],
        )
        seeds = [seed for seed in own if seed in fp and seed in rtn]
        return {s: sign * (own[s] - rtn[s]) for s in seeds}, {
            s: sign * (fp[s] - rtn[s]) for s in seeds
        }


# ---- overall ----


@dataclass
class _Task:
    """An entrant's cells in one task: where, and their gains and gaps by seed."""

    places: list[str] = field(default_factory=list)
    gains: list[Scores] = field(default_factory=list)
    gaps: list[Scores] = field(default_factory=list)
    recovered: list[Estimate] = field(default_factory=list)
    """As the board has it."""

    def add(self, place: str, recovered: Estimate, gain: Scores, gap: Scores) -> None:
        self.places.append(place)
        self.recovered.append(recovered)
        self.gains.append(gain)
        self.gaps.append(gap)

    def arrays(self) -> tuple[Array, Array]:
        """Gains and gaps, cells × the seeds that all of them have."""
        seeds = sorted(set.intersection(*map(set, self.gains)))
        gains, gaps = (
            np.array([[cell[s] for s in seeds] for cell in cells], dtype=np.float64)
            for cells in (self.gains, self.gaps)
        )
        return gains, gaps


def _overall(parts: Sequence[_Part], n: int) -> Overall:
    tasks, missing = _tasks(parts, n)
    arrays = []
    for task in tasks:
        gains, gaps = task.arrays()
        if gains.size and (gaps.mean(1) > 0).all():
            arrays.append((gains, gaps))
        else:
            missing += [f"{place}: no seed in common with its other cells" for place in task.places]
    seeds = min((gains.shape[1] for gains, _ in arrays), default=0)
    cells = sum(len(gains) for gains, _ in arrays)
    own = [gap for task in tasks for gap in task.recovered]
    mean = own[0] if cells == len(own) == 1 else _mean(arrays) if arrays else None
    iqm, profile = _distribution(arrays, seeds) if arrays else (None, None)
    e = next(part.maker.entrants[n] for part in parts if n in part.maker.entrants)
    control = any(e.method == part.maker.control for part in parts)
    return Overall(
        e.label,
        e.method,
        e.params,
        e.reconstructed,
        control,
        mean,
        iqm,
        profile,
        cells,
        seeds,
        tuple(missing),
    )


def _tasks(parts: Sequence[_Part], n: int) -> tuple[list[_Task], list[str]]:
    """An entrant's whole cells by task, and where it has none."""
    tasks: dict[str, _Task] = {}
    missing = []
    for part in parts:
        for column in part.open:
            cell = part.cells.get((n, column), Cell("absent"))
            if cell.whole and cell.gap is not None:
                tasks.setdefault(part.maker.identity["task"], _Task()).add(
                    part.place(column), cell.gap, *part.ratio(n, column)
                )
            else:
                missing.append(f"{part.place(column)}: {_why(cell)}")
    return list(tasks.values()), missing


def _why(cell: Cell) -> str:
    if cell.state == "absent":
        return "not asked for"
    if cell.failures:
        return ", ".join(f"{n} of {cell.asked} {word}" for word, n in cell.failures.items())
    return (
        f"the audit of {cell.audits_failed} of {cell.asked} runs failed"
        if cell.audits_failed
        else "no seed in common with the controls"
    )


def _mean(tasks: Sequence[tuple[Array, Array]]) -> Estimate:
    samples = [intervals.linearised(gains, gaps).mean(0) for gains, gaps in tasks]
    return intervals.mean_of_means_interval(samples, [len(gains) for gains, _ in tasks])


def _distribution(
    tasks: Sequence[tuple[Array, Array]], seeds: int
) -> tuple[Estimate | None, Profile]:
    """The interquartile mean and the profile over cells."""
    values = np.concatenate([gains.mean(1) / gaps.mean(1) for gains, gaps in tasks])
    thresholds = np.array(THRESHOLDS)
    share = tuple(profile(values, thresholds).tolist())
    if seeds < BOOTSTRAP_FROM:
        return None, Profile(share, None, None)
    draws, df = resampled_ratios(tasks), sum(gains.shape[1] - 1 for gains, _ in tasks)
    low, high = percentiles(iqm(draws), df)
    lows, highs = percentiles(profile(draws, thresholds), df)
    return Estimate(float(iqm(values)), float(low), float(high)), Profile(
        share, tuple(lows.tolist()), tuple(highs.tolist())
    )


def _order(entry: Overall) -> tuple[bool, bool, float, str, str]:
    return (
        entry.gap is None,
        bool(entry.missing),
        -entry.gap.value if entry.gap else 0.0,
        entry.entrant,
        entry.params,
    )


# ---- sections ----


def _section(part: _Part, curves: Curves) -> SectionSummary:
    s = part.section
    return SectionSummary(
        s.title,
        s.setting,
        s.metric,
        s.unit,
        s.better,
        s.digits,
        _points(part),
        equal_time(part.maker, curves),
    )


def _points(part: _Part) -> tuple[Point, ...]:
    """Every whole cell, and which of them are on the front; one whose bits or cost nobody knows is not."""
    maker, seconds = part.maker, budgets(part.maker)
    whole = [
        (n, column, cell)
        for (n, column), cell in part.cells.items()
        if cell.whole and cell.score is not None
    ]
    costs = [_cost(maker, n, column, seconds) for n, column, _ in whole]
    known = np.array(
        [
            cost is not None and cell.bits_per_weight is not None
            for cost, (_, _, cell) in zip(costs, whole, strict=True)
        ],
        dtype=bool,
    )
    sign = -1 if maker.better == "higher" else 1
    rows = [
        (sign * cell.score.value, cell.bits_per_weight, cost)
        for cost, (_, _, cell) in zip(costs, whole, strict=True)
        if cell.score
    ]
    front = np.zeros(len(whole), dtype=bool)
    front[known] = pareto(np.array(rows, dtype=np.float64).reshape(-1, 3)[known])
    return tuple(
        Point(
            maker.entrants[n].label,
            maker.entrants[n].params,
            _format(maker, column),
            cell.score,
            cell.bits_per_weight,
            cost,
            bool(on),
        )
        for (n, column, cell), cost, on in zip(whole, costs, front, strict=True)
        if cell.score
    )


def _cost(maker: SectionMaker, n: int, column: int, seconds: Mapping[str, float]) -> float | None:
    """Median over the cell's runs of training time over full precision's on the run's device and in as large a company."""
    part = maker.parts[n, column]
    limit = np.array(
        [seconds.get(where, np.nan) for where in places(maker, part)], dtype=np.float64
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = part["train_s"] / limit + np.isnan(part["step_s_median"])
    ratios = ratios[part["good"] & np.isfinite(ratios)]
    return float(np.median(ratios)) if len(ratios) else None


def _format(maker: SectionMaker, column: int) -> str:
    return maker.data.columns[column] if column >= 0 else "fp32"


# ---- words ----


def _notes(parts: Sequence[_Part], overall: Sequence[Overall]) -> Iterator[str]:
    for part in parts:
        if part.maker.fp is None or part.maker.rtn is None:
            yield f"{part.name} has no gap to recover: its controls {part.maker.reference} and {part.maker.control} are not both there"
        elif closed := [
            part.maker.data.columns[c] for c in part.maker.columns if c not in part.open
        ]:
            yield f"{part.name} {', '.join(closed)}: no gap to recover, full precision is not clearly above rounding"
    if few := sorted(
        {entry.seeds for entry in overall if entry.cells and entry.seeds < BOOTSTRAP_FROM}
    ):
        yield f"no interquartile mean and no bands of profiles where there are fewer than {BOOTSTRAP_FROM} seeds: here {few[0]}"
    if any(entry.missing for entry in overall):
        yield "means over different cells are not comparable: an entrant that lacks cells stands below those that have them all"
