"""`qbench publish` on real run folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qbench.store.database import Store
from tests.run_folders import fake_board_members, make_attempt, make_run_config


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """A store with a board of real run folders."""
    folder = tmp_path / "results"
    methods = (("fp", None), ("rtn", "int4"), ("ste", "int4"))
    cells = [(make_run_config(method=method, fmt=fmt), None) for method, fmt in methods]
    for spec, _ in cells:
        for seed in range(3):
            fmt = spec.weights.format if spec.weights else None
            config = make_run_config(seed, spec.method, fmt)
            make_attempt(folder, config, score=0.5 + 0.01 * seed)
    members = fake_board_members("b", cells, 3)
    defaults = {method: {"scale": "absmax"} for method in ("fp", "rtn", "ste")}
    with Store(folder) as store:
        store.save_board({**members, "defaults": defaults})
        store.write_snapshot()
    yield folder


def run_qbench(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qbench", *words]
    env = {**os.environ, "QBENCH_RESULTS": "results"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


def test_publish_writes_a_site_and_says_so(results: Path) -> None:
    cwd = results.parent
    done = run_qbench("publish", "b", "--out", "site", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"site/index\.html: b, 9 runs in 1 tables?, \d+ kB\n", done.stdout)
    first = {p.name: p.read_bytes() for p in (cwd / "site").iterdir()}
    assert set(first) == {
        "index.html",
        "board.json",
        "board.schema.json",
        "cells.csv",
        "runs.parquet",
        "leaderboard.md",
        "leaderboard.tex",
        "SHA256SUMS",
    }
    again = json.loads(run_qbench("publish", "--out", "site", "--json", cwd=cwd).stdout)
    assert again["sizes"] == {name: len(data) for name, data in first.items()}
    assert {p.name: p.read_bytes() for p in (cwd / "site").iterdir()} == first
    shown = run_qbench("show", "b", "--markdown", cwd=cwd).stdout
    assert first["leaderboard.md"].decode() == shown


def test_publish_refuses_a_foreign_folder_in_one_line(results: Path) -> None:
    (results.parent / "mine").mkdir()
    (results.parent / "mine" / "thesis.tex").write_text("all of it")
    done = run_qbench("publish", "b", "--out", "mine", cwd=results.parent)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == (
        "qbench: mine holds thesis.tex that qbench publish did not write: "
        "name another folder with --out\n"
    )
    assert run_qbench("publish", "c", "--out", "site", cwd=results.parent).returncode == 2


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(results: Path) -> None:
    done = run_qbench("publish", "b", "--out", "/proc/nowhere/site", cwd=results.parent)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("qbench: /proc/nowhere/site: the site cannot be written there: ")
