"""Writing the package of a new method, which its author then rewrites.

What is written can be installed, passes its own tests and keeps the method contract.
"""

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
MAX_NAME_LENGTH = 40
IMPORTED_NAMES = {
    "Batch",
    "InputQuantizer",
    "Method",
    "Quantizer",
    "Run",
    "ScaledQuantizer",
    "Site",
    "Tensor",
}
"""Names that the written module imports, or that its author is likely to import."""


def write_method_package(name: str, folder: Path) -> list[Path]:
    """Write the package of a method into a new folder, and return the files.

    Either all files are written or none.

    Raises:
        UsageError: The name or the folder cannot be used.
        QbenchError: The folder cannot be written.
    """
    if reason := explain_refusal(name, folder):
        raise UsageError(reason)
    texts = render_package(name)
    # The draft lies in the same directory, so that the rename is atomic.
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


def explain_refusal(name: str, folder: Path) -> str | None:
    """Return why a method cannot have this name or be written into this folder, or None."""
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        return (
            f"{name!r} cannot name a method: a name has lower-case letters, digits and single "
            f"underscores, begins with a letter, and has at most {MAX_NAME_LENGTH} characters"
        )
    cls, module = class_name(name), module_name(name)
    if keyword.iskeyword(cls) or cls in IMPORTED_NAMES:
        return (
            f"{name!r} cannot name a method: its class would be {cls}, which means something else"
        )
    if plugin := registry.plugins("methods").get(name):
        return (
            f"a method {name!r} is registered already, by {plugin.distribution}: "
            "choose another name"
        )
    if find_spec(module):
        return f"a module {module} is installed already: choose another name than {name!r}"
    if os.path.lexists(folder):
        return f"{folder} exists already: name another folder with --folder"
    if not os.path.isdir(folder.absolute().parent):
        return f"there is no folder {folder.absolute().parent} to write {folder.name} into"
    return None


def render_package(name: str) -> dict[str, str]:
    """Return the text of each file of a method's package, by path."""
    # Jinja is imported here because the command line must start fast.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    variables = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "cls": class_name(name),
        "module": module_name(name),
        "distribution": distribution_name(name),
    }
    template_of_path = {
        "pyproject.toml": "pyproject.toml",
        f"{module_name(name)}.py": "method.py",
        f"tests/test_{name}.py": "test_method.py",
        "README.md": "README.md",
    }
    templates = files("qbench.plugins").joinpath("templates")
    return {
        path: environment.from_string(
            templates.joinpath(f"{template}.jinja").read_text(encoding="utf-8")
        ).render(variables)
        for path, template in template_of_path.items()
    }


def class_name(name: str) -> str:
    """Return the name of a method's class: `half_way` has `HalfWay`."""
    return "".join(word.capitalize() for word in name.split("_"))


def module_name(name: str) -> str:
    """Return the name of the module that holds a method."""
    return f"qbench_{name}"


def distribution_name(name: str) -> str:
    """Return the name under which a method's package is installed."""
    return f"qbench-{name.replace('_', '-')}"
