"""Code that was edited under its old version is noticed, by the hash of its source in every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

METHOD = """
from dataclasses import dataclass
from qbench.api import Method, Site
from .deep import helper


@dataclass
class Pair(Method):
    name = "pair"
    title = "Pair"
    provenance = "reconstructed"
    version = 1

    def quantizer(self, site: Site) -> helper.Rounded:
        return helper.Rounded(site, "absmax")
"""
HELPER = """
from qbench.api import ScaledQuantizer, straight_through


class Rounded(ScaledQuantizer):
    def relax(self, x):
        return straight_through(x, self.grid(x).snap(x))
"""
FILES = {
    "__init__.py": "",
    "first.py": METHOD,
    "deep/__init__.py": "",
    "deep/helper.py": HELPER,
    "neighbour.py": "X = 1\n",
}
SWEEP = 'board = "b"\nmethods = ["pair"]\ntasks = ["toy"]\nformats = ["int4"]\nrecipe.steps = 4\n'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """Install a package with one method, run a sweep of it, and return the folder."""
    for name, text in FILES.items():
        (tmp_path / "pairs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / name).write_text(text)
    info = tmp_path / "pairs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pairs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qbench.methods]\npair = pairs.first:Pair\n")
    (tmp_path / "s.toml").write_text(SWEEP)
    qbench(tmp_path, "sweep", "s.toml", "--workers", "1", "--quiet")
    yield tmp_path


def qbench(site: Path, *words: str) -> str:
    """Run a command in the folder, and return what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
        "QBENCH_RESULTS": "results",
    }
    done = subprocess.run(
        [sys.executable, "-m", "qbench", *words],
        cwd=site,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def list_edited(site: Path) -> list[Any]:
    """Return which plugins of the sweep's run count as edited."""
    (line,) = json.loads(qbench(site, "status", "s.toml", "--json"))
    assert line["state"] == "cached"
    return list(line["edited"])


def test_an_edit_under_the_same_version_is_noticed_unless_a_neighbour_was_edited(
    site: Path,
) -> None:
    (env,) = site.glob("results/runs/*/*/1/env.json")
    recorded = json.loads(env.read_text())
    assert len(recorded["method_source"]) == 36 and recorded["task_source"] is None, (
        "the toy task is part of qbench"
    )
    (site / "pairs" / "neighbour.py").write_text("X = 2\n")
    assert list_edited(site) == []
    key = env.parts[-3]
    assert "source" not in qbench(site, "reproduce", key)

    helper = site / "pairs" / "deep" / "helper.py"
    helper.write_text('"""What a helper is for."""\nimport math\n' + HELPER + "\n# a comment\n")
    assert list_edited(site) == [], "imports, docstrings and comments are not the code"
    helper.write_text(HELPER.replace("self.grid(x).snap(x)", "self.grid(x).snap(x) * 1.0"))
    assert list_edited(site) == ["method pair"]
    output = " ".join(qbench(site, "status", "s.toml").split())
    assert "stale" in output
    assert "method pair edited under the same version: raise version" in output
    assert f"differs   method source: {recorded['method_source'][:12]} then, " in qbench(
        site, "reproduce", key
    )

    helper.write_text(HELPER)
    assert list_edited(site) == []
    (site / "pairs" / "first.py").write_text(METHOD + "\nX = 1\n")
    assert list_edited(site) == ["method pair"]
    env.write_text(json.dumps(recorded | {"method_source": "0" * 32}))
    assert list_edited(site) == [], "a hash of the text of the files cannot be compared"
    env.write_text(
        json.dumps({name: value for name, value in recorded.items() if name != "method_source"})
    )
    assert list_edited(site) == [], "what was not recorded is unknown"
    assert "method source" not in qbench(site, "reproduce", key)


def test_with_a_raised_version_the_run_is_new_and_nothing_is_stale(site: Path) -> None:
    (site / "pairs" / "first.py").write_text(METHOD.replace("version = 1", "version = 2"))
    (line,) = json.loads(qbench(site, "status", "s.toml", "--json"))
    assert (line["state"], line["older"], line["edited"]) == ("new", "pair version 1", [])


def test_the_sources_of_built_in_methods_and_tasks_are_hashed() -> None:
    from qbench.plugins.source_hash import hash_source, hash_sources

    hashes = hash_sources("ste", "grammar")
    assert None not in hashes.values()
    assert hashes["method_source"] != hash_sources("rtn", "grammar")["method_source"]
    assert hash_source("task", "text") != hash_source("task", "hf-causal")
