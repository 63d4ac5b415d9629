"""The folder of a site: reproducible bytes, checksums, and a replacement that is all or nothing."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qbench.errors import QbenchError
from qbench.publish.site_folder import write_site_folder
from tests.synthetic_sites import make_ranked_runs, make_site_files, make_varied_runs


def test_the_order_of_rows_does_not_change_a_byte_of_the_site() -> None:
    rows = make_ranked_runs(seeds=10)
    first = make_site_files(rows)
    second = make_site_files(rows.sample(frac=1, random_state=3))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_sha256sum_accepts_the_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    write_site_folder(make_site_files(make_varied_runs()), folder)
    command = ["sha256sum", "--check", "SHA256SUMS"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list(folder.iterdir())) - 1


def test_a_site_replaces_an_empty_folder_or_a_site_and_nothing_else(tmp_path: Path) -> None:
    out, files = tmp_path / "site", make_site_files(make_varied_runs())
    out.mkdir()
    write_site_folder(files, out)
    write_site_folder({**files, "index.html": b"new"}, out)
    assert (out / "index.html").read_bytes() == b"new"
    (out / "CNAME").write_text("example.org")
    with pytest.raises(QbenchError, match="CNAME that qbench publish did not write"):
        write_site_folder(files, out)
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("name", ["index.html", "board.json"])
def test_a_folder_with_files_of_the_same_name_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(QbenchError, match="did not write"):
        write_site_folder(make_site_files(make_varied_runs()), tmp_path)
    assert (tmp_path / name).read_text() == "{}" and len(list(tmp_path.iterdir())) == 1


def test_a_site_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    out, files = tmp_path / "site", make_site_files(make_varied_runs())
    write_site_folder(files, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(OSError, match="too long"):
        write_site_folder({**files, "x" * 300: b""}, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_the_parquet_file_holds_every_run_with_the_types_of_the_store() -> None:
    rows = make_varied_runs()
    table = pq.read_table(BytesIO(make_site_files(rows)["runs.parquet"]))
    read = table.to_pandas().set_index("key").sort_index()
    expected = rows.set_index("key").sort_index()
    assert read["packed"].tolist() == pytest.approx(expected["packed"].tolist(), nan_ok=True, rel=0)
    assert read["message"].dropna().tolist() == expected["message"].dropna().tolist()
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["seed"], types["packed"], types["audit_passed"], types["message"]) == (
        "int64",
        "double",
        "bool",
        "string",
    )
