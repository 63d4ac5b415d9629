"""Expand the tables of a sweep file into task settings, method settings and formats.

A list in a [[task]] or [[method]] table is an axis. Each combination of the values of all axes
gives one setting.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from qbench.errors import UsageError, unknown_name_error
from qbench.plugins import registry
from qbench.runs.config import Quantization, Recipe, canonical_json
from qbench.sweepfile.config import (
    NO_FORMAT,
    RECIPE_TYPES,
    TABLE_KEYS,
    FormatAxes,
    SweepConfig,
    SweepEntry,
)
from qbench.sweepfile.plugin_tables import unknown_key_error
from qbench.util.text import format_parameters

if TYPE_CHECKING:
    from qbench.api.method import Method, Preset
    from qbench.api.task import Task


ACTIVATION_GRANULARITY = "tensor"


@dataclass(frozen=True)
class TaskSetting:
    """A task with its options, at one size and with one recipe. It is the same for all methods."""

    task: Task
    size: str
    recipe: Recipe
    formats: FormatAxes
    data: str
    """Hash of the task's data."""
    params: Mapping[str, Any]
    """The task's options as they go into keys. Computed once: a task may read a corpus for it."""
    axes: Mapping[str, Any]
    """The axis values that distinguish this setting from others of the same table."""
    untuned_recipe: Recipe | None = None
    """For a trial: the recipe before tuned values and a shorter budget were put in. The network
    that all trials start from is trained with it."""


@dataclass(frozen=True)
class MethodSetting:
    """A method with its hyper-parameters, and what its table or preset says of the recipe."""

    method: Method
    label: str
    lr: float | None = None
    """The learning rate that the table gives; None means that of the recipe."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What the preset replaces in the board's recipe."""
    start: str | None = None
    """Where the preset says that training starts; None means where the board says."""
    axes: Mapping[str, Any] = field(default_factory=dict)
    """The axis values that distinguish this setting from others with the same label."""


def expand_tasks(sweep: SweepConfig) -> Iterator[TaskSetting]:
    """Yield the task settings of a sweep file, in the order of the file."""
    for entry in sweep.tasks:
        for params, axis_values in _expand_params("tasks", entry):
            task: Task = registry.build("tasks", entry.name, params, entry.where)
            # Both may read the data, so they are called once a task and not once a size.
            data, options = task.fingerprint(), task.key_options()
            shown = _replace_local_values(axis_values, options)
            axes = {**sweep.recipe, **entry.recipe}
            formats = entry.formats or sweep.formats
            for size in _list_sizes(task, entry):
                for recipe, changes in _expand_recipe(task.recipe(size), axes, entry.where):
                    yield TaskSetting(
                        task, size, recipe, formats, data, options, {**shown, **changes}
                    )


def expand_methods(sweep: SweepConfig) -> Iterator[MethodSetting]:
    """Yield the method settings of a sweep file. Two different ones never share a label."""
    identities: dict[str, str] = {}
    for entry in sweep.methods:
        rates: tuple[float, ...] = tuple(entry.recipe.get("lr", ()))
        preset = _load_preset(entry)
        entry = dataclasses.replace(entry, params={**preset.params, **entry.params})
        for params, axis_values in _expand_params("methods", entry):
            method: Method = registry.build("methods", entry.name, params, entry.where)
            label = _make_label(entry, method, params, axis_values)
            identity = canonical_json([method.name, method.params, entry.preset])
            if identities.setdefault(label, identity) != identity:
                raise UsageError(
                    f"{entry.where}: {label!r} is what another entrant is called:"
                    " give it a label of its own"
                )
            for lr in rates or (None,):
                axes = {"lr": lr} if len(rates) > 1 else {}
                yield MethodSetting(method, label, lr, preset.recipe, preset.start, axes)


def expand_formats(
    formats: FormatAxes, method: Method, sweep: SweepConfig
) -> Iterator[tuple[Quantization | None, Quantization | None]]:
    """Yield how weights and activations are quantized; None stands for full precision.

    A method that quantizes nothing gets a single cell, whatever formats are named.
    """
    if method.full_precision:
        yield None, None
        return
    combinations = [
        c
        for c in itertools.product(formats.weights, formats.activations, formats.granularity)
        if c[:2] != (NO_FORMAT, NO_FORMAT)
    ]
    if not combinations:
        raise UsageError(
            f"{sweep.file}: {method.name} quantizes, but no format is named:"
            ' write formats = ["int4"]'
        )
    for weights, activations, granularity in combinations:
        yield (
            None if weights == NO_FORMAT else Quantization(weights, granularity),
            None if activations == NO_FORMAT else Quantization(activations, ACTIVATION_GRANULARITY),
        )


def check_format_names(formats: FormatAxes, sweep: SweepConfig) -> None:
    """Raise UsageError if a format or granularity is not known."""
    from qbench.quant.formats import Format, Granularity

    try:
        for name in {*formats.weights, *formats.activations} - {NO_FORMAT}:
            Format.named(name)
        for name in formats.granularity:
            Granularity.named(name)
    except UsageError as error:
        raise UsageError(f"{sweep.file}: formats: {error}") from None


def _list_sizes(task: Task, entry: SweepEntry) -> tuple[str, ...]:
    """Return the sizes that a [[task]] table asks for; without any, the smallest one."""
    known = tuple(task.sizes)
    for size in entry.sizes:
        if size not in known and size != "all":
            raise unknown_name_error("size", size, known, f"{entry.where} ({task.name})")
    return known if "all" in entry.sizes else entry.sizes or known[:1]


def _expand_recipe(
    recipe: Recipe, axes: Mapping[str, tuple[Any, ...]], where: str
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Yield a recipe with each combination of values, and those values that are axes."""
    for values in itertools.product(*axes.values()):
        combination = dict(zip(axes, values, strict=True))
        changed = dataclasses.replace(recipe, **combination)
        if problem := changed.find_problem():
            raise UsageError(f"{where}: {problem}")
        yield changed, {name: v for name, v in combination.items() if len(axes[name]) > 1}


def _load_preset(entry: SweepEntry) -> Preset:
    """Return the published recipe that a table asks for, or an empty one if it asks for none."""
    from qbench.api.method import Preset

    presets: Mapping[str, Preset] = registry.load("methods", entry.name, entry.where).presets
    if entry.preset and entry.preset not in presets:
        raise unknown_name_error("preset", entry.preset, presets, f"{entry.where} ({entry.name})")
    preset = presets[entry.preset] if entry.preset else Preset("")
    where = f"{entry.where} ({entry.name}, preset {entry.preset})"
    for name in preset.recipe:
        if name not in RECIPE_TYPES:
            raise unknown_name_error("word of a recipe", name, RECIPE_TYPES, where)
    if problem := dataclasses.replace(Recipe(), **preset.recipe).find_problem():
        raise UsageError(f"{where}: {problem}")
    return preset


def _make_label(
    entry: SweepEntry, method: Method, params: Mapping[str, Any], axis_values: Mapping[str, Any]
) -> str:
    """Return how tables name a method setting, such as `lsq (rate=0.1)`.

    A label or preset stands for the values written in its table, so only axes are spelled then.
    """
    published = f"{entry.name} as published ({entry.preset})" if entry.preset else entry.name
    shown = axis_values if entry.label or entry.preset else params
    spelled = format_parameters(_replace_local_values(shown, method.params))
    return f"{entry.label or published} ({spelled})" if spelled else entry.label or published


def _expand_params(
    kind: Literal["methods", "tasks"], entry: SweepEntry
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each combination of a table's parameters, and those of them that are axes."""
    types = _field_types(kind, entry)
    for name in entry.params:
        if name not in types:
            raise unknown_key_error(name, (*TABLE_KEYS[kind[:-1]], *types), entry.where)
    axes = {name: value for name, value in entry.params.items() if _is_axis(value, types[name])}
    for name, values in axes.items():
        if twice := [v for i, v in enumerate(values) if v in values[:i]]:
            raise UsageError(f"{entry.where}: {name}: {twice[0]!r} occurs twice")
    for values in itertools.product(*axes.values()):
        combination = dict(zip(axes, values, strict=True))
        yield {**entry.params, **combination}, combination


def _replace_local_values(written: Mapping[str, Any], in_key: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they were written, or as the key has them where the two differ.

    They differ for paths: a table must not name a place on one machine.
    """
    pairs = {name: (value, in_key[name]) for name, value in written.items() if name in in_key}
    return {
        name: value if canonical_json(value) == canonical_json(keyed) else keyed
        for name, (value, keyed) in pairs.items()
    }


def _field_types(kind: Literal["methods", "tasks"], entry: SweepEntry) -> dict[str, Any]:
    """Return the type of each parameter of a plugin, by name."""
    cls = registry.load(kind, entry.name, entry.where)
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _is_axis(value: Any, hint: Any) -> bool:
    """Return whether a written value is an axis.

    A list is one, unless the parameter itself is a list: then only a list of lists is one.
    """
    takes_list = any(get_origin(h) is tuple for h in (hint, *get_args(hint)))
    return isinstance(value, list) and (
        not takes_list or all(isinstance(item, list) for item in value)
    )
