"""`qbench doctor`: a look at the machine and the installation, a line each, with what to do where something is not right."""

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

LEAST_FREE = 1 << 30


@dataclass(frozen=True)
class MachineFinding:
    what: str
    fine: bool
    detail: str


def examine_machine(results: Path) -> list[MachineFinding]:
    return [*_installation(), *_machine(), *_results(results), *_plugins()]


def _installation() -> Iterator[MachineFinding]:
    yield MachineFinding(
        "python",
        sys.version_info >= (3, 11),
        sys.version.split()[0]
        + ("" if sys.version_info >= (3, 11) else ": qbench needs 3.11 or newer"),
    )
    code = find_commit()
    state = (
        ""
        if code["commit"] is None
        else f", commit {code['commit'][:12]}{' with uncommitted changes' if code['dirty'] else ''}"
    )
    yield MachineFinding(
        "qbench",
        True,
        f"{find_package_version('qbench') or 'not installed as a distribution'}{state}",
    )
    for name in (
        "torch",
        "numpy",
        "pandas",
        "duckdb",
        "scipy",
        "safetensors",
        "lm_eval",
        "rich",
        "click",
    ):
        found = find_package_version(name)
        yield MachineFinding(
            name,
            found is not None,
            found or "missing: pip install -e . in the checkout, or pip install qbench",
        )


def _machine() -> Iterator[MachineFinding]:
    import torch

    from qbench.training.devices import compiler

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    yield MachineFinding("cpu", True, f"{find_cpu_name()}, {cores} cores")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield MachineFinding("cuda", True, ", ".join(names))
    else:
        yield MachineFinding("cuda", True, "no usable device; runs go to the CPU")
    yield MachineFinding(
        "compiler",
        compiler() is not None,
        compiler()
        or "no C++ compiler, or no Python.h: torch.compile will not work (install g++ and Python's headers)",
    )


def _results(results: Path) -> Iterator[MachineFinding]:
    folder = next(p for p in (results, *results.absolute().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield MachineFinding(
            "results", False, f"{results} cannot be written ({error.strerror}): use --results DIR"
        )
        return
    free = shutil.disk_usage(folder).free
    yield MachineFinding(
        "results",
        free > LEAST_FREE,
        f"{results}, {free / 2**30:.1f} GiB free"
        + ("" if free > LEAST_FREE else ": make room, or use --results DIR"),
    )


def _plugins() -> Iterator[MachineFinding]:
    for kind, found in (("methods", list_methods()), ("tasks", list_tasks())):
        broken = [entry["error"] for entry in found if entry["error"]]
        yield MachineFinding(
            kind,
            bool(found) and not broken,
            "; ".join(broken)
            or ", ".join(entry["name"] for entry in found)
            or "none registered: reinstall qbench",
        )
    yield MachineFinding(
        "engines", "local" in registry.plugins("engines"), ", ".join(registry.plugins("engines"))
    )
