"""The source of a method or task as a hash: recorded with every run, so that code which was edited under its old version is noticed.

The hash covers the file that holds the class and every module of its own package that this file imports, directly or not. A method's helper counts,
an unrelated neighbour does not. What a class takes from qbench itself is recorded by the commit.

What is hashed is the syntax tree without imports, docstrings, comments and layout, so that a file may be reformatted, or follow a renamed module,
without looking edited. Hashes of the text of the files, which earlier versions recorded, cannot be compared with these and count as unknown.
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

from qbench.errors import QbenchError
from qbench.plugins import registry

__all__ = ["edited", "remember", "sources"]


Kind = Literal["method", "task"]
KINDS: tuple[Kind, ...] = ("method", "task")
DIGITS = 32
SYNTAX = "ast:"
"""Marks hashes of the syntax tree."""


def sources(method: str, task: str) -> dict[str, str | None]:
    """What env.json has of them; None for what is part of qbench, or has no files."""
    return {
        f"{kind}_source": source(kind, name)
        for kind, name in zip(KINDS, (method, task), strict=True)
    }


def remember(modules: Container[str]) -> None:
    """Take the hashes of all that these modules register, before somebody edits what is loaded."""
    for kind in KINDS:
        for name, plugin in registry.plugins(f"{kind}s").items():
            if plugin.entry.module in modules:
                source(kind, name)


def edited(spec: Mapping[str, Any], env: Mapping[str, Any]) -> list[str]:
    """What of a run's method and task has other source here under the version that the run was made by. What was not recorded is unknown."""
    recorded = {kind: env.get(f"{kind}_source") or "" for kind in KINDS}
    comparable = [kind for kind in KINDS if recorded[kind].startswith(SYNTAX)]
    return [
        f"{kind} {spec[kind]}"
        for kind in comparable
        if (now := _here(kind, spec)) and recorded[kind] != now
    ]


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
        tree = "".join(dump_code(ast.parse(text)))
        digest.update(f"{part} {len(tree)}\n{tree}".encode())
    return SYNTAX + digest.hexdigest()[:DIGITS]


def dump_code(node: object) -> Iterator[str]:
    """Yield the syntax tree below a node as text, without imports and bare strings.

    Empty fields are left out: versions of Python differ in which of them a node has.
    """
    if isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.Constant) and name == "value":
                yield f"{type(value).__name__} {value!r}"
            elif value is not None and value != [] and name not in ("kind", "type_comment"):
                yield f"{name}="
                yield from dump_code(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            if not _says_nothing(item):
                yield from dump_code(item)
    else:
        yield repr(node)


def _says_nothing(node: object) -> bool:
    """Return whether a statement is an import or a bare string, such as a docstring."""
    is_text = (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


def _reached(module: str, package: str) -> dict[str, bytes]:
    """The modules of a package that one of them imports, itself included, with their text."""
    found: dict[str, bytes] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or name.partition(".")[0] != package or (file := _file(name)) is None:
            continue
        found[name] = file.read_bytes().replace(b"\r\n", b"\n")
        todo += _imported(
            found[name], name if file.name == "__init__.py" else name.rpartition(".")[0]
        )
    return found


def _imported(text: bytes, package: str) -> Iterator[str]:
    """Every module that a text may import: `from a import b` names a, and perhaps a.b."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = (
                resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else str(node.module)
            )
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """Where the text of a module lies, loaded or not, below the package that it is part of."""
    package, *rest = module.split(".")
    if not (folders := getattr(sys.modules.get(package), "__path__", ())):
        path = Path(getattr(sys.modules.get(package), "__file__", None) or "")
        return path if path.suffix == ".py" and path.is_file() and not rest else None
    places = (Path(folder, *rest) for folder in folders)
    files = (
        file
        for place in places
        for file in ([place.with_name(f"{place.name}.py")] if rest else [])
        + [place / "__init__.py"]
    )
    return next((file for file in files if file.is_file()), None)
