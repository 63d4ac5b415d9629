"""Build a section of a board from its runs: rows of entrants, columns of formats.

A cell is one entrant under one format. Its score is the mean over the seeds with a finite score,
with its t interval, and its gap is the share of the distance between RTN and FP of the column
that the entrant recovers. A cell depends on its own runs and on those two controls only, so a new
entrant never moves the number of another one. Only the mark of the best cell and the ranks
compare entrants. A run that failed, diverged, was skipped or has not run stays in its cell with
the reason, and no number is made up for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from qbench.boards import downstream_scores, tuning_notes
from qbench.boards.board import BoardCell, Cost, FormatColumn, Row, Section, State
from qbench.boards.cell_rows import (
    CellIndex,
    CellRows,
    compute_cost,
    count_failures,
    describe_failures,
    find_state,
    finite_mean,
    first_finite,
    first_not_none,
    scores_by_seed,
    select_best_rate,
    select_rows,
    split_into_cells,
)
from qbench.boards.row_groups import Defaults, GroupedRows
from qbench.boards.section_notes import (
    describe_setting,
    describe_title,
    describe_trust,
    note_learning_rates,
    note_unequal_levels,
)
from qbench.boards.tuning_notes import CellTrials
from qbench.stats import intervals
from qbench.stats.comparisons import compute_rank_ranges, find_clear_bests
from qbench.stats.intervals import Estimate
from qbench.sweepfile.tuning_space import Tuning
from qbench.util.text import format_count

MIN_RANKED_SEEDS = 10
"""The seeds that a ranking needs: with 3 seeds and Holm over 15 pairs t would have to be 17."""
REFERENCE, CONTROL = "fp", "rtn"
FULL_PRECISION = -1
"""The column of runs in full precision, which have no format."""
MAX_DIGITS = 12
"""A metric that asks for more digits gets this many; a double has hardly more to show."""


class SectionBuilder:
    """The runs of one section by cell, and the section that is built from them."""

    def __init__(
        self,
        grouped: GroupedRows,
        identity: Mapping[str, Any],
        rows: CellRows,
        controls: tuple[str, str],
        minimum_effect: Mapping[str, float],
        defaults: Defaults,
        tuning: Tuning | None = None,
    ) -> None:
        self.grouped, self.identity, self.defaults = grouped, identity, defaults
        self.tuning, (self.reference, self.control) = tuning, controls
        self.metric, self.unit, better = (
            self._first_text(name, rows) for name in ("metric", "unit", "better")
        )
        self.better = better or "lower"
        digits = int(first_not_none(first_finite(rows["digits"]), 3))
        self.digits = min(max(digits, 0), MAX_DIGITS)
        self.minimum_effect = first_not_none(
            minimum_effect.get(identity["task"]), first_finite(rows["effect"]), 10.0**-self.digits
        )
        self.notes: list[str] = []
        is_trial = tuning_notes.mark_trials(rows, grouped.vocabularies)
        self._take_trials(select_rows(rows, is_trial))
        self._take_runs(select_rows(rows, ~is_trial) if is_trial.any() else rows)
        self._find_controls()

    def _take_trials(self, rows: CellRows) -> None:
        """Summarise the trials of each cell. They only tune: no score comes from them."""
        self.trials: dict[CellIndex, CellTrials] = {}
        if len(rows["key"]):
            self.trials = {
                index: tuning_notes.summarise_trials(trials, self.grouped, self.better, self.tuning)
                for index, trials in split_into_cells(rows)
            }

    def _take_runs(self, rows: CellRows) -> None:
        """Split the runs by cell, and keep those at each cell's best learning rate."""
        self.rows: dict[CellIndex, CellRows] = {}
        self.rate_counts: dict[CellIndex, int] = {}
        self.rate_edges: dict[CellIndex, str] = {}
        for index, runs in split_into_cells(rows):
            self.rows[index], self.rate_counts[index], self.rate_edges[index] = select_best_rate(
                runs, self.better
            )
        self.scores = {index: scores_by_seed(runs) for index, runs in self.rows.items()}
        texts = self.grouped.vocabularies["downstream"]
        self.answers = {
            index: downstream_scores.collect_answers(runs, texts)
            for index, runs in self.rows.items()
        }

    def _find_controls(self) -> None:
        """List columns and entrants, and find the two entrants that gaps are measured with."""
        self.columns = sorted({column for _, column in self.rows if column >= 0})
        numbers = sorted({n for n, _ in self.rows})
        self.entrants = {n: self.grouped.entrants[n] for n in numbers}
        # RTN and its variants are rivals as well; only full precision competes with nobody.
        self.rivals = [n for n, e in self.entrants.items() if not e.reference]
        references = [n for n, e in self.entrants.items() if e.reference]
        self.fp_entrant = self._find_plain(references, self.reference)
        self.rtn_entrant = self._find_plain(self.rivals, self.control)

    def _find_plain(self, numbers: Iterable[int], method: str) -> int | None:
        """Return the entrant of a method that has default parameters."""
        candidates = ((n, self.entrants[n]) for n in numbers)
        return next((n for n, e in candidates if e.method == method and e.plain), None)

    def build(self) -> Section:
        """Return the section. Notes are numbered in the order in which they are first needed."""
        cells = {
            n: [self._build_cell(n, c) for c in ([FULL_PRECISION] if e.reference else self.columns)]
            for n, e in self.entrants.items()
        }
        self._mark_best(cells)
        ranks = self._compute_ranks(cells)
        rows = [
            *self._build_missing_controls(),
            *(self._build_row(n, cells[n], ranks.get(n)) for n in self.entrants),
        ]
        rows.sort(key=self._row_sort_key)
        columns = tuple(self._build_column(i, rows) for i in range(len(self.columns)))
        self._add_section_notes(columns, rows)
        return Section(
            task=self.identity["task"],
            size=self.identity["size"],
            title=self.title(),
            setting=self.setting(),
            metric=self.metric,
            unit=self.unit,
            better=self.better,
            digits=self.digits,
            minimum_effect=self.minimum_effect,
            seeds=max((cell.seeds for row in rows for cell in row.cells), default=0),
            columns=columns,
            rows=tuple(rows),
            notes=tuple(self.notes),
            downstream=downstream_scores.list_downstream_tasks(list(self.answers.values())),
        )

    def title(self) -> str:
        return describe_title(self.identity, self.grouped.sections, self.defaults)

    def setting(self) -> str:
        return describe_setting(self.identity, self.grouped.sections)

    # ---- cells ----

    def _build_cell(self, entrant: int, column: int) -> BoardCell:
        index = entrant, column
        if (rows := self.rows.get(index)) is None:
            return BoardCell("absent", notes=self._note_absent(entrant))
        finite, asked = self.scores[index], len(rows["key"])
        failures = count_failures(rows, self.grouped.vocabularies["end"])
        state = find_state(len(finite), asked, failures)
        message = self._first_text("message", select_rows(rows, ~rows["good"]))
        audits_failed = int(np.sum(rows["audit_passed"] == 0))
        notes = self._note_failures(rows, state, failures, message, audits_failed)
        chosen = tuning_notes.read_chosen_values(rows, self.grouped)
        method = self.entrants[entrant].method
        at_edge = tuple(tuning_notes.list_values_at_edge(chosen, method, self.tuning))
        if at_edge:
            values = ", ".join(at_edge)
            notes += self._add_note(
                f"at the edge of its range, so another value might be better: {values}"
            )
        levels, trials = first_finite(rows["levels"]), self.trials.get(index, CellTrials(0, 0))
        return BoardCell(
            state=state,
            seeds=len(finite),
            asked=asked,
            score=intervals.mean_interval(list(finite.values())) if finite else None,
            gap=self._compute_gap(finite, column),
            rr=finite_mean(rows["rr_mean"]),
            bits_per_weight=finite_mean(rows["bits_per_weight"]),
            levels=None if levels is None else int(levels),
            lr=first_finite(rows["lr"]),
            rates=self.rate_counts[index],
            failures=failures,
            message=message,
            audits_failed=audits_failed,
            notes=notes,
            keys=tuple(filter(None, rows["key"].tolist())),
            chosen=chosen,
            at_edge=at_edge,
            trials=trials.count,
            best_of=trials.curve,
            best_of_share=trials.share,
            downstream=downstream_scores.score_downstream_tasks(self.answers[index]),
        )

    def _compute_gap(self, finite: Mapping[int, float], column: int) -> Estimate | None:
        """Return the gap recovered over the seeds that the entrant and both controls have."""
        if self.fp_entrant is None or self.rtn_entrant is None or column == FULL_PRECISION:
            return None
        fp = self.scores[self.fp_entrant, FULL_PRECISION]
        rtn = self.scores.get((self.rtn_entrant, column), {})
        # All three must be in the same order of seeds, because the ratio is computed of pairs.
        seeds = [seed for seed in finite if seed in fp and seed in rtn]
        return intervals.gap_recovered_interval(
            [finite[s] for s in seeds],
            [rtn[s] for s in seeds],
            [fp[s] for s in seeds],
            self.better,
            self.minimum_effect,
        )

    def _mark_best(self, cells: Mapping[int, list[BoardCell]]) -> None:
        """Mark the clear best of each column, among its complete cells."""
        columns = range(len(self.columns))
        complete = [[n for n in self.rivals if cells[n][i].is_complete] for i in columns]
        scores = [
            [self.scores[n, column] for n in names]
            for names, column in zip(complete, self.columns, strict=True)
        ]
        for i, best in enumerate(find_clear_bests(scores, self.better, self.minimum_effect)):
            if best is not None:
                n = complete[i][best]
                cells[n][i] = dataclasses.replace(cells[n][i], best=True)

    def _compute_ranks(
        self, cells: Mapping[int, Sequence[BoardCell]]
    ) -> dict[int, tuple[int, int]]:
        """Rank the entrants with complete rows by their means over columns within each seed."""
        complete = [n for n in self.rivals if all(cell.is_complete for cell in cells[n])]
        scores = []
        for n in complete:
            columns = [self.scores[n, c] for c in self.columns]
            seeds = sorted(set.intersection(*map(set, columns)))
            # Cells of one seed are not independent, so they are averaged before any test.
            means = np.array([[column[seed] for seed in seeds] for column in columns]).mean(0)
            scores.append(dict(zip(seeds, means.tolist(), strict=True)))
        if len(complete) < 2 or len(set.intersection(*map(set, scores))) < MIN_RANKED_SEEDS:
            return {}
        ranks = compute_rank_ranges(scores, self.better, self.minimum_effect)
        return dict(zip(complete, ranks, strict=True))

    # ---- rows and columns ----

    def _build_row(self, n: int, cells: Sequence[BoardCell], rank: tuple[int, int] | None) -> Row:
        entrant = self.entrants[n]
        role: Literal["reference", "control", ""] = (
            "reference"
            if entrant.reference
            else "control"
            if entrant.method == self.control
            else ""
        )
        reference = None if self.fp_entrant is None else self.rows[self.fp_entrant, FULL_PRECISION]
        own = [rows for (number, _), rows in self.rows.items() if number == n]
        return Row(
            entrant=entrant.label,
            method=entrant.method,
            version=entrant.version,
            params=entrant.params,
            provenance=entrant.provenance,
            role=role,
            main=n in (self.fp_entrant, self.rtn_entrant),
            cells=tuple(cells),
            cost=compute_cost(own, reference),
            rank=rank,
        )

    def _build_missing_controls(self) -> list[Row]:
        """Return a row for each control that has no runs; its cells say what is missing."""
        rows = []
        if self.fp_entrant is None:
            note = self._add_note(
                f"no full precision here, so no gap is shown: add {self.reference} to the sweep"
            )
            rows.append(
                _missing_row(self.reference, "reference", (BoardCell("absent", notes=note),))
            )
        if self.rtn_entrant is None and self.columns:
            entrants = (self.entrants[n] for n in self.rivals)
            variants = ", ".join(e.label for e in entrants if e.method == self.control)
            unsuitable = f" ({variants} will not do)" if variants else ""
            note = self._add_note(
                f"no {self.control} with default parameters{unsuitable}, so no gap is shown:"
                f" add {self.control} to the sweep"
            )
            cells = tuple(BoardCell("absent", notes=note) for _ in self.columns)
            rows.append(_missing_row(self.control, "control", cells))
        return rows

    def _row_sort_key(self, row: Row) -> tuple[Any, ...]:
        """Sort full precision first, then RTN and its variants, then complete rows by their mean.

        The others follow by name. This order is not a ranking.
        """
        means = [cell.score.value for cell in row.cells if cell.score]
        has_all = len(means) == len(row.cells)
        sign = -1 if self.better == "higher" else 1
        loss = sign * float(np.mean(means)) if has_all and not row.role else 0.0
        return (
            *(row.role != "reference", row.role != "control", not row.main),
            *(not has_all, loss, row.entrant, row.params),
        )

    def _build_column(self, i: int, rows: Sequence[Row]) -> FormatColumn:
        cells = [row.cells[i] for row in rows if not row.spans_columns]
        bits = sorted({round(c.bits_per_weight, 3) for c in cells if c.bits_per_weight is not None})
        levels = sorted({c.levels for c in cells if c.levels is not None})
        ends = tuple(dict.fromkeys((*bits[:1], *bits[-1:])))
        return FormatColumn(self.grouped.column_labels[self.columns[i]], tuple(levels), ends)

    # ---- notes ----

    def _add_note(self, text: str) -> tuple[int, ...]:
        """Add a note unless it is there, and return its number as the notes of a cell."""
        if text not in self.notes:
            self.notes.append(text)
        return (self.notes.index(text) + 1,)

    def _note_absent(self, entrant: int) -> tuple[int, ...]:
        if entrant != self.rtn_entrant:
            return ()
        return self._add_note(f"no {self.control} under every format, so no gap is shown there")

    def _note_failures(
        self,
        rows: CellRows,
        state: State,
        failures: Mapping[str, int],
        message: str,
        audits_failed: int,
    ) -> tuple[int, ...]:
        """Add the notes on failed audits, on runs without a score, and on runs from elsewhere."""
        asked, notes = len(rows["key"]), tuple[int, ...]()
        # The audit comes first: tables print a dagger for it in front of the numbers of notes.
        if audits_failed:
            runs = format_count(asked, "run")
            notes += self._add_note(
                f"the audit of {audits_failed} of {runs} failed: see qbench show RUN"
            )
        if state != "ok":
            notes += self._add_note(describe_failures(failures, asked, message))
        if trust := describe_trust(rows, self.grouped.vocabularies["trust"]):
            notes += self._add_note(trust)
        return notes

    def _add_section_notes(self, columns: Sequence[FormatColumn], rows: Sequence[Row]) -> None:
        for note in note_unequal_levels(columns, rows):
            self._add_note(note)
        for note in note_learning_rates(self.entrants, self.rate_counts, self.rate_edges):
            self._add_note(note)
        if self.trials:
            trials = self._trials_by_column()
            for note in tuning_notes.write_tuning_notes(
                trials, self.better, self.minimum_effect, self.tuning
            ):
                self._add_note(note)

    def _trials_by_column(self) -> dict[str, dict[str, CellTrials]]:
        """Return the trials by the label of the column and that of the entrant."""
        labels = self.grouped.column_labels
        found: dict[str, dict[str, CellTrials]] = {"fp32": {}}
        found |= {labels[column]: {} for column in self.columns}
        for (n, column), trials in self.trials.items():
            if n in self.entrants:
                name = labels[column] if n in self.rivals else "fp32"
                # A column may have trials and no runs yet; then it is not in the table.
                if name in found:
                    found[name][self.entrants[n].label] = trials
        return found

    def _first_text(self, name: str, rows: CellRows) -> str:
        """Return the first text of a column that is not empty."""
        codes = rows[name][rows[name] > 0]
        return self.grouped.vocabularies[name][codes[0]] if len(codes) else ""


def _missing_row(
    name: str, role: Literal["reference", "control"], cells: tuple[BoardCell, ...]
) -> Row:
    """Return the row of a control that the sweep has no runs of."""
    return Row(name, name, 0, "", "paper", role, main=True, cells=cells, cost=Cost())
