"""A method in a package of its own is swept, shown and listed like those that qbench ships."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "halfway-quantizer"
version = "0.3"

[project.entry-points."qbench.methods"]
halfway = "halfway:Halfway"

[tool.hatch.build.targets.wheel]
include = ["halfway.py"]
"""
METHOD = '''
from dataclasses import dataclass
from torch import Tensor
from qbench.api import Method, ScaledQuantizer, Site, straight_through


@dataclass
class Halfway(Method):
    """Move a part of the way to the grid."""

    name = "halfway"
    title = "Halfway"
    provenance = "reconstructed"
    share: float = 0.5

    def check(self) -> str | None:
        return None if 0 <= self.share <= 1 else f"share must lie between 0 and 1, not {self.share}"

    def quantizer(self, site: Site) -> ScaledQuantizer:
        return HalfwayWeight(site, self.share)


class HalfwayWeight(ScaledQuantizer):
    def __init__(self, site: Site, share: float) -> None:
        super().__init__(site, "absmax")
        self.share = share

    def relax(self, x: Tensor) -> Tensor:
        return straight_through(x, x + self.share * (self.grid(x).snap(x) - x))
'''
BOARD = 'board = "mixed"\ntasks = ["toy"]\nformats = ["int2"]\nseeds = 2\nrecipe.steps = 20\n'
BUILT_IN = BOARD + 'methods = ["fp", "rtn"]\n'
BOTH = BOARD + 'methods = ["fp", "rtn"]\n[[method]]\nname = "halfway"\nshare = [0.25, 0.75]\n'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build and install the package into a folder of its own, and return the folder."""
    source, out, site = (tmp_path_factory.mktemp(name) for name in ("source", "out", "site"))
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "halfway.py").write_text(METHOD)
    build = ["build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", *install, str(next(out.glob("*.whl")))],
        check=True,
        capture_output=True,
    )
    return site


def qbench(folder: Path, site: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the packages installed in `site`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QBENCH_RESULTS")}
    if site:
        environment["PYTHONPATH"] = str(site)
    return subprocess.run(
        [sys.executable, "-m", "qbench", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )


def test_a_method_of_another_package_joins_a_board_and_stays_in_it(
    site: Path, tmp_path: Path
) -> None:
    (tmp_path / "built_in.toml").write_text(BUILT_IN)
    (tmp_path / "both.toml").write_text(BOTH)
    sweep = ("--results", "results", "--device", "cpu", "--workers", "2", "--json")

    without = qbench(tmp_path, None, "sweep", "both.toml", *sweep)
    assert (
        without.returncode == 2
        and "unknown method 'halfway'" in without.stderr
        and without.stderr.count("\n") == 1
    )
    assert not (tmp_path / "results").exists()

    first = qbench(tmp_path, None, "sweep", "built_in.toml", *sweep)
    assert first.returncode == 0 and json.loads(first.stdout)["ok"] == 4
    second = qbench(tmp_path, site, "sweep", "both.toml", *sweep)
    assert second.returncode == 0, second.stderr
    assert {k: json.loads(second.stdout)[k] for k in ("ok", "cached", "failed")} == {
        "ok": 8,
        "cached": 4,
        "failed": 0,
    }

    shown = qbench(tmp_path, None, "show", "mixed", "--results", "results", "--markdown")
    assert shown.returncode == 0, "a board can be shown without the plugins of its methods"
    assert (
        "halfway (share=0.25)" in shown.stdout
        and "halfway (share=0.75)" in shown.stdout
        and "rtn" in shown.stdout
    )


def test_the_method_is_listed_with_its_distribution(site: Path, tmp_path: Path) -> None:
    listed = {m["name"]: m for m in json.loads(qbench(tmp_path, site, "methods", "--json").stdout)}
    entry = listed["halfway"]
    assert (entry["distribution"], entry["target"], entry["error"]) == (
        "halfway-quantizer 0.3",
        "halfway:Halfway",
        None,
    )
    assert entry["options"] == {"share": 0.5} and entry["provenance"] == "reconstructed"
    assert {"fp", "rtn", "ste"} <= set(listed)


def test_the_errors_of_its_own_check_are_one_line(site: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(BOTH.replace("0.75", "1.5"))
    done = qbench(tmp_path, site, "sweep", "wrong.toml", "--results", "results")
    assert done.returncode == 2
    assert (
        done.stderr
        == "qbench: wrong.toml: [[method]] 1: halfway: share must lie between 0 and 1, not 1.5\n"
    )
