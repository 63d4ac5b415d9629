"""Verification gives each run a level of trust and says what fails in a safe way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from qbench.submissions.bundle import Bundle
from qbench.submissions.file_checks import check_run_files
from qbench.submissions.report import VerificationReport
from qbench.submissions.verify import verify_bundle
from tests.bundles import assemble_bundle, find_run_of_method, forge_json_file, read_bundle_files
from tests.submissions.verified_bundles import (
    change_json_file,
    find_failures,
    set_entry,
    verify_data,
)


def test_runs_that_were_trained_here_are_verified(valid_bundle: bytes) -> None:
    report = verify_data(valid_bundle, score=True)
    assert report.passed and report.runs == 3 and set(report.trust.values()) == {"verified"}
    checks = (
        "archive manifest boards schema keys results scores audits curves artefacts plugins "
        "evaluation"
    )
    assert [finding.check for finding in report.findings] == checks.split()


def test_without_evaluation_a_run_is_only_claimed(valid_bundle: bytes) -> None:
    report = verify_data(valid_bundle)
    assert report.passed and set(report.trust.values()) == {"claimed"}


def test_a_run_without_an_artefact_is_only_claimed(valid_bundle: bytes) -> None:
    manifest, files = read_bundle_files(valid_bundle)
    for own_files in files.values():
        del own_files["weights.safetensors"]
    report = verify_data(assemble_bundle(manifest, files), score=True)
    assert report.passed and set(report.trust.values()) == {"claimed"}


def test_runs_that_give_the_same_result_when_trained_again_are_reproduced(
    valid_bundle: bytes,
) -> None:
    report = verify_data(valid_bundle, rerun=None)
    assert report.passed and set(report.trust.values()) == {"reproduced"}
    assert report.findings[-1].detail.startswith("3 of 3 runs trained again")


def test_as_many_runs_are_trained_again_as_asked(valid_bundle: bytes) -> None:
    report = verify_data(valid_bundle, rerun=1)
    assert sorted(report.trust.values()) == ["claimed", "claimed", "reproduced"]


def test_a_failed_run_is_claimed(valid_bundle: bytes) -> None:
    def fail(result: dict[str, Any]) -> dict[str, Any]:
        names = ("result_version", "key", "attempt", "started", "finished")
        failure = {"state": "failed", "reason": "oom", "message": "no room"}
        return {name: result[name] for name in names} | failure

    manifest, files = read_bundle_files(forge_json_file(valid_bundle, "result.json", fail))
    key = find_run_of_method(files)
    assert find_failures(assemble_bundle(manifest, files)) == {
        "results": f"run {key[:12]}: it failed, but it has an artefact"
    }
    del files[key]["weights.safetensors"]
    report = verify_data(assemble_bundle(manifest, files))
    assert report.passed and report.trust[key] == "claimed"


def test_the_failures_of_a_check_are_listed_up_to_a_limit() -> None:
    report = VerificationReport()
    report.add_check("keys", "", [f"run {n}" for n in range(30)])
    assert len(report.findings) == 21 and report.findings[-1].detail == "and 10 more"


def test_a_file_that_is_not_a_bundle_is_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"hello")
    report = verify_bundle(tmp_path / "b.zip")
    assert not report.passed
    assert str(report.findings[0]) == f"FAILED archive    {tmp_path}/b.zip: not a zip archive"


def test_the_message_of_a_refusal_is_safe_to_print(valid_bundle: bytes) -> None:
    for name in ("\x1b]0;owned\x07", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a\u202eb"):
        data = change_json_file(valid_bundle, "result.json", set_entry("metrics", {name: 1.0}))
        bundle = Bundle(io.BytesIO(data))
        problems = [problem for run in bundle.runs for problem in check_run_files(bundle, run)[1]]
        assert problems and all(problem.isprintable() for _, problem in problems)
