"""Entry points → classes: methods, tasks and engines by name, ours and anybody's alike.

Listing reads metadata only; a plugin is imported when it is asked for. One that cannot be imported is listed with its
error and breaks nothing else.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qbench.errors import QbenchError, UsageError, unknown_name_error
from qbench.util.checked_values import check_type

Kind = Literal["methods", "tasks", "engines"]


@dataclass(frozen=True)
class Plugin:
    """A name somebody registered, and where it comes from."""

    kind: Kind
    name: str
    entry: EntryPoint

    @property
    def distribution(self) -> str:
        dist = self.entry.dist
        return f"{dist.name} {dist.version}" if dist else "unknown"

    def load(self) -> Any:
        """The class; any failure of the plugin's own code is one line."""
        try:
            return self.entry.load()
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise QbenchError(
                f"{self.kind[:-1]} {self.name!r} of {self.distribution} cannot be loaded ({self.entry.value}): {what}"
            ) from error


@cache
def plugins(kind: Kind) -> Mapping[str, Plugin]:
    """Everything registered of a kind, by name. A name that two distributions claim belongs to neither until one goes."""
    found: dict[str, Plugin] = {}
    for entry in sorted(entry_points(group=f"qbench.{kind}"), key=lambda e: (e.name, e.value)):
        other = found.get(entry.name)
        if other and other.entry.value != entry.value:
            both = f"{other.distribution} and {Plugin(kind, entry.name, entry).distribution}"
            raise QbenchError(
                f"{kind[:-1]} {entry.name!r} is registered by {both}: uninstall one of them"
            )
        found[entry.name] = Plugin(kind, entry.name, entry)
    return found


def load(kind: Kind, name: str, where: str = "") -> Any:
    known = plugins(kind)
    found = known.get(name) or known.get(name.lower())
    if found is None:
        raise unknown_name_error(kind[:-1], name, known, where)
    return found.load()


def build(
    kind: Literal["methods", "tasks"], name: str, params: Mapping[str, Any], where: str = ""
) -> Any:
    """An instance with `params` over its defaults: unknown names, wrong types and values out of domain are one line each."""
    cls = load(kind, name, where)
    where = f"{where + ': ' if where else ''}{name}"
    hints, known = get_type_hints(cls), [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in params.items():
        if key not in known:
            raise unknown_name_error(f"parameter of {kind[:-1]} {name}", key, known, where)
        values[key] = _fit(value, hints[key], f"{where}.{key}")
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is not dataclasses.MISSING:
            values[field.name] = _fit(field.default, hints[field.name], f"{where}.{field.name}")
    try:
        instance = cls(**values)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from error
    if problem := instance.check():
        raise UsageError(f"{where}: {problem}")
    return instance


def _fit(value: Any, hint: Any, where: str) -> Any:
    """`value` as a field's annotation asks: a type, a Literal, or a union tried in turn."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise unknown_name_error("value", value, map(str, get_args(hint)), where)
        return value
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        errors = []
        for option in (a for a in get_args(hint) if a is not type(None)):
            try:
                return _fit(value, option, where)
            except UsageError as error:
                errors.append(str(error))
        raise UsageError(errors[-1])
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where}: expected a list, not {value!r}")
        return tuple(_fit(item, inner, f"{where}[{i}]") for i, item in enumerate(value))
    return check_type(value, hint, where)
