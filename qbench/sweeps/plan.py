"""The plan: a SweepConfig → the cells and runs it asks for, each run with its key.

Here plugins are imported and asked: a method for its hyper-parameters and which sites it refuses, a task for its recipe and the
hash of its data. Nothing is written and nothing is trained. A run is a cell and a seed; its key is the hash of the cell's canonical JSON
with the seed put in, which makes a hundred thousand of them cheap.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.config import Quantization
from qbench.stats.trial_selection import Known
from qbench.sweepfile.config import RECIPE, SweepConfig
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweeps.axes import Bed, Entrant, beds, check_names, entrants, formats_of
from qbench.sweeps.cell_factory import _Maker
from qbench.sweeps.cells import Cell, Plan, PlannedRun
from qbench.sweeps.search import Search

__all__ = ["Planner", "make_plan"]


def make_plan(sweep: SweepConfig, known: Known | None = None) -> Plan:
    """Expand a sweep file. Whatever in it a plugin objects to is one line; a cell that a method has no rule for is skipped.

    What a tuned sweep comes to hangs on how its trials ended, as far as that is `known`.
    """
    return Planner(sweep).plan(known)


class Planner:
    """A sweep file that is expanded once, and planned again as its trials come in."""

    def __init__(self, sweep: SweepConfig) -> None:
        for formats in (sweep.formats, *(entry.formats for entry in sweep.tasks if entry.formats)):
            check_names(formats, sweep)
        if sweep.tuning:
            _check_knobs(sweep.tuning, sweep.file)
        self.sweep, self.maker = sweep, _Maker(sweep)
        self.cells: dict[tuple[str, ...], Cell] = {}
        """By what they train; of a tuned sweep only the skipped ones."""
        self.searches: dict[tuple[tuple[str, ...], ...], Search] = {}
        for bed, entrant in itertools.product(list(beds(sweep)), list(entrants(sweep))):
            for quantizations in formats_of(bed.formats, entrant.method, sweep):
                self.add(bed, entrant, *quantizations)

    def add(
        self,
        bed: Bed,
        entrant: Entrant,
        weights: Quantization | None,
        activations: Quantization | None,
    ) -> None:
        cell, tuning = self.maker.cell(bed, entrant, weights, activations), self.sweep.tuning
        if cell.refusal is None:
            self.check_engine(cell)
        if tuning is None or cell.refusal is not None:
            self.cells.setdefault(cell.parts, cell)
            return

        def make(values: Mapping[str, Any], share: float) -> Cell:
            return self.maker.cell(
                *_tuned(bed, entrant, values, share, f"{self.sweep.file}: [tuning]"),
                weights,
                activations,
            )

        points = tuning.draw(entrant.method.name)
        search = Search(cell, points, tuning, self.sweep.seeds, bed.task.metric.better, make)
        self.searches.setdefault(search.signature, search)

    def check_engine(self, cell: Cell) -> None:
        """That the cell can be trained as the file wants it to be. If not the file is wrong, and the cell has no fault that a board could show."""
        engine = self.sweep.engine
        if engine.gpus_per_run > 1:
            from qbench.execution.workload import objection

            if sentence := objection(cell.example, engine.gpus_per_run, engine.fsdp):
                raise UsageError(f"{self.sweep.file}: [engine]: {sentence}")

    def plan(self, known: Known | None = None) -> Plan:
        found = [search.advance(known or {}) for search in self.searches.values()]
        trials = sorted(
            (cell for f in found for cell in f.trials), key=lambda cell: (cell.rung, cell.trial)
        )
        finals = [
            *self.cells.values(),
            *(f.final for f in found if f.final and not f.final.failure),
        ]
        cells, runs = list[Cell](), dict[str, PlannedRun]()
        for stage, seeds in (
            (trials, self.sweep.tuning.seeds if self.sweep.tuning else ()),
            (finals, self.sweep.seeds),
        ):
            ordered = _ordered(stage)
            cells += ordered
            for run in _runs(ordered, seeds):
                runs.setdefault(run.key, run)
        return Plan(
            self.sweep,
            tuple(cells),
            tuple(cell for cell in (*finals, *trials) if cell.refusal is not None),
            runs,
            tuple(f.waiting for f in found if f.waiting),
            tuple(f.final for f in found if f.final and f.final.failure),
            tuple(_retired(finals, self.sweep)),
        )


def _retired(cells: Iterable[Cell], sweep: SweepConfig) -> Iterator[Cell]:
    """The board's cells as they were at the versions that were withdrawn."""
    for old in sweep.retired:
        where, own = (
            f"{sweep.file}: [[retired]]",
            [cell for cell in cells if cell.example.method == old.method],
        )
        if not own:
            raise UsageError(f"{where}: {old.method!r} is no method of this sweep")
        if old.version >= own[0].example.method_version:
            raise UsageError(
                f"{where}: version {old.version} of {old.method} is not older than the one that is trained"
            )
        for cell in own:
            if cell.refusal is None:
                yield dataclasses.replace(
                    cell,
                    example=dataclasses.replace(cell.example, method_version=old.version),
                    retired=old.reason,
                )


def _ordered(cells: list[Cell]) -> list[Cell]:
    """Those that can run, each behind what it goes on from. Trials at one point are one run and two cells."""
    asked: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        asked.setdefault(cell.parts, cell)
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in _with_bases([cell for cell in cells if cell.refusal is None], asked):
        found.setdefault((cell.parts, cell.rung, cell.trial), cell)
    return list(found.values())


def _with_bases(cells: list[Cell], asked: Mapping[tuple[str, ...], Cell]) -> Iterator[Cell]:
    for cell in cells:
        if cell.base:
            base = asked.get(cell.base.parts) or dataclasses.replace(cell.base, extra=True)
            yield from _with_bases([base], asked)
        yield cell


def _runs(cells: Iterable[Cell], seeds: Iterable[int]) -> Iterator[PlannedRun]:
    for seed in seeds:
        for cell in cells:
            yield PlannedRun(cell, seed, cell.key(seed), cell.base.key(seed) if cell.base else None)


def _tuned(
    bed: Bed, entrant: Entrant, values: Mapping[str, Any], share: float, where: str
) -> tuple[Bed, Entrant]:
    """What a trial meets and who meets it: shared words go into the recipe, the others are the method's."""
    shared = {name: value for name, value in values.items() if name in RECIPE}
    knobs = {name: value for name, value in values.items() if name not in RECIPE}
    recipe = dataclasses.replace(
        bed.recipe, **shared, steps=max(1, round(share * bed.recipe.steps))
    )
    method = (
        registry.build("methods", entrant.method.name, {**entrant.method.params, **knobs}, where)
        if knobs
        else entrant.method
    )
    return dataclasses.replace(bed, recipe=recipe, usual=bed.recipe), dataclasses.replace(
        entrant, method=method
    )


def _check_knobs(tuning: Tuning, file: str) -> None:
    """A board tunes what a method names for it, within its domain."""
    for name, knobs in tuning.own.items():
        where, named = f"{file}: [tuning.own.{name}]", registry.load("methods", name).knobs
        for knob, axis in knobs.items():
            if knob not in named or knob in RECIPE:
                raise UsageError(
                    f"{where}: {knob} is no knob that {name} has tuned: {', '.join(named) or 'it names none'}"
                )
            for end in axis.ends:
                registry.build("methods", name, {knob: end}, where)
