"""Checks of the machine and the installation, for `qbench doctor`.

Each check is one line, which says what to do if something is not right.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qbench.plugins import registry
from qbench.plugins.describe import list_methods, list_tasks
from qbench.runs.environment import find_commit, find_cpu_name, find_package_version

MIN_FREE_BYTES = 1 << 30
PACKAGES = (
    "torch",
    "numpy",
    "pandas",
    "duckdb",
    "scipy",
    "safetensors",
    "lm_eval",
    "rich",
    "click",
)


@dataclass(frozen=True)
class MachineFinding:
    """The outcome of one check."""

    what: str
    fine: bool
    detail: str


def examine_machine(results: Path) -> list[MachineFinding]:
    """Return what was found on this machine, with `results` as the results folder."""
    return [
        *_check_installation(),
        *_check_devices(),
        *_check_results_folder(results),
        *_check_plugins(),
    ]


def _check_installation() -> Iterator[MachineFinding]:
    """Check the versions of Python, of qbench and of the packages it needs."""
    recent = sys.version_info >= (3, 11)
    version = sys.version.split()[0]
    yield MachineFinding(
        "python", recent, version + ("" if recent else ": qbench needs 3.11 or newer")
    )
    code = find_commit()
    detail = find_package_version("qbench") or "not installed as a distribution"
    if code["commit"] is not None:
        detail += f", commit {code['commit'][:12]}"
        detail += " with uncommitted changes" if code["dirty"] else ""
    yield MachineFinding("qbench", True, detail)
    advice = "missing: pip install -e . in the checkout, or pip install qbench"
    for name in PACKAGES:
        package_version = find_package_version(name)
        yield MachineFinding(name, package_version is not None, package_version or advice)


def _check_devices() -> Iterator[MachineFinding]:
    """Check the CPU, CUDA and the compiler that torch.compile needs."""
    # Imported here, because importing torch takes seconds.
    import torch

    from qbench.training.devices import find_compiler

    # The cores that this process may use, which a container can limit.
    can_ask = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
    yield MachineFinding("cpu", True, f"{find_cpu_name()}, {cores} cores")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield MachineFinding("cuda", True, ", ".join(names))
    else:
        yield MachineFinding("cuda", True, "no usable device; runs are trained on the CPU")
    advice = (
        "no C++ compiler, or no Python.h: torch.compile will not work "
        "(install g++ and Python's headers)"
    )
    path = find_compiler()
    yield MachineFinding("compiler", path is not None, path or advice)


def _check_results_folder(results: Path) -> Iterator[MachineFinding]:
    """Check that the results folder, or its nearest existing parent, can be written."""
    folder = next(p for p in (results, *results.absolute().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = f"{results} cannot be written ({error.strerror}): use --results DIR"
        yield MachineFinding("results", False, detail)
        return
    free = shutil.disk_usage(folder).free
    enough = free > MIN_FREE_BYTES
    advice = "" if enough else ": free some space, or use --results DIR"
    yield MachineFinding("results", enough, f"{results}, {free / 2**30:.1f} GiB free{advice}")


def _check_plugins() -> Iterator[MachineFinding]:
    """Check that every registered method and task can be loaded."""
    for kind, entries in (("methods", list_methods()), ("tasks", list_tasks())):
        errors = [entry["error"] for entry in entries if entry["error"]]
        names = ", ".join(entry["name"] for entry in entries)
        detail = "; ".join(errors) or names or "none registered: reinstall qbench"
        yield MachineFinding(kind, bool(entries) and not errors, detail)
    engines = registry.plugins("engines")
    yield MachineFinding("engines", "local" in engines, ", ".join(engines))
