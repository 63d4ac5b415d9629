"""The plan: a SweepConfig → the cells and runs it asks for, each run with its key.

Here plugins are imported and asked: a method for its hyper-parameters and which sites it refuses, a task for its recipe and the
hash of its data. Nothing is written and nothing is trained. A run is a cell and a seed; its key is the hash of the cell's canonical JSON
with the seed put in, which makes a hundred thousand of them cheap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from qbench import registry
from qbench.config import Quantization, Recipe, RunConfig, canonical
from qbench.errors import UsageError, unknown
from qbench.sweepfile import NONE, OURS, RECIPE, Entry, Formats, SweepConfig, unknown_key

if TYPE_CHECKING:
    from qbench.method import Method, Preset
    from qbench.task import Task

__all__ = ["Cell", "Plan", "PlannedRun", "make_plan"]

ACTIVATION_GRANULARITY = "tensor"
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
        c = self.example
        return " ".join(
            filter(None, (self.label, c.format_label if c.weights or c.activations else "", f"{c.task}/{c.size}", self.variant))
        )


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


@dataclass(frozen=True)
class _Bed:
    """A task with its options at one size and with one recipe: what every method meets alike."""

    task: Task
    size: str
    recipe: Recipe
    formats: Formats
    data: str
    axes: Mapping[str, Any]
    """The values that tell it from its sisters."""


@dataclass(frozen=True)
class _Entrant:
    method: Method
    label: str
    lr: tuple[float, ...] = ()
    """One rate, or none: then the recipe's."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Of its preset, over the board's."""
    start: str | None = None
    axes: Mapping[str, Any] = field(default_factory=dict)
    """The values that tell it from its sisters."""


def make_plan(sweep: SweepConfig) -> Plan:
    """Expand a sweep file. Whatever in it a plugin objects to is one line; a cell that a method has no rule for is skipped."""
    for formats in (sweep.formats, *(entry.formats for entry in sweep.tasks if entry.formats)):
        _check_names(formats, sweep)
    maker = _Maker(sweep)
    beds, entrants = list(_beds(sweep)), list(_entrants(sweep))
    cells: dict[tuple[str, ...], Cell] = {}
    for bed, entrant in itertools.product(beds, entrants):
        for weights, activations in _formats(bed.formats, entrant.method, sweep):
            cell = maker.cell(bed, entrant, weights, activations)
            cells.setdefault(cell.parts, cell)
    runnable = [cell for cell in cells.values() if cell.refusal is None]
    ordered = {cell.parts: cell for cell in _with_bases(runnable, cells)}
    runs = {}
    for seed in sweep.seeds:
        for cell in ordered.values():
            key = cell.key(seed)
            runs[key] = PlannedRun(cell, seed, key, cell.base.key(seed) if cell.base else None)
    return Plan(sweep, tuple(ordered.values()), tuple(c for c in cells.values() if c.refusal is not None), runs)


def _with_bases(cells: list[Cell], asked: Mapping[tuple[str, ...], Cell]) -> Iterator[Cell]:
    for cell in cells:
        if cell.base:
            yield from _with_bases([cell.base], asked)
        yield asked.get(cell.parts) or dataclasses.replace(cell, extra=True)


@dataclass
class _Maker:
    """Makes cells, and asks each question of a plugin once."""

    sweep: SweepConfig
    refusals: dict[str, str | None] = field(default_factory=dict)
    bases: dict[str, Cell] = field(default_factory=dict)

    def cell(
        self, bed: _Bed, entrant: _Entrant, weights: Quantization | None, activations: Quantization | None, start: str | None = None
    ) -> Cell:
        own = {**entrant.recipe, **dict(zip(("lr",), entrant.lr, strict=False))}
        method, task = entrant.method, bed.task
        config = RunConfig(
            board_version=self.sweep.version,
            method=method.name, method_version=method.version, method_params=method.params,
            task=task.name, task_version=task.version, task_params=task.params, data=bed.data, size=bed.size,
            weights=weights, activations=activations,
            recipe=dataclasses.replace(bed.recipe, **own), start=start or entrant.start or self.sweep.start, seed=0,
        )  # fmt: skip
        if config.recipe.objective == "distill" and config.start == "scratch":
            raise UsageError(f'{self.sweep.file}: objective = "distill" needs a network to imitate: write start = "fp:0.5"')
        variant = _spell({**{k: v for k, v in bed.axes.items() if k not in own}, **entrant.axes})
        base = self.base(bed, method, config)
        refusal = f"{base.label}: {base.refusal}" if base and base.refusal else self.refusal(config, task)
        return Cell(config, entrant.label, variant, base, refusal=refusal)

    def base(self, bed: _Bed, method: Method, config: RunConfig) -> Cell | None:
        """What a run goes on from: the finished run that a post-training method takes, or the network that everybody starts from."""
        bed = dataclasses.replace(bed, recipe=config.recipe)
        if method.after is not None:
            return self.other(method.after, bed, config, config.start)
        if config.start == "scratch":
            return None
        name, share = config.start.split(":")
        recipe = dataclasses.replace(config.recipe, steps=max(1, round(float(share) * config.recipe.steps)), objective="task")
        return self.other(name, dataclasses.replace(bed, recipe=recipe), config, "scratch")

    def other(self, name: str, bed: _Bed, config: RunConfig, start: str) -> Cell:
        method = registry.build("methods", name, {}, self.sweep.file)
        same = canonical([name, start, bed.size, dataclasses.asdict(bed.recipe), bed.task.name, bed.task.params])
        formats = (config.weights, config.activations) if method.quantizes else (None, None)
        same += canonical([q and dataclasses.asdict(q) for q in formats])
        if same not in self.bases:
            self.bases[same] = self.cell(bed, _Entrant(method, name), *formats, start=start)
        return self.bases[same]

    def refusal(self, config: RunConfig, task: Task) -> str | None:
        """Why the cell cannot run. Of the recipe the objective alone has a say, and the seed has none."""
        if config.activations and not task.activations:
            return f"{task.name} has no activations to quantize"
        from qbench import train

        c = config
        asked = (c.method, c.method_params, c.start, c.recipe.objective, c.task, c.task_params, c.size, *_names(c))
        question = canonical(asked)
        if question not in self.refusals:
            self.refusals[question] = train.refusal(config)
        return self.refusals[question]


def _names(config: RunConfig) -> list[str | None]:
    return [name for q in (config.weights, config.activations) for name in ((q.format, q.granularity) if q else (None, None))]


# ---- axes ----


def _beds(sweep: SweepConfig) -> Iterator[_Bed]:
    for entry in sweep.tasks:
        for params, chosen in _variants("tasks", entry):
            task: Task = registry.build("tasks", entry.name, params, entry.where)
            data = task.fingerprint()
            for size in _sizes(task, entry):
                for recipe, changes in _recipes(task.recipe(size), {**sweep.recipe, **entry.recipe}, entry.where):
                    formats = entry.formats or sweep.formats
                    yield _Bed(task, size, recipe, formats, data, {**chosen, **changes})


def _sizes(task: Task, entry: Entry) -> tuple[str, ...]:
    known = tuple(task.sizes)
    for size in entry.sizes:
        if size not in known and size != "all":
            raise unknown("size", size, known, f"{entry.where} ({task.name})")
    return known if "all" in entry.sizes else entry.sizes or known[:1]


def _recipes(recipe: Recipe, axes: Mapping[str, tuple[Any, ...]], where: str) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        made = dataclasses.replace(recipe, **chosen)
        if problem := made.problem():
            raise UsageError(f"{where}: {problem}")
        yield made, {name: value for name, value in chosen.items() if len(axes[name]) > 1}


def _entrants(sweep: SweepConfig) -> Iterator[_Entrant]:
    for entry in sweep.methods:
        rates: list[tuple[float, ...]] = [(lr,) for lr in entry.recipe.get("lr", ())]
        preset = _preset(entry)
        entry = dataclasses.replace(entry, params={**preset.params, **entry.params})
        usual = entry.label or (f"{entry.name} as published ({entry.preset})" if entry.preset else entry.name)
        for params, chosen in _variants("methods", entry):
            method: Method = registry.build("methods", entry.name, params, entry.where)
            spelled = _spell(chosen if entry.label or entry.preset else params)
            label = f"{usual} ({spelled})" if spelled else usual
            for lr in rates or [()]:
                yield _Entrant(method, label, lr, preset.recipe, preset.start, {"lr": lr[0]} if len(rates) > 1 else {})


def _preset(entry: Entry) -> Preset:
    """The published recipe that an entry asks for; an empty one where it asks for none."""
    from qbench.method import Preset

    presets: Mapping[str, Preset] = registry.load("methods", entry.name, entry.where).presets
    if entry.preset and entry.preset not in presets:
        raise unknown("preset", entry.preset, presets, f"{entry.where} ({entry.name})")
    preset = presets[entry.preset] if entry.preset else Preset("")
    where = f"{entry.where} ({entry.name}, preset {entry.preset})"
    for name in preset.recipe:
        if name not in RECIPE:
            raise unknown("word of a recipe", name, RECIPE, where)
    if problem := dataclasses.replace(Recipe(), **preset.recipe).problem():
        raise UsageError(f"{where}: {problem}")
    return preset


def _variants(kind: Literal["methods", "tasks"], entry: Entry) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination of an entry's parameters, and those of them that are axes."""
    hints = _hints(kind, entry)
    for name in entry.params:
        if name not in hints:
            raise unknown_key(name, (*OURS[kind[:-1]], *hints), entry.where)
    axes = {name: value for name, value in entry.params.items() if _is_axis(value, hints[name])}
    for name, values in axes.items():
        if twice := [v for i, v in enumerate(values) if v in values[:i]]:
            raise UsageError(f"{entry.where}: {name}: {twice[0]!r} is there twice")
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        yield {**entry.params, **chosen}, chosen


def _hints(kind: Literal["methods", "tasks"], entry: Entry) -> dict[str, Any]:
    cls = registry.load(kind, entry.name, entry.where)
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _is_axis(value: Any, hint: Any) -> bool:
    """A list is an axis, unless the parameter itself is a list: then a list of lists is."""
    takes_list = any(get_origin(h) is tuple for h in (hint, *get_args(hint)))
    return isinstance(value, list) and (not takes_list or all(isinstance(item, list) for item in value))


def _spell(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())


def _formats(formats: Formats, method: Method, sweep: SweepConfig) -> Iterator[tuple[Quantization | None, Quantization | None]]:
    if not method.quantizes:
        yield None, None
        return
    combinations = [c for c in itertools.product(formats.weights, formats.activations, formats.granularity) if c[:2] != (NONE, NONE)]
    if not combinations:
        raise UsageError(f'{sweep.file}: {method.name} quantizes, and no format is named: write formats = ["int4"]')
    for weights, activations, granularity in combinations:
        yield (
            None if weights == NONE else Quantization(weights, granularity),
            None if activations == NONE else Quantization(activations, ACTIVATION_GRANULARITY),
        )


def _check_names(formats: Formats, sweep: SweepConfig) -> None:
    from qbench.formats import Format, Granularity

    try:
        for name in {*formats.weights, *formats.activations} - {NONE}:
            Format.named(name)
        for name in formats.granularity:
            Granularity.named(name)
    except UsageError as error:
        raise UsageError(f"{sweep.file}: formats: {error}") from None
