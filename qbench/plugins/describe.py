"""Descriptions of the registered methods and tasks, for `qbench methods` and `qbench tasks`.

A plugin that cannot be loaded is listed with its error.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from qbench.errors import QbenchError
from qbench.plugins import registry


def list_methods() -> list[dict[str, Any]]:
    """Return a description of each registered method."""
    return [_describe_plugin("methods", name) for name in registry.plugins("methods")]


def list_tasks() -> list[dict[str, Any]]:
    """Return a description of each registered task."""
    return [_describe_plugin("tasks", name) for name in registry.plugins("tasks")]


def list_defaults(cls: type) -> dict[str, Any]:
    """Return the default of every field of a method or task, by name."""
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _describe_plugin(kind: Literal["methods", "tasks"], name: str) -> dict[str, Any]:
    plugin = registry.plugins(kind)[name]
    entry: dict[str, Any] = {
        "name": name,
        "distribution": plugin.distribution,
        "target": plugin.entry.value,
        "error": None,
    }
    try:
        cls = plugin.load()
        entry |= _describe_class(cls)
        entry |= _describe_method(cls) if kind == "methods" else _describe_task(cls)
    except QbenchError as error:
        entry["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        message = (
            f"{kind[:-1]} {name!r} of {plugin.distribution} does not keep the contract: "
            f"{type(error).__name__}: {error}"
        )
        entry["error"] = message.splitlines()[0]
    return entry


def _describe_class(cls: Any) -> dict[str, Any]:
    return {
        "version": cls.version,
        "title": cls.title,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "options": list_defaults(cls),
    }


def _describe_method(cls: Any) -> dict[str, Any]:
    return {
        "paper": cls.paper,
        "provenance": cls.provenance,
        "after": cls.post_training,
        "presets": {name: dataclasses.asdict(preset) for name, preset in cls.presets.items()},
    }


def _describe_task(cls: Any) -> dict[str, Any]:
    return {
        "metric": dataclasses.asdict(cls.metric),
        "sizes": {name: dict(size) for name, size in cls.sizes.items()},
        "activations": cls.activations,
        "recipes": {size: dataclasses.asdict(cls().recipe(size)) for size in cls.sizes},
    }
