"""Search: the trials of one cell, rung by rung, and the values that they choose.

A search is a pure function of how its trials ended. It can be computed again at any time, by a
resumed sweep or by `qbench status`, and comes to the same choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qbench.stats.trial_selection import ValidationByKey, rank_trials
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweeps.cells import PendingChoice
from qbench.util.text import format_count, format_parameters

if TYPE_CHECKING:
    from qbench.sweeps.cells import Cell


MakeCell = Callable[[Mapping[str, Any], float], "Cell"]
"""Makes the cell at some tuned values and with a share of the steps."""


@dataclass(frozen=True)
class SearchProgress:
    """How far a search has come."""

    trials: tuple[Cell, ...]
    """The trials that must run, those of earlier rungs first."""
    final: Cell | None = None
    """The cell at the chosen values. If every trial failed, it says so in `failure`."""
    waiting: PendingChoice | None = None
    """What the search waits for, while nothing is chosen."""


@dataclass
class Search:
    """The search for the values of one entrant on one task, size and format."""

    untuned_cell: Cell
    """The cell with the values that it would have without tuning."""
    points: list[dict[str, Any]]
    """The tuned values of each trial, by name."""
    tuning: Tuning
    seeds: tuple[int, ...]
    """The seeds of the board, with which the final runs are trained."""
    better: str
    """Whether a `lower` or a `higher` validation is better."""
    make_cell: MakeCell
    trial_cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    """Trials by rung and number, each made once."""

    @cached_property
    def signature(self) -> tuple[tuple[str, ...], ...]:
        """What the search would train. Two entrants with the same signature are one."""
        last_rung = len(self.tuning.rungs) - 1
        return tuple(self.trial_cell(last_rung, n).key_parts for n in range(len(self.points)))

    def advance(self, outcomes: ValidationByKey) -> SearchProgress:
        """Return the trials that must run, and the final cell if its values can be chosen.

        Args:
            outcomes: The validation of each run that has ended, by key; None for a failed one.
        """
        numbers = list(range(len(self.points)))
        trials: list[Cell] = []
        # How many trials go on after each rung. After the last one they are only ranked.
        for rung, places in enumerate((*self.tuning.count_trials_per_rung()[1:], len(self.points))):
            cells = {number: self.trial_cell(rung, number) for number in numbers}
            trials += cells.values()
            # A rung is decided when all of its trials have ended, so that the order in which
            # they end cannot matter.
            missing = tuple(
                key
                for cell in cells.values()
                for key in self.trial_keys(cell)
                if key not in outcomes
            )
            if missing:
                pending = PendingChoice(self.pending_cell, missing, self.count_later_runs(rung))
                return SearchProgress(tuple(trials), waiting=pending)
            # A refused trial has no runs. [None] makes it a failed one.
            validations = {
                number: [outcomes[key] for key in self.trial_keys(cell)] or [None]
                for number, cell in cells.items()
            }
            numbers = rank_trials(validations, self.better)[:places]
        final = self.final_cell(numbers[0]) if numbers else self.failed_cell
        return SearchProgress(tuple(trials), final=final)

    def trial_cell(self, rung: int, number: int) -> Cell:
        """Return the cell of a trial at one rung."""
        if (rung, number) not in self.trial_cells:
            values, share = self.points[number], self.tuning.rungs[rung]
            cell = self.make_cell(values, share)
            full = cell if share == 1 else self.make_cell(values, 1.0)
            variant = (
                cell.variant,
                format_parameters(values),
                f"trial {number}",
                format_count(cell.example.recipe.steps, "step") if share < 1 else "",
            )
            self.trial_cells[rung, number] = dataclasses.replace(
                cell,
                variant=", ".join(filter(None, variant)),
                stage="trial",
                rung=rung,
                trial=number,
                chosen=values,
                full_budget=full.example,
            )
        return self.trial_cells[rung, number]

    def trial_keys(self, cell: Cell) -> Iterator[str]:
        """Return the keys of a trial's runs. A trial that its method refuses has none."""
        return iter(()) if cell.refusal else (cell.key(seed) for seed in self.tuning.seeds)

    def count_later_runs(self, rung: int) -> int:
        """Return how many runs follow after a rung: those of later rungs and the final ones."""
        return sum(self.tuning.count_trials_per_rung()[rung + 1 :]) * len(self.tuning.seeds) + len(
            self.seeds
        )

    def final_cell(self, number: int) -> Cell:
        """Return the cell at the values of a trial, with all steps."""
        values = self.points[number]
        cell = self.make_cell(values, 1.0)
        variant = ", ".join(filter(None, (cell.variant, format_parameters(values))))
        return dataclasses.replace(
            cell, variant=variant, stage="final", trial=number, chosen=values
        )

    @property
    def pending_cell(self) -> Cell:
        """The final cell while its values are not chosen."""
        return dataclasses.replace(self.untuned_cell, stage="final")

    @property
    def failed_cell(self) -> Cell:
        """The final cell if no trial succeeded."""
        trials = format_count(len(self.points), "trial")
        return dataclasses.replace(
            self.pending_cell,
            failure=f"none of its {trials} succeeded, so there is nothing to choose",
        )
