"""A bundle holds the finished runs that were named, and the same runs give the same bytes."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from qbench.errors import QbenchError, UsageError
from qbench.submissions.bundle import MANIFEST, RUN_FILES
from qbench.submissions.submit import submit_runs
from tests.bundles import open_bundle_data, read_bundle_files, submit_to_file


def test_the_same_runs_give_the_same_bytes(
    trained: Path, valid_bundle: bytes, tmp_path: Path
) -> None:
    again = submit_to_file(trained, tmp_path / "again.zip")
    keys = [run.key for run in open_bundle_data(valid_bundle).runs]
    by_key = submit_to_file(trained, tmp_path / "keys.zip", *reversed(keys), keys[0][:8])
    assert again.read_bytes() == valid_bundle
    assert read_bundle_files(by_key.read_bytes()) == read_bundle_files(valid_bundle)
    assert not open_bundle_data(by_key.read_bytes()).boards, (
        "only a named board adds its sweep file"
    )


def test_any_unzip_program_reads_a_bundle_and_finds_only_the_allowed_files(
    valid_bundle: bytes, trained: Path
) -> None:
    with zipfile.ZipFile(io.BytesIO(valid_bundle)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names.pop(1) == "boards/b.toml"
        assert names[0] == MANIFEST
        assert {name.rpartition("/")[2] for name in names[1:]} == set(RUN_FILES)
        key = names[1].split("/")[1]
        artefact = trained / "runs" / key[:2] / key / "1" / "export" / "weights.safetensors"
        assert archive.read(f"runs/{key}/weights.safetensors") == artefact.read_bytes()
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_other_files_in_the_folder_of_a_run_are_not_packed(
    trained: Path, tmp_path: Path, valid_bundle: bytes
) -> None:
    key = open_bundle_data(valid_bundle).runs[0].key
    folder = trained / "runs" / key[:2] / key / "1"
    names = ("notes.txt", "checkpoint", "trust.json", "export/secret.json")
    for name in names:
        (folder / name).write_text('{"level": "claimed"}')
    assert submit_to_file(trained, tmp_path / "b.zip").read_bytes() == valid_bundle
    for name in names:
        (folder / name).unlink()


def test_a_run_is_packed_with_the_run_that_it_starts_from(trained: Path, tmp_path: Path) -> None:
    specs = {
        path.parent.parent.name: json.loads(path.read_text())
        for path in trained.glob("runs/*/*/1/spec.json")
    }
    rtn_key = next(key for key, spec in specs.items() if spec["method"] == "rtn")
    opened = open_bundle_data(submit_to_file(trained, tmp_path / "b.zip", rtn_key).read_bytes())
    assert {run.key for run in opened.runs} == {rtn_key, specs[rtn_key]["base"]}


def test_unfinished_runs_are_not_packed_but_counted(trained: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    removed = next(
        path
        for path in results.glob("runs/*/*/1/result.json")
        if json.loads(path.read_text())["cost"].get("step_s_median")
    )
    removed.unlink()
    written = submit_runs(results, ["b"], tmp_path / "b.zip")
    assert (written.runs, written.unfinished) == (2, 1)
    assert "; without 1 unfinished run\n" in str(written)
    with pytest.raises(UsageError, match="has no result yet"):
        submit_runs(results, [removed.parent.parent.name], tmp_path / "c.zip")


def test_runs_that_would_be_refused_are_not_packed(trained: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    file = next(results.glob("runs/*/*/1/result.json"))
    result = json.loads(file.read_text())
    file.write_text(json.dumps({**result, "size": {**result["size"], "bits_per_weight": 0.5}}))
    with pytest.raises(QbenchError, match=r"would be refused: run .* bits_per_weight is 0\.5"):
        submit_runs(results, ["b"], tmp_path / "b.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_submit_without_anything_to_submit_gives_a_one_line_error(
    tmp_path: Path, trained: Path
) -> None:
    with pytest.raises(UsageError, match=r"unknown board or run .nothing"):
        submit_runs(trained, ["nothing"], tmp_path / "b.zip")
    with pytest.raises(QbenchError, match="No such file"):
        submit_runs(trained, ["b"], tmp_path / "nowhere" / "b.zip")
