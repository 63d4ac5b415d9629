"""The store is an index: the run folders restore it, and it never disagrees with them."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qbench
from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt, iterate_attempts
from qbench.store import schema
from qbench.store.connection import DATABASE, SNAPSHOT
from qbench.store.consistency import rebuild_store
from qbench.store.database import Store
from qbench.store.file_rows import IncomingRows, InvalidRunFolder, make_run_row
from qbench.store.snapshot import open_snapshot
from tests.run_folders import make_attempt, make_run_config
from tests.store.conftest import read_rows


def list_columns(results: Path, table: str) -> set[str]:
    with open_snapshot(results) as connection:
        rows = connection.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ?", [table]
        ).fetchall()
    return {row[0] for row in rows}


# ---- ingesting ----


def test_a_run_is_read_back_as_it_was_written(filled: Path) -> None:
    found = qbench.results(filled)
    row = found.runs.set_index("seed").loc[3]
    assert row["packed"] == 0.1 * 3
    assert row["key"] == make_run_config(3).key
    assert row["params"] == '{"scale": "absmax"}'
    assert (row["method"], row["weights_format"], row["act_format"]) == ("ste", "int4", None)
    assert (row["steps"], row["lr"]) == (10, 0.003)
    assert row["commit_id"] == "c" * 40 and not row["dirty"]
    assert row["audit_passed"] and row["effect"] == 0.01
    assert list(found.curve(make_run_config(3).key[:8])["loss"]) == [1.0, 1 / 2, 1 / 3]
    assert len(found.curves) == 15
    assert list(found.boards["board"]) == ["b"]


def test_the_tables_have_exactly_the_columns_that_are_filled(filled: Path) -> None:
    run_columns = {column.name for column in schema.RUN_COLUMNS}
    assert list_columns(filled, "runs") == {"key", "attempt", "audit_failures", *run_columns}
    assert list_columns(filled, "curves") == {"key", "attempt", "more", *schema.CURVE_COLUMNS}


def test_ingesting_an_attempt_twice_adds_one_row(filled: Path) -> None:
    before = read_rows(filled)
    with Store(filled) as store:
        store.ingest_attempts(list(iterate_attempts(filled)) * 2)
        store.write_snapshot()
    assert read_rows(filled) == before and len(before) == 5


def test_a_number_that_is_not_finite_is_null_and_its_kind_is_stored(tmp_path: Path) -> None:
    make_attempt(tmp_path, make_run_config(), score=None)
    with Store(tmp_path) as store:
        store.write_snapshot()
    row = qbench.results(tmp_path).runs.iloc[0]
    assert math.isnan(row["packed"]) and json.loads(row["kinds"]) == {"packed": "nan"}
    with open_snapshot(tmp_path) as connection:
        assert connection.execute("SELECT packed IS NULL FROM runs").fetchall() == [(True,)]


def test_a_failed_run_has_a_row(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config())
    failure = {"state": "failed", "reason": "oom", "message": "no room"}
    attempt.write("result", {"key": attempt.key, "attempt": 1, **failure})
    with Store(tmp_path) as store:
        store.write_snapshot()
    row = qbench.results(tmp_path).runs.iloc[0]
    assert (row["state"], row["reason"], row["message"]) == ("failed", "oom", "no room")
    assert math.isnan(row["packed"])


def test_an_attempt_without_a_result_has_no_row(tmp_path: Path) -> None:
    (make_attempt(tmp_path, make_run_config()).folder / "result.json").unlink()
    assert make_run_row(make_attempt(tmp_path, make_run_config(1))) is not None
    with Store(tmp_path) as store:
        assert len(store.known_attempts) == 1


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("spec", {"seed": 7}),
        ("spec", {"method": "another"}),
        ("result", {"key": "f" * 32}),
        ("result", {"attempt": 2}),
        ("result", {"state": "splendid"}),
    ],
)
def test_a_folder_whose_files_contradict_each_other_is_refused(
    tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    attempt = make_attempt(tmp_path, make_run_config())
    attempt.write(file, {**(attempt.read(file) or {}), **change})
    with pytest.raises(InvalidRunFolder, match=attempt.key):
        make_run_row(attempt)
    assert len(rebuild_store(tmp_path).refused) == 1


def test_a_result_without_its_spec_is_refused(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config())
    (attempt.folder / "spec.json").unlink()
    with Store(tmp_path) as store:
        assert not store.known_attempts
        assert "without a spec.json" in store.refused[0]


def ingest_one(attempt: Attempt) -> IncomingRows:
    incoming = IncomingRows()
    incoming.add_attempt(attempt)
    return incoming


def test_a_curve_that_was_cut_short_keeps_its_complete_lines(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config(), points=4)
    attempt.curve.write_text(attempt.curve.read_text()[:-20])
    incoming = ingest_one(attempt)
    assert incoming.curves["step"] == [0, 1, 2] and len(incoming.runs) == 1


def test_loss_terms_and_metrics_of_a_curve_are_stored(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config(), points=0)
    extra = {"terms": {"task": 1.0, "pull": 2.0}, "metrics": {"flips": 4}}
    attempt.curve.write_text(json.dumps({"step": 1, "loss": 3.0, **extra}) + "\n")
    assert json.loads(ingest_one(attempt).curves["more"][0]) == extra


# ---- damage ----


def test_a_rebuild_gives_the_same_rows(filled: Path) -> None:
    before = read_rows(filled), qbench.results(filled).board("b")
    for name in (DATABASE, SNAPSHOT):
        (filled / name).unlink()
    report = rebuild_store(filled)
    assert report.runs == 5
    assert (read_rows(filled), qbench.results(filled).board("b")) == before


def damage_file(how: str, file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if how == "truncated":
        data = data[: chance.randrange(len(data))]
    elif how == "flipped":
        for _ in range(50):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "garbage":
        data = bytearray(chance.randbytes(5000))
    elif how == "empty":
        data = bytearray()
    file.write_bytes(data)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["truncated", "flipped", "garbage", "empty"])
def test_a_damaged_database_is_rebuilt(filled: Path, how: str, seed: int) -> None:
    before = read_rows(filled)
    chance = random.Random(f"{how}{seed}")
    for name in (DATABASE, SNAPSHOT):
        damage_file(how, filled / name, chance)
    # In a process of its own: a flipped bit may crash the database engine.
    command = [sys.executable, "-m", "qbench", "db", "rebuild", "--results", str(filled)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_rows(filled) == before


@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_a_writer_that_opens_a_damaged_database_rebuilds_it(
    filled: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = read_rows(filled)
    damage_file(how, filled / DATABASE, random.Random(how))
    with Store(filled) as store:
        assert len(store.known_attempts) == 5
        store.write_snapshot()
    assert "was damaged and has been made again" in capfd.readouterr().err
    assert len(list(filled.glob(f"{DATABASE}.damaged-*"))) == 1
    assert read_rows(filled) == before


def test_a_reader_replaces_a_damaged_snapshot(filled: Path) -> None:
    before = read_rows(filled)
    (filled / SNAPSHOT).write_bytes(b"not a database at all" * 100)
    assert read_rows(filled) == before


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(QbenchError, match="no runs here yet; `qbench sweep`"),
        open_snapshot(tmp_path),
    ):
        pass
    with pytest.raises(QbenchError, match="nothing to rebuild from"):
        rebuild_store(tmp_path)
    assert not list(tmp_path.iterdir())
