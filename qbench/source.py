"""The source of a method or task as a hash: recorded with every run, so that code which was edited under its old version is noticed.

It is of the file that holds the class and of whatever that imports from its own package, however deep: a method's helper counts, its
neighbour does not. What a class takes from qbench itself is the commit's business.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Container, Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, Literal

from qbench import registry
from qbench.errors import QbenchError

__all__ = ["edited", "remember", "sources"]

Kind = Literal["method", "task"]
KINDS: tuple[Kind, ...] = ("method", "task")
LENGTH = 32


def sources(method: str, task: str) -> dict[str, str | None]:
    """What env.json has of them; None for what is part of qbench, or has no files."""
    return {f"{kind}_source": source(kind, name) for kind, name in zip(KINDS, (method, task), strict=True)}


def remember(modules: Container[str]) -> None:
    """Take the hashes of all that these modules register, before somebody edits what is loaded."""
    for kind in KINDS:
        for name, plugin in registry.plugins(f"{kind}s").items():
            if plugin.entry.module in modules:
                source(kind, name)


def edited(spec: Mapping[str, Any], env: Mapping[str, Any]) -> list[str]:
    """What of a run's method and task has other source here under the version that the run was made by. What was not recorded is unknown."""
    return [f"{kind} {spec[kind]}" for kind in KINDS if (then := env.get(f"{kind}_source")) and (now := _here(kind, spec)) and then != now]


def _here(kind: Kind, spec: Mapping[str, Any]) -> str | None:
    """None where the version is another, or nobody has it."""
    try:
        here = registry.load(f"{kind}s", spec[kind]).version == spec[f"{kind}_version"]  # type: ignore[arg-type]
    except QbenchError:
        return None
    return source(kind, spec[kind]) if here else None


@cache
def source(kind: Kind, name: str) -> str | None:
    """Of the files as they were when this process first asked."""
    module = str(registry.load(f"{kind}s", name).__module__)  # type: ignore[arg-type]
    package = module.partition(".")[0]
    if package == "qbench" or _file(module) is None:
        return None
    digest = hashlib.sha256()
    for part, text in sorted(_reached(module, package).items()):
        digest.update(f"{part} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:LENGTH]


def _reached(module: str, package: str) -> dict[str, bytes]:
    """The modules of a package that one of them imports, itself included, with their text."""
    found: dict[str, bytes] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or name.partition(".")[0] != package or (file := _file(name)) is None:
            continue
        found[name] = file.read_bytes().replace(b"\r\n", b"\n")
        todo += _imported(found[name], name if file.name == "__init__.py" else name.rpartition(".")[0])
    return found


def _imported(text: bytes, package: str) -> Iterator[str]:
    """Every module that a text may import: `from a import b` names a, and perhaps a.b."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """Where the text of a module lies, loaded or not, below the package that it is part of."""
    package, *rest = module.split(".")
    if not (folders := getattr(sys.modules.get(package), "__path__", ())):
        path = Path(getattr(sys.modules.get(package), "__file__", None) or "")
        return path if path.suffix == ".py" and path.is_file() and not rest else None
    places = (Path(folder, *rest) for folder in folders)
    files = (file for place in places for file in ([place.with_name(f"{place.name}.py")] if rest else []) + [place / "__init__.py"])
    return next((file for file in files if file.is_file()), None)
