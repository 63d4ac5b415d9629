"""A bundle is merged completely or not at all, and nothing that exists is overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import qbench
from qbench.errors import LockedError, QbenchError
from qbench.runs.attempts import Attempt, iterate_attempts
from qbench.runs.lookup import read_latest_attempt
from qbench.store.consistency import check_store, rebuild_store
from qbench.store.database import Store
from qbench.submissions.merge import STAGING_FOLDER, merge_bundle
from qbench.submissions.submit import submit_runs
from tests.submissions.merged_folders import (
    find_ste_run,
    find_submitted_ste_run,
    read_cell,
    read_files,
    replace_result,
)

# ---- What a merge adds ----


def test_a_bundle_is_merged_and_the_board_says_that_it_was_evaluated(
    empty_results: Path, bundle_file: Path, trained: Path
) -> None:
    outcome = merge_bundle(empty_results, bundle_file)
    assert (outcome.added, outcome.present) == (3, 0)
    assert dict(outcome.levels) == {"verified": 3}
    cell, notes = read_cell(empty_results)
    own_cell, own_notes = read_cell(trained)
    assert cell.score.value == own_cell.score.value
    assert notes == [
        "1 of 1 run merged: their artefacts were evaluated here, but they were not trained here"
    ]
    assert own_notes == []
    assert check_store(empty_results).agrees
    assert set(qbench.results(empty_results).runs["trust"]) == {"verified"}
    merged, own = (
        {
            name: data
            for name, data in read_files(results).items()
            if name.startswith("runs") and not name.endswith("trust.json")
        }
        for results in (empty_results, trained)
    )
    assert merged == own


def test_without_evaluation_the_board_says_claimed(empty_results: Path, bundle_file: Path) -> None:
    assert dict(merge_bundle(empty_results, bundle_file, score=False).levels) == {"claimed": 3}
    assert read_cell(empty_results)[1] == ["1 of 1 run claimed, not verified here"]


def test_merging_a_bundle_again_adds_nothing_and_may_raise_its_trust(
    empty_results: Path, bundle_file: Path
) -> None:
    merge_bundle(empty_results, bundle_file, score=False)
    before = read_files(empty_results)
    again = merge_bundle(empty_results, bundle_file, score=False)
    assert (again.added, again.present, again.raised) == (0, 3, 0)
    assert read_files(empty_results) == before
    raised = merge_bundle(empty_results, bundle_file)
    assert (raised.added, raised.present, raised.raised) == (0, 3, 3)
    after = read_files(empty_results)
    changed = {name for name, data in after.items() if before[name] != data}
    assert changed == {name for name in before if name.endswith("trust.json")}
    assert set(qbench.results(empty_results).runs["trust"]) == {"verified"}
    assert check_store(empty_results).agrees
    merge_bundle(empty_results, bundle_file, score=False)
    assert set(qbench.results(empty_results).runs["trust"]) == {"verified"}


def test_own_runs_stay_own_when_their_bundle_is_merged(
    own_results: Path, bundle_file: Path
) -> None:
    before = read_files(own_results)
    outcome = merge_bundle(own_results, bundle_file, score=False)
    assert (outcome.added, outcome.present, outcome.raised) == (0, 3, 0)
    assert read_files(own_results) == before
    assert qbench.results(own_results).runs["trust"].isna().all()


def test_a_rebuilt_store_has_the_same_levels_of_trust(
    empty_results: Path, bundle_file: Path
) -> None:
    merge_bundle(empty_results, bundle_file, score=False)
    before = qbench.results(empty_results).runs
    rebuild_store(empty_results)
    pd.testing.assert_frame_equal(qbench.results(empty_results).runs, before)


def test_the_origin_of_a_merged_run_is_recorded(
    empty_results: Path, trained: Path, tmp_path: Path
) -> None:
    submit_runs(trained, ["b"], tmp_path / "b.zip", note="from the lab", by="A. Author")
    merge_bundle(empty_results, tmp_path / "b.zip", score=False)
    latest = read_latest_attempt(empty_results, find_ste_run(empty_results))
    trust = Attempt(Path(latest["folder"])).read("trust") or {}
    assert (trust["level"], trust["attempt"]) == ("claimed", 1)
    assert (trust["by"], trust["note"]) == ("A. Author", "from the lab")
    assert trust["qbench"] == qbench.__version__ and len(trust["manifest_sha256"]) == 64


# ---- All runs or none ----


def test_a_refused_bundle_changes_nothing(
    empty_results: Path, bundle_file: Path, tmp_path: Path
) -> None:
    before = read_files(empty_results)
    forged = replace_result(
        bundle_file,
        find_submitted_ste_run(bundle_file),
        tmp_path / "forged.zip",
        lambda result: result["scores"].update(packed=0.0),
    )
    outcome = merge_bundle(empty_results, forged, score=False)
    assert not outcome.report.passed and str(outcome) == "nothing merged"
    assert outcome.added == 0 and read_files(empty_results) == before
    assert [path.name for path in empty_results.iterdir()] == ["boards"]


@pytest.mark.parametrize("successful_writes", range(0, 22, 3))
def test_a_full_disk_adds_no_run_and_gives_a_one_line_error(
    empty_results: Path, bundle_file: Path, monkeypatch: pytest.MonkeyPatch, successful_writes: int
) -> None:
    with Store(empty_results) as store:
        store.write_snapshot()
    before, remaining = read_files(empty_results), [successful_writes]
    write_bytes = Path.write_bytes

    def write_until_full(path: Path, data: bytes) -> int:
        if STAGING_FOLDER not in path.parts:
            return write_bytes(path, data)
        remaining[0] -= 1
        if remaining[0] < 0:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    if successful_writes >= 15:  # three runs of five files each
        assert merge_bundle(empty_results, bundle_file, score=False).added == 3
        return
    with pytest.raises(QbenchError, match="No space left on device; nothing of") as error:
        merge_bundle(empty_results, bundle_file, score=False)
    assert "\n" not in str(error.value) and read_files(empty_results) == before
    monkeypatch.undo()
    assert merge_bundle(empty_results, bundle_file, score=False).added == 3


@pytest.mark.parametrize("failing_move", [1, 2, 3])
def test_a_failed_move_undoes_the_other_moves(
    empty_results: Path, bundle_file: Path, monkeypatch: pytest.MonkeyPatch, failing_move: int
) -> None:
    before, remaining, rename = read_files(empty_results), [failing_move], Path.rename

    def rename_until_failure(path: Path, target: Path) -> Path:
        remaining[0] -= STAGING_FOLDER in path.parts
        if not remaining[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_failure)
    with pytest.raises(QbenchError, match="nothing of"):
        merge_bundle(empty_results, bundle_file, score=False)
    assert read_files(empty_results) == before
    assert not list((empty_results / "runs").iterdir())
    assert not (empty_results / STAGING_FOLDER).exists()


def test_a_failed_insertion_into_the_store_undoes_the_moves(
    empty_results: Path, bundle_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        file = str(empty_results / "qbench.duckdb")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    monkeypatch.setattr(Store, "_insert_rows", fail)
    # A store that exists already, so that the merge inserts rows instead of building a new one.
    with Store(other := empty_results.parent / "other"):
        pass
    shutil.copy(other / "qbench.duckdb", empty_results / "qbench.duckdb")
    with pytest.raises(QbenchError, match="No space left"):
        merge_bundle(empty_results, bundle_file, score=False)
    assert not list(iterate_attempts(empty_results))


def test_a_merge_that_was_killed_can_be_repeated(empty_results: Path, bundle_file: Path) -> None:
    # The process ends without any cleaning up when it is about to move the second run.
    code = (
        "import os; from pathlib import Path\n"
        "from qbench.submissions.merge import STAGING_FOLDER, merge_bundle\n"
        "rename, remaining = Path.rename, [2]\n"
        "def rename_until_death(path, target):\n"
        "    remaining[0] -= STAGING_FOLDER in path.parts\n"
        "    return rename(path, target) if remaining[0] else os._exit(9)\n"
        "Path.rename = rename_until_death\n"
        f"merge_bundle(Path({str(empty_results)!r}), Path({str(bundle_file)!r}), score=False)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    staging = empty_results / STAGING_FOLDER
    assert staging.exists() and len(list(iterate_attempts(empty_results))) == 1
    outcome = merge_bundle(empty_results, bundle_file, score=False)
    assert (outcome.added, outcome.present) == (2, 1) and not staging.exists()
    assert check_store(empty_results).agrees
    assert len(qbench.results(empty_results).runs) == 3


def test_a_locked_results_folder_is_not_changed(empty_results: Path, bundle_file: Path) -> None:
    with Store(empty_results), pytest.raises(LockedError):
        merge_bundle(empty_results, bundle_file, score=False)
    assert not list(iterate_attempts(empty_results))
