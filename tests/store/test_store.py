"""The store is an index: whatever happens to it, the run folders restore it, and it never says what they do not."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

import qbench
from qbench.errors import LockedError, QbenchError, UsageError
from qbench.runs.attempts import iterate_attempts
from qbench.runs.lookup import find_key
from qbench.store import database, schema
from qbench.store.board_members import save_board_members
from qbench.store.consistency import check_store, rebuild_store
from qbench.store.database import DATABASE, SNAPSHOT, Store
from qbench.store.file_rows import IncomingRows, InvalidRunFolder, make_run_row
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.board_members import make_board_members
from tests.run_folders import make_run_config, make_attempt, fake_board_members


def rows(results: Path) -> set[tuple[Any, ...]]:
    with open_snapshot(results) as connection:
        return set(connection.execute("SELECT key, attempt, state, packed FROM runs").fetchall())


def some(results: Path, count: int = 5) -> list[Any]:
    return [make_attempt(results, make_run_config(seed), score=0.1 * seed) for seed in range(count)]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with Store(tmp_path) as open_store:
        assert not open_store.ingest_attempts(some(tmp_path))
        open_store.save_board(fake_board_members("b", [(make_run_config(), None)], 5))
        open_store.write_snapshot()
    return tmp_path


# ---- taking in ----


def test_what_goes_in_comes_out(filled: Path) -> None:
    found = qbench.results(filled)
    row = found.runs.set_index("seed").loc[3]
    assert (
        row["packed"] == 0.1 * 3
        and row["key"] == make_run_config(3).key
        and row["params"] == '{"scale": "absmax"}'
    )
    assert (row["method"], row["weights_format"], row["act_format"], row["steps"], row["lr"]) == (
        "ste",
        "int4",
        None,
        10,
        0.003,
    )
    assert (
        row["commit_id"] == "c" * 40
        and not row["dirty"]
        and row["audit_passed"]
        and row["effect"] == 0.01
    )
    assert (
        list(found.curve(make_run_config(3).key[:8])["loss"]) == [1.0, 1 / 2, 1 / 3]
        and len(found.curves) == 15
    )
    assert list(found.boards["board"]) == ["b"]


def test_the_tables_have_exactly_the_columns_that_are_filled(filled: Path) -> None:
    with open_snapshot(filled) as connection:
        columns = {
            r[0]
            for r in connection.execute(
                "SELECT column_name FROM duckdb_columns() WHERE table_name = 'runs'"
            ).fetchall()
        }
        curves = {
            r[0]
            for r in connection.execute(
                "SELECT column_name FROM duckdb_columns() WHERE table_name = 'curves'"
            ).fetchall()
        }
    assert columns == {"key", "attempt", "audit_failures", *(c.name for c in schema.RUN_COLUMNS)}
    assert curves == {"key", "attempt", "more", *schema.CURVE_COLUMNS}


def test_twice_is_once(filled: Path) -> None:
    before = rows(filled)
    with Store(filled) as open_store:
        open_store.ingest_attempts(list(database.all_attempts(filled)) * 2)
        open_store.write_snapshot()
    assert rows(filled) == before and len(before) == 5


def test_a_number_that_is_not_finite_is_null_and_its_kind_is_kept(tmp_path: Path) -> None:
    make_attempt(tmp_path, make_run_config(), score=None)
    with Store(tmp_path) as open_store:
        open_store.write_snapshot()
    row = qbench.results(tmp_path).runs.iloc[0]
    assert math.isnan(row["packed"]) and json.loads(row["kinds"]) == {"packed": "nan"}
    with open_snapshot(tmp_path) as connection:
        assert connection.execute("SELECT packed IS NULL FROM runs").fetchall() == [(True,)]


def test_a_failed_run_has_a_row(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config())
    attempt.write(
        "result",
        {
            "key": attempt.key,
            "attempt": 1,
            "state": "failed",
            "reason": "oom",
            "message": "no room",
        },
    )
    with Store(tmp_path) as open_store:
        open_store.write_snapshot()
    row = qbench.results(tmp_path).runs.iloc[0]
    assert (row["state"], row["reason"], row["message"]) == (
        "failed",
        "oom",
        "no room",
    ) and math.isnan(row["packed"])


def test_an_attempt_without_a_result_is_not_a_row(tmp_path: Path) -> None:
    (make_attempt(tmp_path, make_run_config()).folder / "result.json").unlink()
    assert make_run_row(make_attempt(tmp_path, make_run_config(1))) is not None
    with Store(tmp_path) as open_store:
        assert len(open_store.known_attempts) == 1


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
def test_a_folder_that_is_not_what_it_says_is_refused(
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
    with Store(tmp_path) as open_store:
        assert not open_store.known_attempts and "without a spec.json" in open_store.refused[0]


def test_a_curve_that_was_cut_short_keeps_its_whole_lines(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config(), points=4)
    attempt.curve.write_text(attempt.curve.read_text()[:-20])
    batch = IncomingRows()
    batch.add(attempt)
    assert batch.curves["step"] == [0, 1, 2] and len(batch.runs) == 1


def test_terms_and_metrics_of_a_curve_are_kept(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path, make_run_config(), points=0)
    attempt.curve.write_text(
        json.dumps(
            {"step": 1, "loss": 3.0, "terms": {"task": 1.0, "pull": 2.0}, "metrics": {"flips": 4}}
        )
        + "\n"
    )
    batch = IncomingRows()
    batch.add(attempt)
    assert json.loads(batch.curves["more"][0]) == {
        "terms": {"task": 1.0, "pull": 2.0},
        "metrics": {"flips": 4},
    }


# ---- damage ----


def test_rebuild_gives_the_same_rows(filled: Path) -> None:
    before = rows(filled), qbench.results(filled).board("b")
    for name in (DATABASE, SNAPSHOT):
        (filled / name).unlink()
    report = rebuild_store(filled)
    assert report.runs == 5 and (rows(filled), qbench.results(filled).board("b")) == before


def damaged(how: str, file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if how == "truncated":
        data = data[: chance.randrange(len(data))]
    elif how == "flipped":
        for _ in range(50):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "garbage":
        data = bytearray(chance.randbytes(5000))
    file.write_bytes(data)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["truncated", "flipped", "garbage", "empty"])
def test_a_damaged_database_is_made_again(
    filled: Path, how: str, seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: a database engine may well die of a flipped bit."""
    before = rows(filled)
    chance = random.Random(f"{how}{seed}")
    for name in (DATABASE, SNAPSHOT):
        (filled / name).write_bytes(b"") if how == "empty" else damaged(how, filled / name, chance)
    done = subprocess.run(
        [sys.executable, "-m", "qbench", "db", "rebuild", "--results", str(filled)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert rows(filled) == before


@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_whoever_opens_a_damaged_database_mends_it(
    filled: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = rows(filled)
    damaged(how, filled / DATABASE, random.Random(how))
    with Store(filled) as open_store:
        assert len(open_store.known_attempts) == 5
        open_store.write_snapshot()
    assert "was damaged and has been made again" in capfd.readouterr().err
    assert len(list(filled.glob(f"{DATABASE}.damaged-*"))) == 1 and rows(filled) == before


def test_a_reader_mends_a_damaged_snapshot(filled: Path) -> None:
    before = rows(filled)
    (filled / SNAPSHOT).write_bytes(b"not a database at all" * 100)
    assert rows(filled) == before


def test_a_lost_write_ahead_log_loses_nothing(filled: Path) -> None:
    """A writer that is killed leaves a log behind; even without it every row comes back."""
    code = (
        "import os, sys; from pathlib import Path; from qbench.store.database import Store; from tests.run_folders import make_run_config, make_attempt\n"
        f"root = Path({str(filled)!r})\n"
        "with Store(root) as s:\n"
        "    s.ingest([make(root, config(9), score=0.9)])\n"
        "    os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    log = database._wal(filled / DATABASE)
    assert log.stat().st_size > 0
    log.unlink()
    assert not check_store(filled).agrees and check_store(filled).missing == [f"{make_run_config(9).key}/1"]
    rebuild_store(filled)
    assert check_store(filled).agrees and len(rows(filled)) == 6


def test_what_a_killed_writer_has_committed_reaches_readers(filled: Path) -> None:
    code = (
        "import os, time; from pathlib import Path; from qbench.store.database import Store; from tests.run_folders import make_run_config, make_attempt\n"
        f"root = Path({str(filled)!r})\n"
        "with Store(root) as s:\n"
        "    s.ingest([make(root, config(9), score=0.9)])\n"
        "    print('in', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as writer:
        assert writer.stdout and writer.stdout.readline() == "in\n"
        writer.send_signal(signal.SIGKILL)
    os.utime(filled / SNAPSHOT, (0, 0))
    assert (make_run_config(9).key, 1, "ok", 0.9) in rows(filled)


# ---- one writer, many readers ----


def test_a_second_writer_is_turned_away(filled: Path) -> None:
    with Store(filled), pytest.raises(LockedError, match=f"process {os.getpid()}") as caught:
        Store(filled).__enter__()
    assert caught.value.code == 6
    with Store(filled):
        pass  # the lock went with its holder


def test_readers_see_the_snapshot_while_somebody_writes(filled: Path) -> None:
    with Store(filled) as open_store:
        open_store.ingest_attempts([make_attempt(filled, make_run_config(9), score=0.9)])
        assert len(rows(filled)) == 5
        open_store.write_snapshot()
        assert len(rows(filled)) == 6


def test_a_snapshot_of_nothing_new_is_not_written(filled: Path) -> None:
    with Store(filled) as open_store:
        open_store.write_snapshot()
        before = (filled / SNAPSHOT).stat().st_mtime_ns
        time.sleep(0.01)
        open_store.write_snapshot()
    assert (filled / SNAPSHOT).stat().st_mtime_ns == before


def test_a_newer_store_is_left_alone(filled: Path) -> None:
    with duckdb.connect(str(filled / DATABASE)) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    before = (filled / DATABASE).read_bytes()
    with pytest.raises(QbenchError, match="newer qbench"):
        Store(filled).__enter__()
    assert (filled / DATABASE).read_bytes() == before
    assert not list(filled.glob("*damaged*"))


def test_migrations_bring_an_older_store_up_to_date(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        database,
        "MIGRATIONS",
        (
            *schema.MIGRATIONS,
            "ALTER TABLE runs ADD COLUMN mood VARCHAR; UPDATE runs SET mood = 'good';",
        ),
    )
    with Store(filled) as open_store:
        open_store.snapshot_is_stale = True
        open_store.write_snapshot()
    with open_snapshot(filled) as connection:
        assert connection.execute("SELECT DISTINCT mood FROM runs").fetchall() == [("good",)]
        assert database._version(connection) == len(schema.MIGRATIONS) + 1


def test_an_older_release_of_the_database_engine_can_read_it(filled: Path) -> None:
    with duckdb.connect(str(filled / SNAPSHOT), read_only=True) as connection:
        tags = connection.execute(
            "SELECT tags FROM duckdb_databases() WHERE NOT internal"
        ).fetchall()[0][0]
    assert tags["storage_version"].startswith(database.OLDEST_READER)


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="no runs here yet; `qbench sweep`"), open_snapshot(tmp_path):
        pass
    with pytest.raises(QbenchError, match="nothing to rebuild from"):
        rebuild_store(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- check ----


def test_check_finds_every_difference(filled: Path) -> None:
    assert check_store(filled).agrees and check_store(filled).runs == 5
    changed = database.Attempt(filled / "runs" / make_run_config(1).key[:2] / make_run_config(1).key / "1")
    changed.write("result", {**(changed.read("result") or {}), "message": "another"})
    shutil.rmtree(filled / "runs" / make_run_config(2).key[:2] / make_run_config(2).key)
    make_attempt(filled, make_run_config(3), number=2)
    cut = database.Attempt(filled / "runs" / make_run_config(4).key[:2] / make_run_config(4).key / "1")
    cut.curve.write_text(cut.curve.read_text().splitlines(keepends=True)[0])
    (make_attempt(filled, make_run_config(8)).folder / "result.json").unlink()
    report = check_store(filled)
    assert not report.agrees and report.unfinished == 1
    assert report.missing == [f"{make_run_config(3).key}/2"] and report.foreign == [f"{make_run_config(2).key}/1"]
    assert sorted(report.different) == sorted([f"{make_run_config(1).key}/1", f"{make_run_config(4).key}/1"])
    assert "db rebuild" in str(report)


# ---- boards ----


def test_a_board_shows_what_is_missing_and_what_was_skipped(filled: Path) -> None:
    cells = [
        (make_run_config(), None),
        (make_run_config(method="fp", fmt=None), None),
        (make_run_config(method="x"), "x has no rule for int4"),
    ]
    with Store(filled) as open_store:
        open_store.save_board(fake_board_members("b", cells, 7, title="A board"))
        open_store.write_snapshot()
    board = qbench.results(filled).board("b")
    states = {
        row.method: (row.cells[0].state, row.cells[0].seeds, row.cells[0].asked)
        for row in board.sections[0].rows
    }
    assert board.title == "A board" and board.runs == 5 + 2 + 7 + 7
    assert (
        states["ste"] == ("partial", 5, 7)
        and states["fp"][0] == "planned"
        and states["x"][0] == "skipped"
    )
    cells_frame = qbench.results(filled).cells("b").set_index("method")
    assert (
        cells_frame.loc["ste", "seeds"] == 5 and "no rule for int4" in cells_frame.loc["x", "notes"]
    )


def test_a_board_that_is_swept_again_is_replaced(filled: Path) -> None:
    with Store(filled) as open_store:
        open_store.save_board(fake_board_members("b", [(make_run_config(), None)], 2))
        open_store.write_snapshot()
    assert qbench.results(filled).board("b").runs == 2


def test_the_roster_is_a_file_that_restores_the_board(filled: Path) -> None:
    for name in (DATABASE, SNAPSHOT):
        (filled / name).unlink()
    assert qbench.results(filled).board("b").runs == 5


def test_a_damaged_roster_is_one_line(filled: Path) -> None:
    (filled / "boards" / "b.json").write_text("{")
    with pytest.raises(QbenchError, match=r"b\.json: damaged; sweep the board's file again"):
        rebuild_store(filled)
    assert len(rows(filled)) == 5


def test_a_real_plan_makes_a_roster() -> None:
    from qbench.sweeps.plan import make_plan

    text = 'board = "r"\nseeds = 2\nmethods = ["fp", "rtn", "ste"]\ntasks = ["toy"]\nformats = ["int2"]\n'
    plan = make_plan(parse_sweep(text, "r.toml"))
    made = make_board_members(plan)
    assert sorted(key for cell in made["cells"] for key in cell["keys"]) == sorted(plan.runs)
    assert {cell["label"] for cell in made["cells"]} == {"fp", "rtn", "ste"} and "scale" in made[
        "defaults"
    ]["rtn"]


def test_a_base_that_nobody_asked_for_is_not_on_the_board() -> None:
    from qbench.sweeps.plan import make_plan

    plan = make_plan(
        parse_sweep('board = "r"\nmethods = ["rtn"]\ntasks = ["toy"]\nformats = ["int2"]\n', "r.toml")
    )
    assert len(plan.runs) == 2 and [cell["label"] for cell in make_board_members(plan)["cells"]] == ["rtn"]


def test_unknown_boards_and_runs_are_one_line(filled: Path) -> None:
    save_board_members(filled, fake_board_members("quack", [(make_run_config(), None)], 1))
    rebuild_store(filled)
    with pytest.raises(UsageError, match="unknown board 'quick'; did you mean quack"):
        qbench.results(filled).board("quick")
    with pytest.raises(UsageError, match="0 runs with a curve"):
        qbench.results(filled).curve("zzz")


def test_what_is_no_beginning_of_a_key_stands_for_no_run(tmp_path: Path) -> None:
    spec = make_run_config()
    make_attempt(tmp_path, spec)
    assert find_key(tmp_path, spec.key[:6]) == find_key(tmp_path, spec.key) == spec.key
    for word in ("", "*", f"{spec.key[:6]}*", "..", f"{spec.key[:6]}/..", spec.key + "0"):
        with pytest.raises(UsageError):
            find_key(tmp_path, word)


def test_an_artefact_that_is_gone_is_listed_and_the_store_agrees(filled: Path) -> None:
    """Made runs have none; of a merged run it may never have come."""
    whole, gone, merged, failed, *_ = iterate_attempts(filled)
    whole.export.mkdir()
    whole.artefact.write_bytes(b"")
    merged.write("trust", {"level": "claimed"})
    failed.write(
        "result",
        {
            name: value
            for name, value in (failed.read("result") or {}).items()
            if name != "artefact_sha256"
        },
    )
    rebuild_store(filled)
    found = check_store(filled)
    name = f"{gone.key}/{gone.number}"
    assert found.agrees and name in found.lost and len(found.lost) == 2
    assert f"without its artefact: {name}" in str(found) and str(found).endswith(
        "the store agrees with the files"
    )
