"""The axes of a sweep file: what every method meets (beds) and who meets it (entrants), each combination of values once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from qbench.errors import UsageError, unknown
from qbench.plugins import registry
from qbench.runs.config import Quantization, Recipe, canonical
from qbench.sweepfile.config import NONE, OURS, RECIPE, Entry, Formats, SweepConfig
from qbench.sweepfile.read import unknown_key
from qbench.util.text import spell

if TYPE_CHECKING:
    from qbench.api.method import Method, Preset
    from qbench.api.task import Task


ACTIVATION_GRANULARITY = "tensor"


@dataclass(frozen=True)
class Bed:
    """A task with its options at one size and with one recipe: what every method meets alike."""

    task: Task
    size: str
    recipe: Recipe
    formats: Formats
    data: str
    params: Mapping[str, Any]
    """The task's options as keys have them. Asked once: a task may have to read a corpus to know them."""
    axes: Mapping[str, Any]
    """The values that tell it from its sisters."""
    usual: Recipe | None = None
    """The recipe before any word of it was tuned and any step left out: by it a network is trained that all trials start from."""


@dataclass(frozen=True)
class Entrant:
    method: Method
    label: str
    lr: tuple[float, ...] = ()
    """One rate, or none: then the recipe's."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Of its preset, over the board's."""
    start: str | None = None
    axes: Mapping[str, Any] = field(default_factory=dict)
    """The values that tell it from its sisters."""


def beds(sweep: SweepConfig) -> Iterator[Bed]:
    for entry in sweep.tasks:
        for params, chosen in _variants("tasks", entry):
            task: Task = registry.build("tasks", entry.name, params, entry.where)
            data, resolved = task.fingerprint(), task.params
            chosen = _as_keyed(chosen, resolved)
            for size in _sizes(task, entry):
                for recipe, changes in _recipes(
                    task.recipe(size), {**sweep.recipe, **entry.recipe}, entry.where
                ):
                    formats = entry.formats or sweep.formats
                    yield Bed(task, size, recipe, formats, data, resolved, {**chosen, **changes})


def _sizes(task: Task, entry: Entry) -> tuple[str, ...]:
    known = tuple(task.sizes)
    for size in entry.sizes:
        if size not in known and size != "all":
            raise unknown("size", size, known, f"{entry.where} ({task.name})")
    return known if "all" in entry.sizes else entry.sizes or known[:1]


def _recipes(
    recipe: Recipe, axes: Mapping[str, tuple[Any, ...]], where: str
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        made = dataclasses.replace(recipe, **chosen)
        if problem := made.problem():
            raise UsageError(f"{where}: {problem}")
        yield made, {name: value for name, value in chosen.items() if len(axes[name]) > 1}


def entrants(sweep: SweepConfig) -> Iterator[Entrant]:
    labels: dict[str, str] = {}
    for entry in sweep.methods:
        rates: list[tuple[float, ...]] = [(lr,) for lr in entry.recipe.get("lr", ())]
        preset = _preset(entry)
        entry = dataclasses.replace(entry, params={**preset.params, **entry.params})
        usual = entry.label or (
            f"{entry.name} as published ({entry.preset})" if entry.preset else entry.name
        )
        for params, chosen in _variants("methods", entry):
            method: Method = registry.build("methods", entry.name, params, entry.where)
            spelled = spell(
                _as_keyed(chosen if entry.label or entry.preset else params, method.params)
            )
            label = f"{usual} ({spelled})" if spelled else usual
            who = canonical([method.name, method.params, entry.preset])
            if labels.setdefault(label, who) != who:
                raise UsageError(
                    f"{entry.where}: {label!r} is what another entrant is called: give it a label of its own"
                )
            for lr in rates or [()]:
                yield Entrant(
                    method,
                    label,
                    lr,
                    preset.recipe,
                    preset.start,
                    {"lr": lr[0]} if len(rates) > 1 else {},
                )


def _preset(entry: Entry) -> Preset:
    """The published recipe that an entry asks for; an empty one where it asks for none."""
    from qbench.api.method import Preset

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


def _variants(
    kind: Literal["methods", "tasks"], entry: Entry
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
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


def _as_keyed(written: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they were written, but where a key has something else for them, that: tables name no place on a machine."""
    keyed = {name: (value, resolved[name]) for name, value in written.items() if name in resolved}
    return {
        name: value if canonical(value) == canonical(own) else own
        for name, (value, own) in keyed.items()
    }


def _hints(kind: Literal["methods", "tasks"], entry: Entry) -> dict[str, Any]:
    cls = registry.load(kind, entry.name, entry.where)
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _is_axis(value: Any, hint: Any) -> bool:
    """A list is an axis, unless the parameter itself is a list: then a list of lists is."""
    takes_list = any(get_origin(h) is tuple for h in (hint, *get_args(hint)))
    return isinstance(value, list) and (
        not takes_list or all(isinstance(item, list) for item in value)
    )


def formats_of(
    formats: Formats, method: Method, sweep: SweepConfig
) -> Iterator[tuple[Quantization | None, Quantization | None]]:
    if not method.quantizes:
        yield None, None
        return
    combinations = [
        c
        for c in itertools.product(formats.weights, formats.activations, formats.granularity)
        if c[:2] != (NONE, NONE)
    ]
    if not combinations:
        raise UsageError(
            f'{sweep.file}: {method.name} quantizes, and no format is named: write formats = ["int4"]'
        )
    for weights, activations, granularity in combinations:
        yield (
            None if weights == NONE else Quantization(weights, granularity),
            None if activations == NONE else Quantization(activations, ACTIVATION_GRANULARITY),
        )


def check_names(formats: Formats, sweep: SweepConfig) -> None:
    from qbench.quant.formats import Format, Granularity

    try:
        for name in {*formats.weights, *formats.activations} - {NONE}:
            Format.named(name)
        for name in formats.granularity:
            Granularity.named(name)
    except UsageError as error:
        raise UsageError(f"{sweep.file}: formats: {error}") from None
