"""Plan: expand a SweepConfig into the cells and runs that it asks for, each run with its key.

Planning imports plugins and calls them: a method for its hyper-parameters and the sites that it
refuses, a task for its recipe and the hash of its data. It writes nothing and trains nothing. A run
is a cell with a seed, and its key is the hash of the cell's canonical JSON with the seed put in, so
a hundred thousand runs are cheap to plan.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.runs.config import Quantization
from qbench.stats.trial_selection import ValidationByKey
from qbench.sweepfile.config import RECIPE_TYPES, SweepConfig
from qbench.sweepfile.tuning_space import Tuning
from qbench.sweeps.axes import (
    MethodSetting,
    TaskSetting,
    check_format_names,
    expand_formats,
    expand_methods,
    expand_tasks,
)
from qbench.sweeps.cell_factory import CellFactory
from qbench.sweeps.cells import Cell, Plan, PlannedRun
from qbench.sweeps.search import Search

__all__ = ["Planner", "make_plan"]


def make_plan(sweep: SweepConfig, outcomes: ValidationByKey | None = None) -> Plan:
    """Return the plan of a sweep file.

    Raises UsageError if a plugin rejects something in the file. A cell that a method has no rule
    for is skipped instead.

    Args:
        sweep: The sweep file.
        outcomes: How runs have ended so far: their validation by key, or None for a failed one.
            Only a tuned sweep depends on it.
    """
    return Planner(sweep).plan(outcomes)


class Planner:
    """Expands a sweep file once, and plans again whenever more trials have ended."""

    def __init__(self, sweep: SweepConfig) -> None:
        for formats in (sweep.formats, *(entry.formats for entry in sweep.tasks if entry.formats)):
            check_format_names(formats, sweep)
        if sweep.tuning:
            _check_own_parameters(sweep.tuning, sweep.file)
        self.sweep, self.factory = sweep, CellFactory(sweep)
        self.cells: dict[tuple[str, ...], Cell] = {}
        """Cells that need no search, by what they train. In a tuned sweep only skipped ones."""
        self.searches: dict[tuple[tuple[str, ...], ...], Search] = {}
        """Searches by what they train, so that two equal entrants are one."""
        settings = itertools.product(list(expand_tasks(sweep)), list(expand_methods(sweep)))
        for task_setting, method_setting in settings:
            formats_of_method = expand_formats(task_setting.formats, method_setting.method, sweep)
            for quantizations in formats_of_method:
                self._add_cell(task_setting, method_setting, *quantizations)

    def plan(self, outcomes: ValidationByKey | None = None) -> Plan:
        """Return the plan as far as the outcomes of trials determine it."""
        searches = [search.advance(outcomes or {}) for search in self.searches.values()]
        # Trial by trial over all cells, so that an interrupted board is filled evenly.
        trials = sorted(
            (cell for s in searches for cell in s.trials), key=lambda cell: (cell.rung, cell.trial)
        )
        finals = [
            *self.cells.values(),
            *(s.final for s in searches if s.final and not s.final.failure),
        ]
        tuning_seeds = self.sweep.tuning.seeds if self.sweep.tuning else ()
        cells, runs = list[Cell](), dict[str, PlannedRun]()
        # Trials first, because final runs wait for them.
        for stage, seeds in ((trials, tuning_seeds), (finals, self.sweep.seeds)):
            ordered = _order_cells(stage)
            cells += ordered
            for run in _make_runs(ordered, seeds):
                # Two cells may share a run, such as trials at the same values. It keeps its
                # first place.
                runs.setdefault(run.key, run)
        return Plan(
            self.sweep,
            tuple(cells),
            tuple(cell for cell in (*finals, *trials) if cell.refusal is not None),
            runs,
            tuple(s.waiting for s in searches if s.waiting),
            tuple(s.final for s in searches if s.final and s.final.failure),
            tuple(_make_retired_cells(finals, self.sweep)),
        )

    def _add_cell(
        self,
        task_setting: TaskSetting,
        method_setting: MethodSetting,
        weights: Quantization | None,
        activations: Quantization | None,
    ) -> None:
        """Add a cell or, in a tuned sweep, the search for its values."""
        cell = self.factory.make_cell(task_setting, method_setting, weights, activations)
        tuning = self.sweep.tuning
        if cell.refusal is None:
            self._check_process_count(cell)
        if tuning is None or cell.refusal is not None:
            self.cells.setdefault(cell.key_parts, cell)
            return

        def make_trial(values: Mapping[str, Any], share: float) -> Cell:
            where = f"{self.sweep.file}: [tuning]"
            settings = _apply_tuned_values(task_setting, method_setting, values, share, where)
            return self.factory.make_cell(*settings, weights, activations)

        points = tuning.draw_trials(method_setting.method.name)
        better = task_setting.task.metric.better
        search = Search(cell, points, tuning, self.sweep.seeds, better, make_trial)
        self.searches.setdefault(search.signature, search)

    def _check_process_count(self, cell: Cell) -> None:
        """Raise UsageError if the cell cannot be trained by as many processes as the file says.

        It is an error and not a skipped cell: the file is wrong, and the method is not to blame.
        """
        processes = self.sweep.engine.gpus_per_run
        if processes > 1:
            from qbench.execution.workload import multi_process_refusal

            if sentence := multi_process_refusal(cell.example, processes):
                raise UsageError(f"{self.sweep.file}: [engine]: {sentence}")


def _make_retired_cells(cells: Iterable[Cell], sweep: SweepConfig) -> Iterator[Cell]:
    """Yield the board's cells at the withdrawn versions that the file lists."""
    for retired in sweep.retired:
        where = f"{sweep.file}: [[retired]]"
        cells_of_method = [cell for cell in cells if cell.example.method == retired.method]
        if not cells_of_method:
            raise UsageError(f"{where}: {retired.method!r} is no method of this sweep")
        if retired.version >= cells_of_method[0].example.method_version:
            raise UsageError(
                f"{where}: version {retired.version} of {retired.method} is not older than the"
                " one that is trained"
            )
        for cell in cells_of_method:
            if cell.refusal is None:
                example = dataclasses.replace(cell.example, method_version=retired.version)
                yield dataclasses.replace(cell, example=example, retired=retired.reason)


def _order_cells(cells: list[Cell]) -> list[Cell]:
    """Return the cells that can run, each after its base.

    Trials of one rung at the same values are one run but two cells, so a cell is identified by its
    rung and trial as well.
    """
    requested: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        requested.setdefault(cell.key_parts, cell)
    ordered: dict[tuple[Any, ...], Cell] = {}
    for cell in _put_bases_first([cell for cell in cells if cell.refusal is None], requested):
        ordered.setdefault((cell.key_parts, cell.rung, cell.trial), cell)
    return list(ordered.values())


def _put_bases_first(
    cells: list[Cell], requested: Mapping[tuple[str, ...], Cell]
) -> Iterator[Cell]:
    """Yield each cell after its base, marked as `extra` if the file does not request that base."""
    for cell in cells:
        if cell.base:
            base = requested.get(cell.base.key_parts)
            base = base or dataclasses.replace(cell.base, extra=True)
            yield from _put_bases_first([base], requested)
        yield cell


def _make_runs(cells: Iterable[Cell], seeds: Iterable[int]) -> Iterator[PlannedRun]:
    for seed in seeds:
        for cell in cells:
            yield PlannedRun(cell, seed, cell.key(seed), cell.base.key(seed) if cell.base else None)


def _apply_tuned_values(
    task_setting: TaskSetting,
    method_setting: MethodSetting,
    values: Mapping[str, Any],
    share: float,
    where: str,
) -> tuple[TaskSetting, MethodSetting]:
    """Return the settings of a trial with its tuned values and its share of the steps.

    Values that name a word of the recipe go into the recipe, the others into the method.
    """
    recipe = task_setting.recipe
    in_recipe = {name: value for name, value in values.items() if name in RECIPE_TYPES}
    in_method = {name: value for name, value in values.items() if name not in RECIPE_TYPES}
    shorter = dataclasses.replace(recipe, **in_recipe, steps=max(1, round(share * recipe.steps)))
    method = method_setting.method
    if in_method:
        method = registry.build("methods", method.name, {**method.params, **in_method}, where)
    return (
        dataclasses.replace(task_setting, recipe=shorter, untuned_recipe=recipe),
        dataclasses.replace(method_setting, method=method),
    )


def _check_own_parameters(tuning: Tuning, file: str) -> None:
    """Raise UsageError if [tuning.own] names no hyper-parameter of its method, or a bad value."""
    for method_name, axes in tuning.own.items():
        where = f"{file}: [tuning.own.{method_name}]"
        for name, axis in axes.items():
            # Such a value would be put into the recipe, of which all methods have the same.
            if name in RECIPE_TYPES:
                raise UsageError(f"{where}: {name} belongs to the recipe: tune it in [tuning]")
            # Building the method checks name, type and range of the value, here at both ends.
            for end in axis.ends:
                registry.build("methods", method_name, {name: end}, where)
