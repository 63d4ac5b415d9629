"""What is registered, in words: for `qbench methods`, `qbench tasks` and the board's labels. A plugin that cannot be loaded is listed with its error."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from qbench.errors import QbenchError
from qbench.plugins import registry


def list_methods() -> list[dict[str, Any]]:
    return [_listed("methods", name) for name in registry.plugins("methods")]


def list_tasks() -> list[dict[str, Any]]:
    return [_listed("tasks", name) for name in registry.plugins("tasks")]


def _listed(kind: Literal["methods", "tasks"], name: str) -> dict[str, Any]:
    plugin = registry.plugins(kind)[name]
    entry: dict[str, Any] = {
        "name": name,
        "distribution": plugin.distribution,
        "target": plugin.entry.value,
        "error": None,
    }
    try:
        cls = plugin.load()
        options = defaults(cls)
        entry |= {
            "version": cls.version,
            "title": cls.title,
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
            "options": options,
        }
        if kind == "methods":
            entry |= {
                "paper": cls.paper,
                "provenance": cls.provenance,
                "after": cls.post_training,
            }
            entry["presets"] = {
                name: dataclasses.asdict(preset) for name, preset in cls.presets.items()
            }
        else:
            entry |= {
                "metric": dataclasses.asdict(cls.metric),
                "sizes": {k: dict(v) for k, v in cls.sizes.items()},
                "activations": cls.activations,
            }
            entry["recipes"] = {size: dataclasses.asdict(cls().recipe(size)) for size in cls.sizes}
    except QbenchError as error:
        entry["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - a plugin's, whatever it is
        entry["error"] = (
            f"{kind[:-1]} {name!r} of {plugin.distribution} does not keep the contract: {type(error).__name__}: {error}".splitlines()[
                0
            ]
        )
    return entry


def defaults(cls: type) -> dict[str, Any]:
    """The default of every field of a method or task, by name."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found
