"""The contents of a sweep file as values: SweepConfig and its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qbench.sweepfile.engine_table import RunProcesses
from qbench.sweepfile.retired_table import RetiredVersion
from qbench.sweepfile.tuning_space import RECIPE_TYPES, Tuning
from qbench.sweepfile.tuning_table import refuse_shared_seeds
from qbench.util.text import format_count

__all__ = [
    "NO_FORMAT",
    "RECIPE_TYPES",
    "TABLE_KEYS",
    "TOP_LEVEL_KEYS",
    "TRACKS",
    "FormatAxes",
    "SweepConfig",
    "SweepEntry",
]


NO_FORMAT = "none"
"""The word for full precision in a list of formats."""
TRACKS = ("fair", "as-published")
TOP_LEVEL_KEYS = (
    "board",
    "version",
    "title",
    "seeds",
    "start",
    "track",
    "methods",
    "tasks",
    "formats",
    "recipe",
    "task",
    "method",
    "tuning",
    "downstream",
    "engine",
    "retired",
)
TABLE_KEYS = {
    "task": ("name", "label", "sizes", "recipe", "formats", "params", "downstream"),
    "method": ("name", "label", "lr", "params", "preset"),
}
"""The keys of [[task]] and [[method]] tables that qbench reads. Other keys are options of the task
and hyper-parameters of the method."""


@dataclass(frozen=True)
class FormatAxes:
    """The formats to combine; `none` leaves weights or activations in full precision."""

    weights: tuple[str, ...] = ()
    granularity: tuple[str, ...] = ("channel",)
    activations: tuple[str, ...] = (NO_FORMAT,)


@dataclass(frozen=True)
class SweepEntry:
    """One [[task]] or [[method]] table, as it is written in the file."""

    name: str
    where: str
    """The place in the file, for error messages."""
    label: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    formats: FormatAxes | None = None
    preset: str = ""
    downstream: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SweepConfig:
    """The contents of one sweep file, checked as far as is possible without loading a plugin."""

    board: str
    tasks: tuple[SweepEntry, ...]
    methods: tuple[SweepEntry, ...]
    version: int = 1
    title: str = ""
    seeds: tuple[int, ...] = (0,)
    start: str = "scratch"
    track: str = "fair"
    formats: FormatAxes = FormatAxes()
    recipe: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tuning: Tuning | None = None
    downstream: tuple[str, ...] = ()
    """The downstream tasks of finished runs. They change no score, so no key contains them."""
    engine: RunProcesses = field(default_factory=RunProcesses)
    retired: tuple[RetiredVersion, ...] = ()
    file: str = ""
    text: str = ""

    def shorten(self, steps: int | None, seeds: int | None) -> SweepConfig:
        """Return the same sweep with fewer steps or seeds, for a trial.

        It is a board of its own, so its runs cannot be mistaken for those of the real board.
        """
        if steps is None and seeds is None:
            return self
        if self.tuning:
            where = f"{self.file}: {format_count(seeds or 0, 'seed')}"
            refuse_shared_seeds(self.tuning.seeds, range(seeds or 0), where)
        cuts = [
            format_count(n, word) for n, word in ((steps, "step"), (seeds, "seed")) if n is not None
        ]
        # The steps of a task override those of the sweep, so they must be cut in both places.
        recipe_cut = {} if steps is None else {"steps": (steps,)}
        return dataclasses.replace(
            self,
            board=f"{self.board}-{'-'.join(cuts).replace(' ', '-')}",
            title=f"{self.title or self.board}, cut to {' and '.join(cuts)}",
            seeds=self.seeds if seeds is None else tuple(range(seeds)),
            recipe={**self.recipe, **recipe_cut},
            tasks=tuple(
                dataclasses.replace(entry, recipe={**entry.recipe, **recipe_cut})
                for entry in self.tasks
            ),
        )
