"""The plan: a SweepConfig → the cells and runs it asks for, each run with its key.

Here plugins are imported and asked: a method for its hyper-parameters and which sites it refuses, a task for its recipe and the
hash of its data. Nothing is written and nothing is trained. A run is a cell and a seed; its key is the hash of the cell's canonical JSON
with the seed put in, which makes a hundred thousand of them cheap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from qbench import registry
from qbench.axes import Bed, Entrant, beds, check_names, entrants, formats_of
from qbench.config import Quantization, Recipe, RunConfig, canonical, cell_title
from qbench.errors import UsageError
from qbench.search import Search, Waiting
from qbench.sweepfile import RECIPE, SweepConfig
from qbench.text import spell
from qbench.trials import Known
from qbench.tuning import Tuning

if TYPE_CHECKING:
    from qbench.method import Method
    from qbench.task import Task

__all__ = ["Cell", "Plan", "PlannedRun", "Planner", "make_plan"]

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
        return self.sweep.tuning.seeds if cell.stage == "trial" and self.sweep.tuning else self.sweep.seeds


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

    def add(self, bed: Bed, entrant: Entrant, weights: Quantization | None, activations: Quantization | None) -> None:
        cell, tuning = self.maker.cell(bed, entrant, weights, activations), self.sweep.tuning
        if cell.refusal is None:
            self.check_engine(cell)
        if tuning is None or cell.refusal is not None:
            self.cells.setdefault(cell.parts, cell)
            return

        def make(values: Mapping[str, Any], share: float) -> Cell:
            return self.maker.cell(*_tuned(bed, entrant, values, share, f"{self.sweep.file}: [tuning]"), weights, activations)

        points = tuning.draw(entrant.method.name)
        search = Search(cell, points, tuning, self.sweep.seeds, bed.task.metric.better, make)
        self.searches.setdefault(search.signature, search)

    def check_engine(self, cell: Cell) -> None:
        """That the cell can be trained as the file wants it to be. If not the file is wrong, and the cell has no fault that a board could show."""
        engine = self.sweep.engine
        if engine.gpus_per_run > 1:
            from qbench.parallel import objection

            if sentence := objection(cell.example, engine.gpus_per_run, engine.fsdp):
                raise UsageError(f"{self.sweep.file}: [engine]: {sentence}")

    def plan(self, known: Known | None = None) -> Plan:
        found = [search.advance(known or {}) for search in self.searches.values()]
        trials = sorted((cell for f in found for cell in f.trials), key=lambda cell: (cell.rung, cell.trial))
        finals = [*self.cells.values(), *(f.final for f in found if f.final and not f.final.failure)]
        cells, runs = list[Cell](), dict[str, PlannedRun]()
        for stage, seeds in ((trials, self.sweep.tuning.seeds if self.sweep.tuning else ()), (finals, self.sweep.seeds)):
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
        where, own = f"{sweep.file}: [[retired]]", [cell for cell in cells if cell.example.method == old.method]
        if not own:
            raise UsageError(f"{where}: {old.method!r} is no method of this sweep")
        if old.version >= own[0].example.method_version:
            raise UsageError(f"{where}: version {old.version} of {old.method} is not older than the one that is trained")
        for cell in own:
            if cell.refusal is None:
                yield dataclasses.replace(cell, example=dataclasses.replace(cell.example, method_version=old.version), retired=old.reason)


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


def _tuned(bed: Bed, entrant: Entrant, values: Mapping[str, Any], share: float, where: str) -> tuple[Bed, Entrant]:
    """What a trial meets and who meets it: shared words go into the recipe, the others are the method's."""
    shared = {name: value for name, value in values.items() if name in RECIPE}
    knobs = {name: value for name, value in values.items() if name not in RECIPE}
    recipe = dataclasses.replace(bed.recipe, **shared, steps=max(1, round(share * bed.recipe.steps)))
    method = registry.build("methods", entrant.method.name, {**entrant.method.params, **knobs}, where) if knobs else entrant.method
    return dataclasses.replace(bed, recipe=recipe, usual=bed.recipe), dataclasses.replace(entrant, method=method)


def _check_knobs(tuning: Tuning, file: str) -> None:
    """A board tunes what a method names for it, within its domain."""
    for name, knobs in tuning.own.items():
        where, named = f"{file}: [tuning.own.{name}]", registry.load("methods", name).knobs
        for knob, axis in knobs.items():
            if knob not in named or knob in RECIPE:
                raise UsageError(f"{where}: {knob} is no knob that {name} has tuned: {', '.join(named) or 'it names none'}")
            for end in axis.ends:
                registry.build("methods", name, {knob: end}, where)


@dataclass
class _Maker:
    """Makes cells, and asks each question of a plugin once."""

    sweep: SweepConfig
    refusals: dict[str, str | None] = field(default_factory=dict)
    bases: dict[str, Cell] = field(default_factory=dict)

    def cell(
        self, bed: Bed, entrant: Entrant, weights: Quantization | None, activations: Quantization | None, start: str | None = None
    ) -> Cell:
        own = {**entrant.recipe, **dict(zip(("lr",), entrant.lr, strict=False))}
        method, task = entrant.method, bed.task
        config = RunConfig(
            board_version=self.sweep.version,
            method=method.name, method_version=method.version, method_params=method.params,
            task=task.name, task_version=task.version, task_params=bed.params, data=bed.data, size=bed.size,
            weights=weights, activations=activations,
            recipe=dataclasses.replace(bed.recipe, **own), start=start or entrant.start or self.sweep.start, seed=0,
        )  # fmt: skip
        if config.recipe.objective == "distill" and config.start == "scratch":
            raise UsageError(f'{self.sweep.file}: objective = "distill" needs a network to imitate: write start = "fp:0.5"')
        variant = spell({**{k: v for k, v in bed.axes.items() if k not in own}, **entrant.axes})
        base = self.base(bed, method, config)
        refusal = f"{base.label}: {base.refusal}" if base and base.refusal else self.refusal(config, task)
        return Cell(config, entrant.label, variant, base, refusal=refusal)

    def base(self, bed: Bed, method: Method, config: RunConfig) -> Cell | None:
        """What a run goes on from: the finished run that a post-training method takes, or the network that everybody starts from."""
        bed = dataclasses.replace(bed, recipe=config.recipe)
        if method.after is not None:
            return self.other(method.after, bed, config, config.start)
        if config.start == "scratch":
            return None
        name, share = config.start.split(":")
        whole = self.untuned(bed, config.recipe)
        recipe = dataclasses.replace(whole, steps=max(1, round(float(share) * whole.steps)), objective="task")
        return self.other(name, dataclasses.replace(bed, recipe=recipe), config, "scratch")

    def untuned(self, bed: Bed, recipe: Recipe) -> Recipe:
        """With the values that tuned words have without tuning, and the whole budget: trials start from one network, not each from its own."""
        if bed.usual is None or self.sweep.tuning is None:
            return recipe
        return dataclasses.replace(recipe, **{word: getattr(bed.usual, word) for word in ("steps", *self.sweep.tuning.axes)})

    def other(self, name: str, bed: Bed, config: RunConfig, start: str) -> Cell:
        method = registry.build("methods", name, {}, self.sweep.file)
        recipes = [recipe and dataclasses.asdict(recipe) for recipe in (bed.recipe, bed.usual)]
        same = canonical([name, start, bed.size, recipes, bed.task.name, bed.params])
        formats = (config.weights, config.activations) if method.quantizes else (None, None)
        same += canonical([q and dataclasses.asdict(q) for q in formats])
        if same not in self.bases:
            self.bases[same] = self.cell(bed, Entrant(method, name), *formats, start=start)
        return self.bases[same]

    def refusal(self, config: RunConfig, task: Task) -> str | None:
        """Why the cell cannot run. Of the recipe the objective alone has a say, and the seed has none."""
        if config.activations and not task.activations:
            return f"{task.name} has no activations to quantize"
        from qbench import questions

        c = config
        asked = (c.method, c.method_params, c.start, c.recipe.objective, c.task, c.task_params, c.size, *_names(c))
        question = canonical(asked)
        if question not in self.refusals:
            self.refusals[question] = questions.refusal(config)
        return self.refusals[question]


def _names(config: RunConfig) -> list[str | None]:
    return [name for q in (config.weights, config.activations) for name in ((q.format, q.granularity) if q else (None, None))]
