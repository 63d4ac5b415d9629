"""The environment in which a run is trained: versions, commit and machine.

It is recorded with every attempt and is never part of a run's key.
"""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("qbench", "torch", "numpy", "safetensors")


def collect_environment() -> dict[str, Any]:
    """Return all that is recorded of code and machine, except the device.

    Only a worker knows its device and adds it.
    """
    # The affinity mask counts the cores that this process may use, as in a container.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **{name.replace("-", "_"): find_package_version(name) for name in PACKAGES},
        **find_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": find_cpu_name(),
        "cores": cores,
    }


@cache
def find_package_version(name: str) -> str | None:
    """Return the version of an installed package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def find_commit() -> dict[str, Any]:
    """Return the commit of the checkout that contains this file, and whether files were changed.

    Both values are None if qbench was installed from a package.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    head = _run_git(root, "rev-parse", "HEAD")
    changes = _run_git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def _run_git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command, or None if it fails."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def find_cpu_name() -> str:
    """Return the model name of the CPU, or the architecture where the system does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
