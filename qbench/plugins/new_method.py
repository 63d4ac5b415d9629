"""The beginning of a plugin: a package of one method that installs, passes its tests and the conformance kit, and is there to be rewritten."""

from __future__ import annotations

import keyword
import os
import re
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from qbench.errors import QbenchError, UsageError
from qbench.plugins import registry

NAME = re.compile(r"[a-z](_?[a-z0-9])*")
LONGEST = 40
TAKEN = {"Batch", "InputRange", "Method", "Quantizer", "Run", "ScaledQuantizer", "Site", "Tensor"}
"""Names that the written module imports."""


def new_method(name: str, folder: Path) -> list[Path]:
    """Write the package of a method into a folder that does not exist yet, all of it or nothing. Returns its files."""
    if problem := objection(name, folder):
        raise UsageError(problem)
    texts = package(name)
    # Written beside its place and renamed into it.
    draft = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}")
    try:
        for path, text in texts.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
        draft.rename(folder)
    except OSError as error:
        raise QbenchError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [folder / path for path in texts]


def objection(name: str, folder: Path) -> str | None:
    """Why a method cannot have this name or lie in this folder, in a sentence."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        return f"{name!r} cannot name a method: that takes small letters, digits and single underscores, a letter first, at most {LONGEST}"
    if keyword.iskeyword(class_name(name)) or class_name(name) in TAKEN:
        return f"{name!r} cannot name a method: its class would be {class_name(name)}, which means something else"
    if known := registry.plugins("methods").get(name):
        return (
            f"a method {name!r} is registered already, by {known.distribution}: choose another name"
        )
    if find_spec(module_name(name)):
        return (
            f"a module {module_name(name)} is installed already: choose another name than {name!r}"
        )
    if os.path.lexists(folder):
        return f"{folder} exists already: name another folder with --folder"
    if not os.path.isdir(folder.absolute().parent):
        return f"there is no folder {folder.absolute().parent} to write {folder.name} into"
    return None


def package(name: str) -> dict[str, str]:
    """The text of each file of a method's package by its path."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    words = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "cls": class_name(name),
        "module": module_name(name),
        "distribution": distribution_name(name),
    }
    places = {
        "pyproject.toml": "pyproject.toml",
        f"{module_name(name)}.py": "method.py",
        f"tests/test_{name}.py": "test_method.py",
        "README.md": "README.md",
    }
    templates = files("qbench.plugins").joinpath("templates")
    read = {
        path: templates.joinpath(f"{template}.jinja").read_text(encoding="utf-8")
        for path, template in places.items()
    }
    return {path: environment.from_string(text).render(words) for path, text in read.items()}


def class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def module_name(name: str) -> str:
    return f"qbench_{name}"


def distribution_name(name: str) -> str:
    return f"qbench-{name.replace('_', '-')}"
