"""`qbench db check` finds every difference between the store and the run folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from qbench.runs.attempts import Attempt, iterate_attempts
from qbench.runs.config import RunConfig
from qbench.store.consistency import check_store, rebuild_store
from tests.run_folders import make_attempt, make_run_config


def run_folder(results: Path, config: RunConfig) -> Path:
    return results / "runs" / config.key[:2] / config.key


def test_check_finds_every_difference(filled: Path) -> None:
    assert check_store(filled).agrees and check_store(filled).runs == 5
    configs = [make_run_config(seed) for seed in range(5)]
    changed = Attempt(run_folder(filled, configs[1]) / "1")
    changed.write("result", {**(changed.read("result") or {}), "message": "another"})
    shutil.rmtree(run_folder(filled, configs[2]))
    make_attempt(filled, configs[3], number=2)
    shortened = Attempt(run_folder(filled, configs[4]) / "1")
    shortened.curve.write_text(shortened.curve.read_text().splitlines(keepends=True)[0])
    (make_attempt(filled, make_run_config(8)).folder / "result.json").unlink()
    report = check_store(filled)
    assert not report.agrees and report.unfinished == 1
    assert report.missing == [f"{configs[3].key}/2"]
    assert report.foreign == [f"{configs[2].key}/1"]
    assert sorted(report.different) == sorted([f"{configs[1].key}/1", f"{configs[4].key}/1"])
    assert "db rebuild" in str(report)


def test_an_artefact_that_is_gone_is_listed_and_the_store_agrees(filled: Path) -> None:
    # `make_attempt` writes no artefact, so each attempt below lacks it unless it is created here.
    whole, gone, merged, failed, *_ = iterate_attempts(filled)
    whole.export.mkdir()
    whole.artefact.write_bytes(b"")
    # A merged run may have come without an artefact, and a failed one never had any.
    merged.write("trust", {"level": "claimed"})
    result = failed.read("result") or {}
    result.pop("artefact_sha256", None)
    failed.write("result", result)
    rebuild_store(filled)
    report = check_store(filled)
    name = f"{gone.key}/{gone.number}"
    assert report.agrees and name in report.lost and len(report.lost) == 2
    assert f"without its artefact: {name}" in str(report)
    assert str(report).endswith("the store agrees with the files")
