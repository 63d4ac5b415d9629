"""Reproduction of runs from their records."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.checks.method_kit import Kit
from qbench.checks.reproduce import compare_results, reproduce_run
from qbench.engines.dispatch import run_one
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Assignment
from qbench.runs.attempts import Attempt, create_attempt


@pytest.fixture
def swept(tmp_path: Path) -> tuple[Path, str, str]:
    """Return a results folder with a full-precision run and its rounding, and the keys of both."""
    rtn = Kit("rtn", tmp_path).make_config("int2", steps=10)
    fp = Kit("fp", tmp_path).make_config("int2", steps=10)
    base = create_attempt(tmp_path, fp.key)
    run_one(Assignment(fp, base.folder))
    run_one(Assignment(rtn, create_attempt(tmp_path, rtn.key).folder, base=base.folder))
    return tmp_path, fp.key, rtn.key


def open_attempt(results: Path, key: str) -> Attempt:
    """Return the first attempt of a run."""
    return Attempt(results / "runs" / key[:2] / key / "1")


def change_file(attempt: Attempt, name: str, **values: Any) -> None:
    """Overwrite values in a JSON file of an attempt."""
    attempt.write(name, {**(attempt.read(name) or {}), **values})


def test_a_run_trained_again_is_the_same_and_nothing_is_written(
    swept: tuple[Path, str, str],
) -> None:
    results, fp, rtn = swept
    before = sorted(results.rglob("*"))
    threads = torch.get_num_threads()
    for key in (fp, rtn):
        again = reproduce_run(results, key[:12])
        assert (again.key, again.verdict, again.differences) == (key, "same", [])
        assert again.recorded == again.found
    assert sorted(results.rglob("*")) == before and torch.get_num_threads() == threads


def test_the_run_that_another_starts_from_is_trained_again_if_its_artefact_is_gone(
    swept: tuple[Path, str, str],
) -> None:
    results, fp, rtn = swept
    shutil.rmtree(open_attempt(results, fp).export)
    assert reproduce_run(results, rtn).verdict == "same"


def test_another_score_is_different_and_the_environment_says_why(
    swept: tuple[Path, str, str],
) -> None:
    results, fp, _ = swept
    attempt = open_attempt(results, fp)
    result = attempt.read("result") or {}
    change_file(
        attempt,
        "result",
        artefact_sha256="0" * 64,
        scores={**result["scores"], "packed": result["scores"]["packed"] + 0.5},
    )
    change_file(attempt, "env", torch="1.0")
    again = reproduce_run(results, fp)
    assert again.verdict == "different" and [d.split(":")[0] for d in again.differences] == [
        "torch"
    ]
    assert str(again).startswith(
        f"{fp}: different\nrecorded "
    ) and "differs   torch: 1.0 then" in str(again)


def test_a_difference_below_the_minimum_effect_is_within_tolerance() -> None:
    one = {"state": "ok", "reason": None, "artefact_sha256": "a", "scores": {"packed": 1.0}}
    for score, verdict in ((1.009, "within tolerance"), (1.011, "different"), (None, "different")):
        assert (
            compare_results(one, {**one, "artefact_sha256": "b", "scores": {"packed": score}}, 0.01)
            == verdict
        )
    failed = {"state": "failed", "reason": "diverged"}
    assert compare_results(failed, failed, 0) == "same"
    assert (
        compare_results(failed, {"state": "failed", "reason": "oom"}, 0)
        == compare_results(one, failed, 0)
        == compare_results(failed, one, 0)
        == "different"
    )


def test_a_run_without_a_result_cannot_be_reproduced(swept: tuple[Path, str, str]) -> None:
    results, fp, _ = swept
    (open_attempt(results, fp).folder / "result.json").unlink()
    with pytest.raises(QbenchError, match="no result to compare with"):
        reproduce_run(results, fp)
    with pytest.raises(UsageError, match="no run's key begins with 'ffffffffffff'"):
        reproduce_run(results, "ffffffffffff")
