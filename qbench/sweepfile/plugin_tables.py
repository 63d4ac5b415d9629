"""The tables of a sweep file that say what is trained: [[task]], [[method]], formats, recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qbench.errors import UsageError, unknown_name_error
from qbench.plugins import registry
from qbench.runs.config import Recipe
from qbench.sweepfile.config import (
    NO_FORMAT,
    RECIPE_TYPES,
    TABLE_KEYS,
    TOP_LEVEL_KEYS,
    FormatAxes,
    SweepEntry,
)
from qbench.util.checked_values import check_line, check_list, check_strings, check_type

__all__ = ["read_entries", "read_formats", "read_recipe", "unknown_key_error"]


def read_entries(data: Mapping[str, Any], kind: str, file: str) -> Iterator[SweepEntry]:
    """Yield the methods or tasks of a sweep.

    Args:
        data: The whole sweep file as TOML gives it.
        kind: `method` or `task`.
        file: The name of the file, for error messages.
    """
    known = registry.plugins(f"{kind}s")
    tables = _list_tables(data, kind, file)
    if not tables:
        raise UsageError(
            f'{file}: no {kind}s: write {kind}s = ["name"] or [[{kind}]] tables; '
            f"known: {', '.join(sorted(known)) or 'none'}"
        )
    places: dict[str, str] = {}
    for table, where in tables:
        entry = _read_entry(table, kind, where)
        if entry.name not in known:
            raise unknown_name_error(kind, entry.name, known, where)
        first = places.setdefault(repr(sorted(table.items())), where)
        if first != where:
            raise UsageError(
                f"{where}: {kind} {entry.name!r} is listed twice, here and in "
                f"{first.removeprefix(f'{file}: ')}: remove one"
            )
        if entry.preset and data.get("track") != "as-published":
            raise UsageError(
                f"{where}: preset {entry.preset!r} is a recipe of its own: "
                'it needs track = "as-published" at the top'
            )
        yield entry


def read_formats(value: Any, where: str) -> FormatAxes:
    """Return the formats to combine, given as the table [formats] or as a list for the weights."""
    table = value if isinstance(value, dict) else {"weights": value}
    axes = [field.name for field in dataclasses.fields(FormatAxes)]
    for key in table:
        if key not in axes:
            raise unknown_key_error(key, axes, where)
    found = {}
    for key, names in table.items():
        place = f"{where}: {key}" if isinstance(value, dict) else where
        found[key] = check_strings(names, place, empty=key == "activations")
    return FormatAxes(**{key: names or (NO_FORMAT,) for key, names in found.items()})


def read_recipe(table: Any, where: str) -> dict[str, tuple[Any, ...]]:
    """Return every key of a recipe with its values: a list is an axis."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: a recipe is a table such as {{ steps = 100 }}, not {table!r}")
    axes = {}
    for key, value in table.items():
        if key not in RECIPE_TYPES:
            raise unknown_key_error(key, RECIPE_TYPES, where)
        place = f"{where}: {key}"
        axes[key] = tuple(check_type(v, RECIPE_TYPES[key], place) for v in check_list(value, place))
        # Each value can be checked alone, because no domain depends on another key.
        for item in axes[key]:
            if problem := dataclasses.replace(Recipe(), **{key: item}).find_problem():
                raise UsageError(f"{where}: {problem}")
    return axes


def unknown_key_error(key: str, known: Iterable[str], where: str) -> UsageError:
    """Return the error for a key that a table does not have."""
    # TOML assigns every key to the table above it, so a key of the sweep that is written below a
    # table ends up in that table.
    if key in TOP_LEVEL_KEYS:
        return UsageError(
            f"{where}: {key} belongs to the sweep: move it above the first table of the file"
        )
    return unknown_name_error("key", key, known, where)


def _list_tables(
    data: Mapping[str, Any], kind: str, file: str
) -> list[tuple[Mapping[str, Any], str]]:
    """Return the tables of one kind, each with its place; a bare name is a table with a name."""
    names = check_strings(data.get(f"{kind}s", []), f"{file}: {kind}s", empty=True)
    tables = data.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(
            f'{file}: {kind} is a list of tables: write [[{kind}]], or {kind}s = ["name"]'
        )
    return [
        *(({"name": name}, f"{file}: {kind}s") for name in names),
        *((table, f"{file}: [[{kind}]] {n}") for n, table in enumerate(tables, 1)),
    ]


def _read_entry(table: Mapping[str, Any], kind: str, where: str) -> SweepEntry:
    if "name" not in table:
        near = next((key for key in table if key in ("id", kind, "nmae")), None)
        hint = f" (instead of {near!r}?)" if near else ""
        raise UsageError(f"{where}: name is missing{hint}")
    entry = SweepEntry(
        name=check_line(table["name"], f"{where}: name"),
        where=where,
        label=check_line(table.get("label", ""), f"{where}: label"),
        params=_read_params(table, kind, where),
        sizes=check_strings(table["sizes"], f"{where}: sizes") if "sizes" in table else (),
        formats=read_formats(table["formats"], f"{where}: formats") if "formats" in table else None,
    )
    if kind == "method":
        rate = {"lr": table["lr"]} if "lr" in table else {}
        preset = check_line(table["preset"], f"{where}: preset") if "preset" in table else ""
        return dataclasses.replace(entry, recipe=read_recipe(rate, where), preset=preset)
    recipe = read_recipe(table.get("recipe", {}), f"{where}: recipe")
    downstream = None
    if "downstream" in table:
        downstream = check_strings(table["downstream"], f"{where}: downstream", empty=True)
    return dataclasses.replace(entry, recipe=recipe, downstream=downstream)


def _read_params(table: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """Return the options of a task or the hyper-parameters of a method."""
    extra = table.get("params", {})
    if not isinstance(extra, dict):
        raise UsageError(f"{where}: params is a table of options, not {extra!r}")
    params = {key: value for key, value in table.items() if key not in TABLE_KEYS[kind]} | extra
    for key, value in params.items():
        if value == []:
            raise UsageError(f"{where}: {key} is an empty list, so there is nothing to run")
    return params
