"""Cells, planned runs, plans and shards: the values that a sweep file is expanded to."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from qbench.errors import UsageError
from qbench.runs.config import RunConfig, canonical_json, format_cell_title
from qbench.sweepfile.config import SweepConfig

__all__ = ["WHOLE_SWEEP", "Cell", "PendingChoice", "Plan", "PlannedRun", "Shard"]


SEED, BASE = "@@seed@@", "@@base@@"
"""Placeholders in a cell's JSON, where each run has its own seed and the key of its base."""


@dataclass(frozen=True)
class Cell:
    """Runs that differ in the seed only."""

    example: RunConfig
    """The configuration of these runs. Its `seed` and `base` mean nothing."""
    label: str
    """How tables name the method."""
    variant: str = ""
    """The axis values that distinguish this cell from similar ones, such as `lr=0.003`."""
    base: Cell | None = None
    """The cell whose run of the same seed this one starts from."""
    extra: bool = False
    """True if the file does not ask for the cell, and it is only the base of another one."""
    refusal: str | None = None
    """Why the cell is skipped, as a sentence."""
    stage: Literal["", "trial", "final"] = ""
    """In a tuned board: `trial` runs choose the values, `final` runs are reported."""
    rung: int | None = None
    """The rung of halving that a trial belongs to."""
    trial: int | None = None
    """The number of the trial; for a final cell, of the trial that was chosen."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """The tuned values by name: those that a trial tries, or those that were chosen."""
    full_budget: RunConfig | None = None
    """For a trial: its configuration with all steps, where halving makes this one shorter."""
    failure: str | None = None
    """Why none of the cell's runs is attempted although its method has a rule for it."""
    retired: str = ""
    """Why this version of the method was withdrawn. Its runs are shown and never trained."""

    @cached_property
    def key_parts(self) -> tuple[str, ...]:
        """The cell's canonical JSON, split where the seed and the key of the base belong.

        Serialising once a cell instead of once a run is what makes 100,000 keys cheap.
        """
        data = {**self.example.to_json(), "seed": SEED, "base": BASE if self.base else None}
        # The seed is a bare number in the JSON and the base is a quoted string, so the quotes
        # around the placeholders go, and `key` puts them back around the base.
        parts = tuple(canonical_json(data).replace(f'"{BASE}"', f'"{SEED}"').split(f'"{SEED}"'))
        assert len(parts) == (3 if self.base else 2), "a parameter is called like our placeholder"
        return parts

    def key(self, seed: int) -> str:
        """Return the key of the run with this seed, equal to `RunConfig.key` of its config."""
        # Keys of JSON objects are sorted, so "base" comes before "seed".
        seeded = f"{seed}".join(self.key_parts[-2:])
        text = f'{self.key_parts[0]}"{self.base.key(seed)}"{seeded}' if self.base else seeded
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def title(self) -> str:
        """How progress and messages name the cell, such as `ste int4 toy/xs lr=0.003`."""
        return format_cell_title(self.label, self.example, self.variant)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan: a cell with a seed, its key, and the key of the run it starts from."""

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
    """All cells and runs of a sweep file, as far as they are known by now."""

    sweep: SweepConfig
    cells: tuple[Cell, ...]
    """Cells that can run. A base comes before the cells that start from it."""
    skipped: tuple[Cell, ...]
    """Cells that their method or task has no rule for."""
    runs: Mapping[str, PlannedRun]
    """Runs by key. All cells of one seed come before the next seed, so that a board fills
    evenly."""
    waiting: tuple[PendingChoice, ...] = ()
    """Cells whose values are chosen when their trials have ended."""
    failed: tuple[Cell, ...] = ()
    """Cells of which every trial failed."""
    retired: tuple[Cell, ...] = ()
    """Cells at withdrawn versions of their method."""

    def seeds(self, cell: Cell) -> tuple[int, ...]:
        """Return the seeds of a cell: the tuning seeds for a trial, else those of the board."""
        return (
            self.sweep.tuning.seeds
            if cell.stage == "trial" and self.sweep.tuning
            else self.sweep.seeds
        )


@dataclass(frozen=True)
class PendingChoice:
    """A cell whose tuned values have not been chosen yet."""

    cell: Cell
    keys: tuple[str, ...]
    """Trial runs that must end before the search can continue."""
    runs: int
    """Number of runs that follow and have no keys yet: those of later rungs and the cell's own."""


@dataclass(frozen=True)
class Shard:
    """The part of a sweep that one machine trains, such as `--shard 3/8`, counted from 0.

    Shards are disjoint, and together they are the whole sweep. A run belongs to a shard by its key
    and not by its place in the plan, so it stays there when the file grows. A run that starts from
    another belongs to the shard of that one, so no shard waits for another's network. Only the
    choice of tuned values needs the trials of all shards: merge them, and then give the same
    command again.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that an option such as `3/8` names."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if not match:
            raise UsageError(f"--shard {text}: write i/n, such as 0/8")
        index, count = int(match[1]), int(match[2])
        if index >= count:
            last = count - 1
            valid = (
                f"0/{count} to {last}/{count}, as in sbatch --array=0-{last}"
                if count
                else "0/1 is the whole sweep"
            )
            raise UsageError(f"--shard {text}: shards are counted from 0: {valid}")
        return cls(index, count)

    def contains(self, plan: Plan, key: str) -> bool:
        """Return whether a run is trained by this shard."""
        # The run at the root of a chain of bases decides for all runs of the chain.
        while (run := plan.runs.get(key)) and run.base:
            key = run.base
        # A key is a hash, so the first half of its digits is a uniform number.
        return int(key[:16], 16) % self.count == self.index


WHOLE_SWEEP = Shard(0, 1)
