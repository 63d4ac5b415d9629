"""Summarise each entrant over all cells of a board, by the gap that it recovers.

The gap recovered is the one number that sections with different metrics share. A column in which
full precision is not clearly better than rounding has no gap and is left out for every entrant.
Of its other cells an entrant may lack some, because they failed, were not part of the sweep, or
failed an audit. Nothing is imputed: its mean is taken over the cells that it has, and it is listed
after the entrants that have all of them.

The interval of the mean. Cells of one task share its seeds, whatever their size and format, so
they are averaged within each seed first; what remains is one sample for each task. Tasks are
independent, and the Welch–Satterthwaite formula combines them. Each cell is a ratio of means; its
noise is taken to first order (`intervals.linearise_ratio`). The interval then covers the truth in
95 to 97 % of cases, even where the gap is only just clear. Such a column is noisy and weighs as
much as any other in the mean. The interquartile mean does not follow it. An entrant with a single
cell has that cell's own interval, which is Fieller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qbench.analysis.section_cells import SectionCells
from qbench.boards.board import BoardCell
from qbench.boards.run_table import Array
from qbench.stats import intervals
from qbench.stats.aggregates import (
    MIN_BOOTSTRAP_SEEDS,
    expanded_percentile_interval,
    interquartile_mean,
    resample_ratios,
    share_reaching,
)
from qbench.stats.intervals import Estimate

THRESHOLDS = tuple(n / 20 for n in range(21))
ScoresBySeed = Mapping[int, float]


@dataclass(frozen=True)
class PerformanceProfile:
    """The share of an entrant's cells that recover at least each of `THRESHOLDS`.

    The band is pointwise. It is None with fewer than `MIN_BOOTSTRAP_SEEDS` seeds.
    """

    share: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True)
class EntrantSummary:
    """An entrant over all cells of a board that have a gap to recover.

    The names of the fields are keys of `qbench show --summary --json`.
    """

    entrant: str
    method: str
    params: str
    reconstructed: bool
    control: bool
    gap: Estimate | None
    """The mean over its cells; None if it has none."""
    iqm: Estimate | None
    """The interquartile mean over its cells; None with fewer than `MIN_BOOTSTRAP_SEEDS` seeds."""
    profile: PerformanceProfile | None
    cells: int
    seeds: int
    """The number of seeds of the task that has the fewest."""
    missing: tuple[str, ...]
    """The cells that are missing, each with the reason."""


def summarise_entrants(sections: Sequence[SectionCells]) -> list[EntrantSummary]:
    """Return a summary of each entrant that is no reference.

    Entrants with all cells come first, then by their mean. This is not a ranking.
    """
    numbers = sorted({n for section in sections for n in section.builder.rivals})
    return sorted((_summarise_entrant(sections, n) for n in numbers), key=_sort_key)


def _sort_key(entry: EntrantSummary) -> tuple[bool, bool, float, str, str]:
    mean = entry.gap.value if entry.gap else 0.0
    return (entry.gap is None, bool(entry.missing), -mean, entry.entrant, entry.params)


def _summarise_entrant(sections: Sequence[SectionCells], n: int) -> EntrantSummary:
    tasks, missing = _collect_cells(sections, n)
    samples = []
    for task in tasks:
        gains, gaps = task.to_arrays()
        if gains.size and (gaps.mean(1) > 0).all():
            samples.append((gains, gaps))
        else:
            missing += [f"{cell}: no seed in common with its other cells" for cell in task.names]
    cells = sum(len(gains) for gains, _ in samples)
    seeds = min((gains.shape[1] for gains, _ in samples), default=0)
    estimates = [gap for task in tasks for gap in task.estimates]
    iqm, profile = _summarise_distribution(samples, seeds) if samples else (None, None)
    entrant = next(s.builder.entrants[n] for s in sections if n in s.builder.entrants)
    return EntrantSummary(
        entrant=entrant.label,
        method=entrant.method,
        params=entrant.params,
        reconstructed=entrant.provenance == "reconstructed",
        control=any(entrant.method == section.builder.control for section in sections),
        gap=_mean_over_cells(samples, estimates),
        iqm=iqm,
        profile=profile,
        cells=cells,
        seeds=seeds,
        missing=tuple(missing),
    )


# ---- the cells of an entrant ----


@dataclass
class _TaskCells:
    """An entrant's complete cells in one task: their names, and gains and gaps by seed."""

    names: list[str] = field(default_factory=list)
    gains: list[ScoresBySeed] = field(default_factory=list)
    gaps: list[ScoresBySeed] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    """The gap recovered as the board shows it."""

    def add(self, name: str, gain: ScoresBySeed, gap: ScoresBySeed, estimate: Estimate) -> None:
        self.names.append(name)
        self.gains.append(gain)
        self.gaps.append(gap)
        self.estimates.append(estimate)

    def to_arrays(self) -> tuple[Array, Array]:
        """Return gains and gaps as arrays of cells × seeds, for the seeds that all cells have."""
        seeds = sorted(set.intersection(*map(set, self.gains)))
        gains = np.array([[cell[s] for s in seeds] for cell in self.gains], dtype=np.float64)
        gaps = np.array([[cell[s] for s in seeds] for cell in self.gaps], dtype=np.float64)
        return gains, gaps


def _collect_cells(sections: Sequence[SectionCells], n: int) -> tuple[list[_TaskCells], list[str]]:
    """Return an entrant's complete cells by task, and its missing cells with the reasons."""
    tasks: dict[str, _TaskCells] = {}
    missing = []
    for section in sections:
        for column in section.columns_with_gap:
            cell = section.cells.get((n, column), BoardCell("absent"))
            name = section.name_cell(column)
            if cell.is_complete and cell.gap is not None:
                task = tasks.setdefault(section.builder.identity["task"], _TaskCells())
                task.add(name, *section.gains_and_gaps(n, column), cell.gap)
            else:
                missing.append(f"{name}: {_explain_missing(cell)}")
    return list(tasks.values()), missing


def _explain_missing(cell: BoardCell) -> str:
    if cell.state == "absent":
        return "not part of the sweep"
    if cell.failures:
        return ", ".join(f"{n} of {cell.asked} {reason}" for reason, n in cell.failures.items())
    if cell.audits_failed:
        return f"the audit of {cell.audits_failed} of {cell.asked} runs failed"
    return "no seed in common with the controls"


# ---- statistics over cells ----


def _mean_over_cells(
    samples: Sequence[tuple[Array, Array]], estimates: Sequence[Estimate]
) -> Estimate | None:
    """Return the mean gap recovered, given gains and gaps (cells × seeds) for each task."""
    if not samples:
        return None
    if len(estimates) == 1 and len(samples[0][0]) == 1:
        return estimates[0]
    means = [intervals.linearise_ratio(gains, gaps).mean(0) for gains, gaps in samples]
    return intervals.mean_of_means_interval(means, [len(gains) for gains, _ in samples])


def _summarise_distribution(
    samples: Sequence[tuple[Array, Array]], seeds: int
) -> tuple[Estimate | None, PerformanceProfile]:
    """Return the interquartile mean and the performance profile over cells."""
    values = np.concatenate([gains.mean(1) / gaps.mean(1) for gains, gaps in samples])
    thresholds = np.array(THRESHOLDS)
    share = tuple(share_reaching(values, thresholds).tolist())
    if seeds < MIN_BOOTSTRAP_SEEDS:
        return None, PerformanceProfile(share, None, None)
    draws = resample_ratios(samples)
    df = sum(gains.shape[1] - 1 for gains, _ in samples)
    low, high = expanded_percentile_interval(interquartile_mean(draws), df)
    iqm = Estimate(float(interquartile_mean(values)), float(low), float(high))
    lows, highs = expanded_percentile_interval(share_reaching(draws, thresholds), df)
    return iqm, PerformanceProfile(share, tuple(lows.tolist()), tuple(highs.tolist()))
