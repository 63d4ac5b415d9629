"""SweepConfig and its parts as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from qbench.runs.config import Recipe
from qbench.sweepfile.engine_table import Processes
from qbench.sweepfile.retired_table import Retired
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweepfile.tuning_table import check_seeds
from qbench.util.text import count

__all__ = ["NONE", "Entry", "Formats", "SweepConfig"]


NONE = "none"
OURS = {
    "task": ("name", "label", "sizes", "recipe", "formats", "params", "downstream"),
    "method": ("name", "label", "lr", "params", "preset"),
}
RECIPE = get_type_hints(Recipe)


@dataclass(frozen=True)
class Formats:
    """Three axes. `none` among weights or activations leaves that role in full precision."""

    weights: tuple[str, ...] = ()
    granularity: tuple[str, ...] = ("channel",)
    activations: tuple[str, ...] = (NONE,)


@dataclass(frozen=True)
class Entry:
    """A [[task]] or a [[method]], as it was written."""

    name: str
    where: str
    label: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    formats: Formats | None = None
    preset: str = ""
    downstream: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SweepConfig:
    """What one sweep file asks for, before any plugin has been asked what it means."""

    board: str
    tasks: tuple[Entry, ...]
    methods: tuple[Entry, ...]
    version: int = 1
    title: str = ""
    seeds: tuple[int, ...] = (0,)
    start: str = "scratch"
    track: str = "fair"
    formats: Formats = Formats()
    recipe: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tuning: Tuning | None = None
    downstream: tuple[str, ...] = ()
    """What is asked of finished runs. It cannot move a score, so it is in no key."""
    engine: Processes = field(default_factory=Processes)
    retired: tuple[Retired, ...] = ()
    file: str = ""
    text: str = ""

    def shortened(self, steps: int | None, seeds: int | None) -> SweepConfig:
        """The same sweep with fewer steps or seeds, to try things on: a board of its own, whose runs nobody takes for the real ones."""
        if steps is None and seeds is None:
            return self
        if self.tuning:
            check_seeds(
                self.tuning.seeds, range(seeds or 0), f"{self.file}: {count(seeds or 0, 'seed')}"
            )
        few = [count(n, word) for n, word in ((steps, "step"), (seeds, "seed")) if n is not None]
        cut = {} if steps is None else {"steps": (steps,)}
        return dataclasses.replace(
            self,
            board=f"{self.board}-{'-'.join(few).replace(' ', '-')}",
            title=f"{self.title or self.board}, cut to {' and '.join(few)}",
            seeds=self.seeds if seeds is None else tuple(range(seeds)),
            recipe={**self.recipe, **cut},
            tasks=tuple(
                dataclasses.replace(entry, recipe={**entry.recipe, **cut}) for entry in self.tasks
            ),
        )
