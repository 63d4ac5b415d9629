"""A whole board in a few numbers.

For each entrant: what it recovers over all sections and columns (`entrant_summary`). For each
section: which cells are the best trade-off between score, bits and training cost (`tradeoffs`),
and how they compare at equal training time (`equal_time`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.analysis.entrant_summary import THRESHOLDS, EntrantSummary, summarise_entrants
from qbench.analysis.equal_time import EqualTime, ValidationCurves, compare_at_equal_time
from qbench.analysis.section_cells import SectionCells
from qbench.analysis.tradeoffs import TradeoffPoint, list_tradeoff_points
from qbench.boards.board import name_sections, to_plain_data
from qbench.boards.section import SectionBuilder
from qbench.stats.aggregates import MIN_BOOTSTRAP_SEEDS


@dataclass(frozen=True)
class SectionSummary:
    """A section's trade-offs and its view at equal training time."""

    title: str
    setting: str
    metric: str
    unit: str
    better: str
    digits: int
    points: tuple[TradeoffPoint, ...]
    equal_time: EqualTime


@dataclass(frozen=True)
class BoardSummary:
    """The summary of a board. The names of the fields are keys of `--json`."""

    title: str
    thresholds: tuple[float, ...]
    """The thresholds of the performance profiles."""
    cells: int
    """The number of columns, over all sections, that have a gap to recover."""
    overall: tuple[EntrantSummary, ...]
    """Entrants with all cells first, then by their mean. This is not a ranking."""
    sections: tuple[SectionSummary, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"summary_schema": 1, **to_plain_data(self)}


def summarise_board(
    builders: Sequence[SectionBuilder], curves: ValidationCurves, title: str = ""
) -> BoardSummary:
    """Return the summary of a board.

    Args:
        builders: The sections of the board (`boards.build.make_section_builders`).
        curves: The evaluations of its runs (`Results.validation_curves`).
        title: The title of the board.
    """
    built = [builder.build() for builder in builders]
    names = name_sections([(section.title, section.setting) for section in built])
    sections = [
        SectionCells(builder, section, name)
        for builder, section, name in zip(builders, built, names, strict=True)
    ]
    cells = sum(len(section.columns_with_gap) for section in sections)
    overall = summarise_entrants(sections) if cells else []
    return BoardSummary(
        title=title,
        thresholds=THRESHOLDS,
        cells=cells,
        overall=tuple(overall),
        sections=tuple(_summarise_section(section, curves) for section in sections),
        notes=tuple(_write_notes(sections, overall)),
    )


def _summarise_section(cells: SectionCells, curves: ValidationCurves) -> SectionSummary:
    section = cells.section
    return SectionSummary(
        title=section.title,
        setting=section.setting,
        metric=section.metric,
        unit=section.unit,
        better=section.better,
        digits=section.digits,
        points=list_tradeoff_points(cells),
        equal_time=compare_at_equal_time(cells.builder, curves),
    )


def _write_notes(
    sections: Sequence[SectionCells], overall: Sequence[EntrantSummary]
) -> Iterator[str]:
    """Yield what a reader must know about numbers that are missing."""
    for section in sections:
        builder = section.builder
        if builder.fp_entrant is None or builder.rtn_entrant is None:
            yield (
                f"{section.name} has no gap to recover: one of its controls {builder.reference} "
                f"and {builder.control} is missing"
            )
            continue
        labels = builder.grouped.column_labels
        without_gap = [labels[c] for c in builder.columns if c not in section.columns_with_gap]
        if without_gap:
            yield (
                f"{section.name} {', '.join(without_gap)}: no gap to recover, because full "
                "precision is not clearly better than rounding"
            )
    seeds = min((entry.seeds for entry in overall if entry.cells), default=MIN_BOOTSTRAP_SEEDS)
    if seeds < MIN_BOOTSTRAP_SEEDS:
        yield (
            "no interquartile mean and no confidence band of the profile for entrants with fewer "
            f"than {MIN_BOOTSTRAP_SEEDS} seeds (the smallest number here is {seeds})"
        )
    if any(entry.missing for entry in overall):
        yield (
            "means over different cells are not comparable: an entrant that lacks cells is listed "
            "after those that have all of them"
        )
