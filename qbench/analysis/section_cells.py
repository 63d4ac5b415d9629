"""A section's cells by entrant and column, in the form in which the summary needs them."""

from __future__ import annotations

from qbench.boards.board import BoardCell, Section
from qbench.boards.section import FULL_PRECISION, SectionBuilder


def label_column(builder: SectionBuilder, column: int) -> str:
    """Return the format of a column; the column of full precision is called `fp32`."""
    return "fp32" if column == FULL_PRECISION else builder.grouped.column_labels[column]


class SectionCells:
    """A section, its cells by entrant and column, and the columns that have a gap to recover."""

    def __init__(self, builder: SectionBuilder, section: Section, name: str) -> None:
        self.builder, self.section, self.name = builder, section, name
        rows = {(row.entrant, row.method, row.params): row for row in section.rows}
        self.cells: dict[tuple[int, int], BoardCell] = {}
        for n, entrant in builder.entrants.items():
            cells = rows[entrant.label, entrant.method, entrant.params].cells
            columns = [FULL_PRECISION] if entrant.reference else builder.columns
            for column, cell in zip(columns, cells, strict=True):
                self.cells[n, column] = cell
        self.columns_with_gap = [c for c in builder.columns if self._has_gap(c)]

    def _has_gap(self, column: int) -> bool:
        """Return whether full precision is clearly better than rounding in this column."""
        control = self.builder.rtn_entrant
        return control is not None and self.cells[control, column].gap is not None

    def name_cell(self, column: int) -> str:
        return f"{self.name} {label_column(self.builder, column)}"

    def gains_and_gaps(self, n: int, column: int) -> tuple[dict[int, float], dict[int, float]]:
        """Return the numerators and denominators of an entrant's gap recovered, by seed.

        The gain is the distance of the entrant from RTN, the gap that of full precision from RTN;
        both are positive where they are improvements. Only seeds that all three have are used.
        """
        builder = self.builder
        sign = 1 if builder.better == "higher" else -1
        assert builder.fp_entrant is not None and builder.rtn_entrant is not None
        own = builder.scores[n, column]
        fp = builder.scores[builder.fp_entrant, FULL_PRECISION]
        rtn = builder.scores[builder.rtn_entrant, column]
        seeds = [seed for seed in own if seed in fp and seed in rtn]
        gains = {seed: sign * (own[seed] - rtn[seed]) for seed in seeds}
        gaps = {seed: sign * (fp[seed] - rtn[seed]) for seed in seeds}
        return gains, gaps
