"""Rows of runs → a board: sections by task and size, rows of entrants, columns of formats. Pure functions; no number is invented.

A cell is one entrant under one format: the mean over the seeds whose score is finite, its t interval, and the gap recovered between
the column's RTN and FP. Each cell depends on its own runs and on those two controls, so a new entrant never moves another's number;
only what is bold, and the ranks, compare entrants. What did not run, failed, diverged or was skipped stays in its place and says why.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from qbench.boards import downstream_scores, tuning_notes
from qbench.boards.board import Cell, Column, Cost, Row, Section, State
from qbench.boards.cell_rows import (
    Part,
    Place,
    best_rate,
    first,
    known,
    mean,
    only_finite,
    rows_at,
    scores_of,
    slices,
    why,
)
from qbench.boards.row_groups import NOT_RUN, Defaults, Tidy, parameters, unusual
from qbench.boards.run_table import Array
from qbench.boards.tuning_notes import Tried
from qbench.stats import intervals
from qbench.stats.comparisons import clear_bests, rank_ranges
from qbench.stats.intervals import Estimate
from qbench.sweepfile.tuning_space import Tuning
from qbench.util.text import count, spell

RANKED_FROM = 10
"""Seeds that a ranking needs: Holm over 15 pairs at 3 seeds would need t ≈ 17."""
REFERENCE, CONTROL = "fp", "rtn"
MOST_DIGITS = 12
"""Beyond it a metric's wish is not heard: a double has no more to show."""
TRUST = {
    "claimed": "claimed, not verified here",
    "verified": "merged: their artefacts were evaluated here, nobody trained them here",
    "reproduced": "merged, and reproduced here",
}
"""What a board says of somebody else's runs, by what is believed of them, the least first."""


class SectionMaker:
    """One section, while it is put together."""

    def __init__(
        self,
        data: Tidy,
        identity: Mapping[str, Any],
        rows: Part,
        controls: tuple[str, str],
        minimum_effect: Mapping[str, float],
        defaults: Defaults,
        tuning: Tuning | None = None,
    ) -> None:
        self.data, self.identity, self.defaults, self.tuning = data, identity, defaults, tuning
        self.reference, self.control = controls
        self.metric, self.unit, better = (
            self._word(name, rows) for name in ("metric", "unit", "better")
        )
        self.better = better or "lower"
        self.digits = min(max(int(known(first(rows["digits"]), 3)), 0), MOST_DIGITS)
        self.effect = known(
            minimum_effect.get(identity["task"]), first(rows["effect"]), 10.0**-self.digits
        )
        self.notes: list[str] = []
        self.parts: dict[Place, Part] = {}
        self.rates: dict[Place, int] = {}
        self.edges: dict[Place, str] = {}
        trial = tuning_notes.is_trial(rows, data.words)
        self.trials = (
            {
                place: tuning_notes.tried(part, data, self.better, tuning)
                for place, part in slices(rows_at(rows, trial))
            }
            if trial.any()
            else {}
        )
        for place, part in slices(rows_at(rows, ~trial) if trial.any() else rows):
            self.parts[place], self.rates[place], self.edges[place] = best_rate(part, self.better)
        self.scores = {place: scores_of(part) for place, part in self.parts.items()}
        self.answers = {
            place: downstream_scores.answers_by_exam(part, data.words["downstream"])
            for place, part in self.parts.items()
        }
        self.columns = sorted({column for _, column in self.parts if column >= 0})
        self.entrants = {n: data.entrants[n] for n in sorted({n for n, _ in self.parts})}
        self.rivals = [n for n, e in self.entrants.items() if not e.reference]
        self.fp = next(
            (
                n
                for n, e in self.entrants.items()
                if e.reference and e.method == self.reference and e.plain
            ),
            None,
        )
        self.rtn = next(
            (
                n
                for n in self.rivals
                if self.entrants[n].method == self.control and self.entrants[n].plain
            ),
            None,
        )

    def build(self) -> Section:
        cells = {
            n: [self._cell(n, c) for c in ([-1] if e.reference else self.columns)]
            for n, e in self.entrants.items()
        }
        self._mark_best(cells)
        ranks = self._ranks(cells)
        rows = [*self._missing(), *(self._row(n, cells[n], ranks.get(n)) for n in self.entrants)]
        rows.sort(key=self._order)
        columns = tuple(self._column(i, column, rows) for i, column in enumerate(self.columns))
        self._say_levels(columns, rows)
        self._say_rates()
        self._say_trials()
        return Section(
            task=self.identity["task"],
            size=self.identity["size"],
            title=self.title(),
            setting=self.setting(),
            metric=self.metric,
            unit=self.unit,
            better=self.better,
            digits=self.digits,
            minimum_effect=self.effect,
            seeds=max((cell.seeds for row in rows for cell in row.cells), default=0),
            columns=columns,
            rows=tuple(rows),
            notes=tuple(self.notes),
            downstream=downstream_scores.exams_of(list(self.answers.values())),
        )

    # ---- cells ----

    def _cell(self, entrant: int, column: int) -> Cell:
        if (part := self.parts.get((entrant, column))) is None:
            no_control = (
                self._note(f"no {self.control} under every format, so no gap is shown there")
                if entrant == self.rtn
                else ()
            )
            return Cell("absent", notes=no_control)
        finite = self.scores[entrant, column]
        asked, failures = len(part["key"]), self._failures(part)
        message = self._word("message", {"message": part["message"][~part["good"]]})
        audits_failed = int(np.sum(part["audit_passed"] == 0))
        if finite:
            state: State = "ok" if len(finite) == asked else "partial"
        else:
            state = (
                "failed"
                if set(failures) - set(NOT_RUN)
                else "skipped"
                if "skipped" in failures
                else "planned"
            )
        # The audit's note is first, beside its dagger.
        notes = (
            self._note(
                f"the audit of {audits_failed} of {count(asked, 'run')} failed: see qbench show RUN"
            )
            if audits_failed
            else ()
        )
        if state != "ok":
            notes += self._note(why(failures, asked, message))
        if merged := self._merged(part):
            notes += self._note(merged)
        chosen, trials = (
            tuning_notes.chosen(part, self.data),
            self.trials.get((entrant, column), Tried(0, 0)),
        )
        if edge := tuple(tuning_notes.at_edge(chosen, self.entrants[entrant].method, self.tuning)):
            notes += self._note(
                f"at the edge of its range, so another value might be better: {', '.join(edge)}"
            )
        return Cell(
            state=state,
            seeds=len(finite),
            asked=asked,
            score=intervals.mean_interval(list(finite.values())) if finite else None,
            gap=self._gap(finite, column),
            rr=mean(part["rr_mean"]),
            bits_per_weight=mean(part["bits_per_weight"]),
            levels=None if (levels := first(part["levels"])) is None else int(levels),
            lr=first(part["lr"]),
            rates=self.rates[entrant, column],
            failures=failures,
            message=message,
            audits_failed=audits_failed,
            notes=notes,
            keys=tuple(filter(None, part["key"].tolist())),
            chosen=chosen,
            at_edge=edge,
            trials=trials.count,
            best_of=trials.curve,
            best_of_share=trials.share,
            downstream=downstream_scores.grades_of(self.answers[entrant, column]),
        )

    def _gap(self, finite: Mapping[int, float], column: int) -> Estimate | None:
        """Over the seeds that the entrant and both controls have."""
        if self.fp is None or self.rtn is None or column < 0:
            return None
        fp, rtn = self.scores[self.fp, -1], self.scores.get((self.rtn, column), {})
        seeds = [seed for seed in finite if seed in fp and seed in rtn]
        return intervals.gap_recovered(
            [finite[s] for s in seeds],
            [rtn[s] for s in seeds],
            [fp[s] for s in seeds],
            self.better,
            self.effect,
        )

    def _failures(self, part: Part) -> dict[str, int]:
        """What became of the runs that have no score. A finished run whose score is not finite has diverged."""
        words = self.data.words["end"]
        counts = Counter(words[code] for code in part["end"][~part["good"]])
        counts["diverged"] += counts.pop("ok", 0)
        return {word: n for word, n in sorted(counts.items()) if n}

    def _merged(self, part: Part) -> str:
        """How many runs are somebody else's, and the least that is believed of them; '' where all are our own."""
        counts = Counter(self.data.words["trust"][code] for code in part["trust"] if code)
        level = next((word for word in TRUST if counts[word]), "")
        return (
            f"{counts[level]} of {count(len(part['key']), 'run')} {TRUST[level]}" if level else ""
        )

    def _mark_best(self, cells: Mapping[int, list[Cell]]) -> None:
        fit = [[n for n in self.rivals if cells[n][i].whole] for i in range(len(self.columns))]
        scores = [
            [self.scores[n, column] for n in names]
            for names, column in zip(fit, self.columns, strict=True)
        ]
        for i, best in enumerate(clear_bests(scores, self.better, self.effect)):
            if best is not None:
                cells[fit[i][best]][i] = dataclasses.replace(cells[fit[i][best]][i], best=True)

    def _ranks(self, cells: Mapping[int, Sequence[Cell]]) -> dict[int, tuple[int, int]]:
        """Of the entrants whose every cell is whole, by the mean over columns within each seed."""
        fit = [n for n in self.rivals if all(cell.whole for cell in cells[n])]
        scores = []
        for n in fit:
            columns = [self.scores[n, c] for c in self.columns]
            seeds = sorted(set.intersection(*map(set, columns)))
            means = np.array([[column[seed] for seed in seeds] for column in columns]).mean(0)
            scores.append(dict(zip(seeds, means.tolist(), strict=True)))
        if len(fit) < 2 or len(set.intersection(*map(set, scores))) < RANKED_FROM:
            return {}
        return dict(zip(fit, rank_ranges(scores, self.better, self.effect), strict=True))

    # ---- rows and columns ----

    def _row(self, n: int, cells: Sequence[Cell], rank: tuple[int, int] | None) -> Row:
        e = self.entrants[n]
        role: Literal["reference", "control", ""] = (
            "reference" if e.reference else "control" if e.method == self.control else ""
        )
        return Row(
            e.label,
            e.method,
            e.version,
            e.params,
            e.reconstructed,
            role,
            n in (self.fp, self.rtn),
            tuple(cells),
            self._cost(n),
            rank,
        )

    def _missing(self) -> list[Row]:
        """The controls that are not there, as rows that say so."""
        rows = []
        if self.fp is None:
            note = self._note(
                f"no full precision here, so no gap is shown: add {self.reference} to the sweep"
            )
            rows.append(
                Row(
                    self.reference,
                    self.reference,
                    0,
                    "",
                    False,
                    "reference",
                    True,
                    (Cell("absent", notes=note),),
                    Cost(),
                )
            )
        if self.rtn is None and self.columns:
            kin = [
                self.entrants[n].label
                for n in self.rivals
                if self.entrants[n].method == self.control
            ]
            only = f" ({', '.join(kin)} will not do)" if kin else ""
            note = self._note(
                f"no {self.control} with default parameters{only}, so no gap is shown: add {self.control} to the sweep"
            )
            cells = tuple(Cell("absent", notes=note) for _ in self.columns)
            rows.append(
                Row(self.control, self.control, 0, "", False, "control", True, cells, Cost())
            )
        return rows

    def _order(self, row: Row) -> tuple[Any, ...]:
        """Full precision, the family of the control, whole rows by their mean, the others by name. Not a ranking."""
        means = [cell.score.value for cell in row.cells if cell.score]
        whole = len(means) == len(row.cells)
        merit = (
            float(np.mean(means)) * (-1 if self.better == "higher" else 1)
            if whole and not row.role
            else 0.0
        )
        return (
            row.role != "reference",
            row.role != "control",
            not row.main,
            not whole,
            merit,
            row.entrant,
            row.params,
        )

    def _cost(self, entrant: int) -> Cost:
        own = {
            name: np.concatenate(
                [part[name][part["good"]] for (n, _), part in self.parts.items() if n == entrant]
            )
            for name in _COST
        }
        ratios = np.full(len(own["step_s_median"]), np.nan)
        if self.fp is not None:
            fp = self.parts[self.fp, -1]
            for device, company in sorted(
                set(zip(own["device_name"].tolist(), alone_is_one(own).tolist(), strict=True))
            ):
                there = (fp["device_name"] == device) & (alone_is_one(fp) == company)
                base = only_finite(fp["step_s_median"][fp["good"] & there])
                here = (own["device_name"] == device) & (alone_is_one(own) == company)
                if len(base) and np.median(base) > 0:
                    ratios[here] = own["step_s_median"][here] / np.median(base)
        ratios, train, peak, audits = (
            only_finite(x)
            for x in (ratios, own["train_s"], own["peak_memory_bytes"], own["audit_passed"])
        )
        return Cost(
            step_ratio=float(np.median(ratios)) if len(ratios) else None,
            step_runs=len(ratios),
            train_s=float(np.median(train)) if len(train) else None,
            peak_memory_bytes=int(peak.max()) if len(peak) else None,
            audits=len(audits),
            audits_failed=int(np.sum(audits == 0)),
        )

    def _column(self, i: int, column: int, rows: Sequence[Row]) -> Column:
        cells = [row.cells[i] for row in rows if not row.spans]
        bits = sorted({round(c.bits_per_weight, 3) for c in cells if c.bits_per_weight is not None})
        levels = sorted({c.levels for c in cells if c.levels is not None})
        return Column(
            self.data.columns[column], tuple(levels), tuple(dict.fromkeys((*bits[:1], *bits[-1:])))
        )

    # ---- words ----

    def _say_levels(self, columns: Sequence[Column], rows: Sequence[Row]) -> None:
        for i, column in enumerate(columns):
            if len(column.levels) > 1:
                names = {
                    n: [row.entrant for row in rows if not row.spans and row.cells[i].levels == n]
                    for n in column.levels
                }
                each = "; ".join(f"{n} for {', '.join(who)}" for n, who in names.items())
                self._note(f"{column.format} does not compare equal numbers of levels: {each}")

    def _say_rates(self) -> None:
        """How many learning rates each entrant tried, if anybody tried several."""
        tried: dict[tuple[int, ...], list[str]] = {}
        for n, e in self.entrants.items():
            tried.setdefault(
                tuple(sorted({rates for (m, _), rates in self.rates.items() if m == n})), []
            ).append(e.label)
        if list(tried) == [(1,)]:
            return
        counts = sorted(tried, reverse=True)
        each = "; ".join(
            f"{'–'.join(map(str, dict.fromkeys((c[0], c[-1]))))} for {', '.join(tried[c])}"
            for c in counts
        )
        unequal = (
            f"unequal numbers of trials: {each}"
            if len(tried) > 1 or len(counts[0]) > 1
            else f"{counts[0][0]} for everyone"
        )
        self._note(f"learning rates: the best on validation, of {unequal}")
        edges: dict[str, set[str]] = {}
        for (n, _), edge in self.edges.items():
            if edge:
                edges.setdefault(edge, set()).add(self.entrants[n].label)
        for edge, labels in sorted(edges.items()):
            self._note(
                f"best at the {edge} rate tried, so another might be better: {', '.join(sorted(labels))}"
            )

    def _say_trials(self) -> None:
        """How the section was tuned. Controls are rivals here, too: who leads at n trials is told of everyone who quantizes."""
        if self.trials:
            by_column = {
                self.data.columns[c]: {
                    self.entrants[n].label: t
                    for (n, d), t in self.trials.items()
                    if d == c and n in self.rivals
                }
                for c in self.columns
            }
            reference = {
                self.entrants[n].label: t
                for (n, _), t in self.trials.items()
                if n in self.entrants and n not in self.rivals
            }
            for note in tuning_notes.notes(
                {"fp32": reference, **by_column}, self.better, self.effect, self.tuning
            ):
                self._note(note)

    def title(self) -> str:
        task = self.identity["task"]
        peers = [parameters(s["task_params"]) for s in self.data.sections if s["task"] == task]
        other = unusual(parameters(self.identity["task_params"]), self.defaults.get(task), peers)
        return f"{task}{f' ({spell(other)})' if other else ''}/{self.identity['size']}"

    def setting(self) -> str:
        """Start and budget, and of the data and the rest of the recipe what tells this section from the others of its task and size."""
        own = self.identity
        peers = [
            s for s in self.data.sections if (s["task"], s["size"]) == (own["task"], own["size"])
        ]
        steps, batch = (
            "" if np.isnan(own[name]) else f"{own[name]:.0f}" for name in ("steps", "batch")
        )
        told = unusual(parameters(own["recipe"]), None, [parameters(s["recipe"]) for s in peers])
        rest = {
            k: v
            for k, v in parameters(own["recipe"]).items()
            if k == "objective" or (k in told and k not in ("steps", "batch"))
        }
        data = (
            f"data {own['data'][:12] or 'unknown'}"
            if any(s["data"] != own["data"] for s in peers)
            else ""
        )
        words = (
            own["start"] and f"start {own['start']}",
            steps and f"{steps} steps",
            batch and f"batch {batch}",
            spell(rest),
            data,
        )
        return ", ".join(filter(None, words))

    def _word(self, name: str, rows: Part) -> str:
        """The first word of a column that is not empty."""
        codes = rows[name][rows[name] > 0]
        return self.data.words[name][codes[0]] if len(codes) else ""

    def _note(self, text: str) -> tuple[int, ...]:
        if text not in self.notes:
            self.notes.append(text)
        return (self.notes.index(text) + 1,)


def alone_is_one(part: Mapping[str, Array]) -> Array:
    """How many runs shared a step: times are compared among equals."""
    return np.nan_to_num(part["company"], nan=1.0)


_COST = ("step_s_median", "device_name", "company", "train_s", "peak_memory_bytes", "audit_passed")
