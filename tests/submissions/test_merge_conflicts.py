"""Merged runs never replace others; their trust depends only on what was checked here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import qbench
from qbench.checks.reproduce import reproduce_run
from qbench.runs.attempts import iterate_attempts, list_attempts
from qbench.runs.lookup import read_latest_attempt
from qbench.runs.state import read_run_state
from qbench.store.consistency import check_store, rebuild_store
from qbench.submissions.merge import mark_reproduced, merge_bundle
from tests.bundles import submit_to_file
from tests.submissions.merged_folders import (
    find_ste_run,
    find_submitted_ste_run,
    improve_score,
    read_cell,
    read_files,
    replace_result,
    write_failure,
)

# ---- Several attempts at one run ----


def test_other_numbers_for_a_merged_run_are_a_conflict_and_the_first_ones_are_shown(
    empty_results: Path, bundle_file: Path, tmp_path: Path
) -> None:
    merge_bundle(empty_results, bundle_file, score=False)
    key, (cell, _) = find_ste_run(empty_results), read_cell(empty_results)
    before = read_files(empty_results)
    other = replace_result(bundle_file, key, tmp_path / "other.zip", improve_score)
    outcome = merge_bundle(empty_results, other, score=False)
    assert (outcome.added, outcome.present) == (1, 2)
    assert before.items() <= read_files(empty_results).items(), "something was overwritten"
    numbers = [
        (attempt.number, (attempt.read("result") or {})["attempt"])
        for attempt in list_attempts(empty_results, key)
    ]
    assert numbers == [(1, 1), (2, 2)]
    assert read_cell(empty_results)[0].score == cell.score
    assert qbench.results(empty_results).board("b").notes == (
        f"conflict: 1 run with attempts whose scores differ: qbench show {key[:12]}",
    )
    latest = read_latest_attempt(empty_results, key)
    assert latest["attempt"] == 1
    assert [attempt["trust"] for attempt in latest["attempts"]] == ["claimed", "claimed"]
    again = merge_bundle(empty_results, other, score=False)
    assert (again.added, again.present) == (0, 3)


@pytest.mark.parametrize("own_state", ["ok", "diverged"])
def test_a_merged_run_never_replaces_an_own_one(
    own_results: Path, bundle_file: Path, tmp_path: Path, own_state: str
) -> None:
    key = find_ste_run(own_results)
    if own_state == "diverged":
        write_failure(list_attempts(own_results, key)[0], "diverged", "the loss is nan")
        rebuild_store(own_results)
    other = replace_result(bundle_file, key, tmp_path / "other.zip", improve_score)
    merge_bundle(own_results, other, score=False)
    cell, notes = read_cell(own_results)
    assert cell.state == ("ok" if own_state == "ok" else "failed")
    assert not any("claimed" in note for note in notes)
    assert qbench.results(own_results).board("b").notes[0].startswith("conflict: 1 run")
    deciding = read_run_state(own_results, key).attempt
    assert deciding and deciding.number == 1
    assert read_latest_attempt(own_results, key)["attempt"] == 1


def test_a_difference_below_the_minimum_effect_is_no_conflict(
    empty_results: Path, bundle_file: Path, tmp_path: Path
) -> None:
    merge_bundle(empty_results, bundle_file, score=False)
    key = find_ste_run(empty_results)
    other = replace_result(
        bundle_file, key, tmp_path / "other.zip", lambda result: improve_score(result, by=-1e-4)
    )
    merge_bundle(empty_results, other, score=False)
    assert len(list_attempts(empty_results, key)) == 2
    assert qbench.results(empty_results).board("b").notes == ()


def test_a_merged_run_replaces_an_own_run_that_ran_out_of_memory(
    own_results: Path, bundle_file: Path
) -> None:
    key = find_ste_run(own_results)
    write_failure(list_attempts(own_results, key)[0], "oom", "no room")
    rebuild_store(own_results)
    merge_bundle(own_results, bundle_file, score=False)
    cell, notes = read_cell(own_results)
    assert cell.state == "ok" and notes == ["1 of 1 run claimed, not verified here"]
    assert [attempt.number for attempt in list_attempts(own_results, key)] == [1, 2]
    assert qbench.results(own_results).board("b").notes == ()


# ---- Trust ----


def test_a_merged_run_with_the_same_result_here_becomes_reproduced(
    empty_results: Path, bundle_file: Path
) -> None:
    merge_bundle(empty_results, bundle_file, score=False)
    key = find_ste_run(empty_results)
    verdict = reproduce_run(empty_results, key).verdict
    assert verdict == "same"
    assert mark_reproduced(empty_results, key, verdict) == "reproduced"
    assert mark_reproduced(empty_results, key, "same") is None
    assert read_cell(empty_results)[1] == ["1 of 1 run merged, and reproduced here"]
    assert check_store(empty_results).agrees
    assert read_latest_attempt(empty_results, key)["trust"]["level"] == "reproduced"
    merge_bundle(empty_results, bundle_file, score=False)
    assert read_latest_attempt(empty_results, key)["trust"]["level"] == "reproduced"


def test_a_merged_run_with_another_result_here_stays_claimed(
    empty_results: Path, bundle_file: Path, tmp_path: Path
) -> None:
    def forge(result: dict[str, Any]) -> None:
        improve_score(result)
        result["artefact_sha256"] = "0" * 64

    key = find_submitted_ste_run(bundle_file)
    forged = replace_result(bundle_file, key, tmp_path / "b.zip", forge)
    merge_bundle(empty_results, forged, score=False)
    verdict = reproduce_run(empty_results, key).verdict
    assert verdict == "different" and mark_reproduced(empty_results, key, verdict) is None
    assert read_cell(empty_results)[1] == ["1 of 1 run claimed, not verified here"]


def test_the_trust_of_a_submitter_is_ignored(
    empty_results: Path, bundle_file: Path, tmp_path: Path
) -> None:
    """Runs that are reproduced in the submitter's folder are only claimed in ours."""
    theirs = tmp_path / "theirs"
    shutil.copytree(empty_results, theirs)
    merge_bundle(theirs, bundle_file, score=False)
    for attempt in iterate_attempts(theirs):
        attempt.write("trust", {**(attempt.read("trust") or {}), "level": "reproduced"})
    merge_bundle(empty_results, submit_to_file(theirs, tmp_path / "b.zip"), score=False)
    assert set(qbench.results(empty_results).runs["trust"]) == {"claimed"}
