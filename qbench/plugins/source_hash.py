"""A hash of the source of a method or task, recorded with every run.

It tells when code was edited under its old version. The hash covers the file that holds the class
and every module of the same top-level package that this file imports, directly or not: a method's
helper counts, an unrelated neighbour does not. What a class takes from qbench itself is covered by
the commit.

What is hashed is the syntax tree without imports, docstrings, comments and layout. A file may
therefore be reformatted, or follow a module that was renamed, without looking edited. Earlier
versions recorded hashes of the text of the files. Those cannot be compared and count as unknown.
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

__all__ = ["find_edited", "hash_sources", "remember_sources"]


Kind = Literal["method", "task"]
KINDS: tuple[Kind, ...] = ("method", "task")
DIGITS = 32
SYNTAX = "ast:"
"""The prefix of a hash of a syntax tree."""


def hash_sources(method: str, task: str) -> dict[str, str | None]:
    """Return the hashes for env.json.

    A hash is None if the plugin is part of qbench or has no source file.
    """
    return {
        f"{kind}_source": hash_source(kind, name)
        for kind, name in zip(KINDS, (method, task), strict=True)
    }


def remember_sources(modules: Container[str]) -> None:
    """Hash the plugins of these modules now, before somebody edits the files of loaded code."""
    for kind in KINDS:
        for name, plugin in registry.plugins(f"{kind}s").items():
            if plugin.entry.module in modules:
                hash_source(kind, name)


def find_edited(spec: Mapping[str, Any], env: Mapping[str, Any]) -> list[str]:
    """Return which of a run's method and task was edited since, under the version of the run.

    A plugin whose source was not recorded is not listed.
    """
    # Hashes of earlier versions have no prefix and are skipped.
    recorded = {kind: env.get(f"{kind}_source") or "" for kind in KINDS}
    comparable = [kind for kind in KINDS if recorded[kind].startswith(SYNTAX)]
    return [
        f"{kind} {spec[kind]}"
        for kind in comparable
        if (current := _hash_of_version(kind, spec)) and recorded[kind] != current
    ]


def _hash_of_version(kind: Kind, spec: Mapping[str, Any]) -> str | None:
    """Return the hash of the installed plugin, or None if its version is not that of the run."""
    try:
        installed = registry.load(f"{kind}s", spec[kind]).version  # type: ignore[arg-type]
    except QbenchError:
        return None
    return hash_source(kind, spec[kind]) if installed == spec[f"{kind}_version"] else None


@cache
def hash_source(kind: Kind, name: str) -> str | None:
    """Return the hash of a plugin's files as they were when this process first asked."""
    module = str(registry.load(f"{kind}s", name).__module__)  # type: ignore[arg-type]
    package = module.partition(".")[0]
    if package == "qbench" or _find_file(module) is None:
        return None
    digest = hashlib.sha256()
    for part, text in sorted(_read_imported_modules(module, package).items()):
        tree = "".join(dump_code(ast.parse(text)))
        # The length separates the parts: no two packages give the same stream of bytes.
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
            if not _is_not_code(item):
                yield from dump_code(item)
    else:
        yield repr(node)


def _is_not_code(node: object) -> bool:
    """Return whether a statement is an import or a bare string, such as a docstring."""
    is_text = (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


def _read_imported_modules(module: str, package: str) -> dict[str, bytes]:
    """Return the text of a module, and of those of its package that it imports, by name."""
    texts: dict[str, bytes] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in texts or name.partition(".")[0] != package or (file := _find_file(name)) is None:
            continue
        # A checkout on Windows may have other line ends, which are not an edit.
        texts[name] = file.read_bytes().replace(b"\r\n", b"\n")
        parent = name if file.name == "__init__.py" else name.rpartition(".")[0]
        queue += _list_imports(texts[name], parent)
    return texts


def _list_imports(text: bytes, package: str) -> Iterator[str]:
    """Yield every module that a text may import: `from a import b` names a, and perhaps a.b."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            origin = resolve_name(relative, package) if node.level else str(node.module)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _find_file(module: str) -> Path | None:
    """Return the file of a module, loaded or not, whose top-level package is loaded."""
    package, *rest = module.split(".")
    loaded = sys.modules.get(package)
    folders = getattr(loaded, "__path__", ())
    if not folders:
        # The top level is a single file and no package.
        path = Path(getattr(loaded, "__file__", None) or "")
        return path if path.suffix == ".py" and path.is_file() and not rest else None
    for place in (Path(folder, *rest) for folder in folders):
        as_module = [place.with_name(f"{place.name}.py")] if rest else []
        for file in [*as_module, place / "__init__.py"]:
            if file.is_file():
                return file
    return None
