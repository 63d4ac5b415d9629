"""A cell's search for its values: its trials, rung by rung, and what follows from how they ended. A pure function of their outcomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qbench.stats.trial_selection import Known, ranked
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweeps.cells import Waiting
from qbench.util.text import count, spell

if TYPE_CHECKING:
    from qbench.sweeps.cells import Cell


Make = Callable[[Mapping[str, Any], float], "Cell"]
"""The cell at some values and with a share of the steps."""


@dataclass(frozen=True)
class Found:
    """How far a search has come."""

    trials: tuple[Cell, ...]
    final: Cell | None = None
    """At the chosen values; or, where every trial failed, with that for its failure."""
    waiting: Waiting | None = None


@dataclass
class Search:
    """One entrant, task, size and format, with its trials."""

    usual: Cell
    """With the values that it would have without tuning."""
    points: list[dict[str, Any]]
    tuning: Tuning
    seeds: tuple[int, ...]
    """The board's."""
    better: str
    make: Make
    made: dict[tuple[int, int], Cell] = field(default_factory=dict)

    @cached_property
    def signature(self) -> tuple[tuple[str, ...], ...]:
        """What it would train: two entrants with the same are one."""
        return tuple(
            self.trial(len(self.tuning.rungs) - 1, n).parts for n in range(len(self.points))
        )

    def advance(self, known: Known) -> Found:
        """Every trial that must run so far; and the cell itself, once its values are chosen."""
        numbers = list(range(len(self.points)))
        trials: list[Cell] = []
        for rung, go_on in enumerate((*self.tuning.counts()[1:], len(self.points))):
            cells = {number: self.trial(rung, number) for number in numbers}
            trials += cells.values()
            if left := tuple(
                key for cell in cells.values() for key in self.keys(cell) if key not in known
            ):
                return Found(tuple(trials), waiting=Waiting(self.pending, left, self.to_come(rung)))
            best = ranked(
                {n: [known[k] for k in self.keys(cell)] or [None] for n, cell in cells.items()},
                self.better,
            )
            numbers = best[:go_on]
        return Found(tuple(trials), final=self.chosen(numbers[0]) if numbers else self.failed)

    def trial(self, rung: int, number: int) -> Cell:
        if (rung, number) not in self.made:
            values, share = self.points[number], self.tuning.rungs[rung]
            cell = self.make(values, share)
            whole = cell if share == 1 else self.make(values, 1.0)
            told = (
                cell.variant,
                spell(values),
                f"trial {number}",
                count(cell.example.recipe.steps, "step") if share < 1 else "",
            )
            self.made[rung, number] = dataclasses.replace(
                cell,
                variant=", ".join(filter(None, told)),
                stage="trial",
                rung=rung,
                trial=number,
                chosen=values,
                whole=whole.example,
            )
        return self.made[rung, number]

    def keys(self, cell: Cell) -> Iterator[str]:
        """A trial that its method refuses has no runs, and counts as failed."""
        return iter(()) if cell.refusal else (cell.key(seed) for seed in self.tuning.seeds)

    def to_come(self, rung: int) -> int:
        return sum(self.tuning.counts()[rung + 1 :]) * len(self.tuning.seeds) + len(self.seeds)

    def chosen(self, number: int) -> Cell:
        values = self.points[number]
        cell = self.make(values, 1.0)
        told = filter(None, (cell.variant, spell(values)))
        return dataclasses.replace(
            cell, variant=", ".join(told), stage="final", trial=number, chosen=values
        )

    @property
    def pending(self) -> Cell:
        return dataclasses.replace(self.usual, stage="final")

    @property
    def failed(self) -> Cell:
        return dataclasses.replace(
            self.pending,
            failure=f"none of its {count(len(self.points), 'trial')} succeeded, so there is nothing to choose",
        )
