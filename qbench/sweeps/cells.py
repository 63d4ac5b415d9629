"""Cell, PlannedRun, Plan as values."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from qbench.runs.config import RunConfig, canonical, cell_title
from qbench.sweepfile.config import SweepConfig

__all__ = ["Cell", "Plan", "PlannedRun"]


SEED, BASE = "@@seed@@", "@@base@@"


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed alone."""

    example: RunConfig
    """The run of any seed; its `seed` and `base` mean nothing."""
    label: str
    """What tables call the method."""
    variant: str = ""
    """The values of the axes that tell this cell from its sisters, such as `lr=0.003`."""
    base: Cell | None = None
    """Whose run of the same seed this one goes on from."""
    extra: bool = False
    """Not asked for by the file: another cell goes on from it."""
    refusal: str | None = None
    """Why it is skipped, in a sentence."""
    stage: Literal["", "trial", "final"] = ""
    """In a tuned board: whether its runs choose or are reported."""
    rung: int | None = None
    trial: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What is tuned, by name: the values that a trial tries, and those that were chosen."""
    whole: RunConfig | None = None
    """Of a trial: the run with the whole budget, where halving makes this one shorter."""
    failure: str | None = None
    """Why none of its runs is attempted although its method has a rule for it."""
    retired: str = ""
    """Why this version of the method was withdrawn: its runs are shown and not made."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The canonical JSON around the base and the seed."""
        data = {**self.example.to_json(), "seed": SEED, "base": BASE if self.base else None}
        parts = tuple(canonical(data).replace(f'"{BASE}"', f'"{SEED}"').split(f'"{SEED}"'))
        assert len(parts) == (3 if self.base else 2), "a parameter is called like our placeholder"
        return parts

    def key(self, seed: int) -> str:
        seeded = f"{seed}".join(self.parts[-2:])
        text = f'{self.parts[0]}"{self.base.key(seed)}"{seeded}' if self.base else seeded
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def title(self) -> str:
        return cell_title(self.label, self.example, self.variant)


@dataclass(frozen=True)
class PlannedRun:
    """A cell, a seed and the key they make."""

    cell: Cell
    seed: int
    key: str
    base: str | None

    @property
    def config(self) -> RunConfig:
        return dataclasses.replace(self.cell.example, seed=self.seed, base=self.base)

    @property
    def title(self) -> str:
        return f"{self.cell.title} seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a sweep file comes to."""

    sweep: SweepConfig
    cells: tuple[Cell, ...]
    """Those that can run, bases before what goes on from them."""
    skipped: tuple[Cell, ...]
    runs: Mapping[str, PlannedRun]
    """By key, in the order of the file within a seed, and seed by seed, so that a board fills evenly."""
    waiting: tuple[Waiting, ...] = ()
    """Cells whose values are chosen when their trials are done."""
    failed: tuple[Cell, ...] = ()
    """Cells of which no trial came through."""
    retired: tuple[Cell, ...] = ()

    def seeds(self, cell: Cell) -> tuple[int, ...]:
        """Those that tune, or those that are reported."""
        return (
            self.sweep.tuning.seeds
            if cell.stage == "trial" and self.sweep.tuning
            else self.sweep.seeds
        )


@dataclass(frozen=True)
class Waiting:
    """A cell whose values are not chosen yet."""

    cell: Cell
    keys: tuple[str, ...]
    """The trial runs that must be over before more can be said."""
    runs: int
    """Of its later rungs and its own, which nobody knows yet."""
