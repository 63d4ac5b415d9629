"""The registry of entry points: classes of methods, tasks and engines, by name.

Those that qbench ships and those of other packages are found in the same way. Listing reads
metadata only; a plugin is imported when it is loaded. A plugin that cannot be imported is listed
with its error, and the others still work.
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
    """A registered name, and the distribution that registered it."""

    kind: Kind
    name: str
    entry: EntryPoint

    @property
    def distribution(self) -> str:
        """Name and version of the distribution that registered the plugin."""
        dist = self.entry.dist
        return f"{dist.name} {dist.version}" if dist else "unknown"

    def load(self) -> Any:
        """Return the class. Whatever the plugin's code raises becomes an error of one line."""
        try:
            return self.entry.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise QbenchError(
                f"{self.kind[:-1]} {self.name!r} of {self.distribution} cannot be loaded "
                f"({self.entry.value}): {reason}"
            ) from error


@cache
def plugins(kind: Kind) -> Mapping[str, Plugin]:
    """Return everything that is registered of a kind, by name.

    Raises:
        QbenchError: Two distributions register the same name. One of them must be uninstalled.
    """
    by_name: dict[str, Plugin] = {}
    for entry in sorted(entry_points(group=f"qbench.{kind}"), key=lambda e: (e.name, e.value)):
        plugin = Plugin(kind, entry.name, entry)
        other = by_name.get(entry.name)
        # The same entry may be listed twice if a package is found twice on the path.
        if other and other.entry.value != entry.value:
            raise QbenchError(
                f"{kind[:-1]} {entry.name!r} is registered by {other.distribution} and "
                f"{plugin.distribution}: uninstall one of them"
            )
        by_name[entry.name] = plugin
    return by_name


def load(kind: Kind, name: str, where: str = "") -> Any:
    """Return the class registered under a name. `where` begins the message of an error."""
    registered = plugins(kind)
    plugin = registered.get(name) or registered.get(name.lower())
    if plugin is None:
        raise unknown_name_error(kind[:-1], name, registered, where)
    return plugin.load()


def build(
    kind: Literal["methods", "tasks"], name: str, params: Mapping[str, Any], where: str = ""
) -> Any:
    """Return an instance with `params` in place of its defaults.

    Raises:
        UsageError: A name is unknown, a type is wrong, or a value is out of range.
    """
    cls = load(kind, name, where)
    where = f"{where + ': ' if where else ''}{name}"
    hints, names = get_type_hints(cls), [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in params.items():
        if key not in names:
            raise unknown_name_error(f"parameter of {kind[:-1]} {name}", key, names, where)
        values[key] = _check_value(value, hints[key], f"{where}.{key}")
    # Defaults are converted as well: an int as the default of a float field becomes a float.
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is not dataclasses.MISSING:
            default = _check_value(field.default, hints[field.name], f"{where}.{field.name}")
            values[field.name] = default
    try:
        instance = cls(**values)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from error
    if problem := instance.check():
        raise UsageError(f"{where}: {problem}")
    return instance


def _check_value(value: Any, hint: Any, where: str) -> Any:
    """Return `value` converted to a field's annotation: a type, a Literal, a union or a tuple."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise unknown_name_error("value", value, map(str, get_args(hint)), where)
        return value
    if get_origin(hint) in (Union, types.UnionType):
        return _check_union(value, hint, where)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where}: expected a list, not {value!r}")
        return tuple(_check_value(item, inner, f"{where}[{i}]") for i, item in enumerate(value))
    return check_type(value, hint, where)


def _check_union(value: Any, hint: Any, where: str) -> Any:
    """Return `value` converted to the first type of a union that accepts it."""
    if value is None and type(None) in get_args(hint):
        return None
    errors = []
    for option in (a for a in get_args(hint) if a is not type(None)):
        try:
            return _check_value(value, option, where)
        except UsageError as error:
            errors.append(str(error))
    raise UsageError(errors[-1])
