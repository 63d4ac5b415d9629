"""One writer and many readers share a results folder, and either may be older or be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from qbench.errors import LockedError, QbenchError
from qbench.store import connection as store_connection
from qbench.store import schema
from qbench.store.connection import DATABASE, SNAPSHOT, log_file
from qbench.store.consistency import check_store, rebuild_store
from qbench.store.database import Store
from qbench.store.snapshot import open_snapshot
from tests.run_folders import make_attempt, make_run_config
from tests.store.conftest import read_rows

ROOT = Path(__file__).parents[2]
INGEST_ONE_MORE = """
import os, sys, time
from pathlib import Path
from qbench.store.database import Store
from tests.run_folders import make_attempt, make_run_config
results = Path(sys.argv[1])
with Store(results) as store:
    store.ingest_attempts([make_attempt(results, make_run_config(9), score=0.9)])
"""


def test_a_lost_write_ahead_log_loses_no_row(filled: Path) -> None:
    """A writer that is killed leaves a log behind. Even without it every row is restored."""
    code = INGEST_ONE_MORE + "    os._exit(0)\n"
    subprocess.run([sys.executable, "-c", code, str(filled)], check=True, cwd=ROOT)
    log = log_file(filled / DATABASE)
    assert log.stat().st_size > 0
    log.unlink()
    assert not check_store(filled).agrees
    assert check_store(filled).missing == [f"{make_run_config(9).key}/1"]
    rebuild_store(filled)
    assert check_store(filled).agrees and len(read_rows(filled)) == 6


def test_readers_see_what_a_killed_writer_had_committed(filled: Path) -> None:
    code = INGEST_ONE_MORE + "    print('in', flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", code, str(filled)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout and writer.stdout.readline() == "in\n"
        writer.send_signal(signal.SIGKILL)
    os.utime(filled / SNAPSHOT, (0, 0))
    assert (make_run_config(9).key, 1, "ok", 0.9) in read_rows(filled)


def test_a_second_writer_is_refused(filled: Path) -> None:
    with Store(filled), pytest.raises(LockedError, match=f"process {os.getpid()}") as caught:
        Store(filled).__enter__()
    assert caught.value.code == 6
    with Store(filled):
        pass  # the first writer released the lock


def test_readers_see_the_snapshot_while_a_writer_is_active(filled: Path) -> None:
    with Store(filled) as store:
        store.ingest_attempts([make_attempt(filled, make_run_config(9), score=0.9)])
        assert len(read_rows(filled)) == 5
        store.write_snapshot()
        assert len(read_rows(filled)) == 6


def test_a_snapshot_is_not_written_again_without_changes(filled: Path) -> None:
    with Store(filled) as store:
        store.write_snapshot()
        before = (filled / SNAPSHOT).stat().st_mtime_ns
        time.sleep(0.01)
        store.write_snapshot()
    assert (filled / SNAPSHOT).stat().st_mtime_ns == before


def test_a_store_of_a_newer_qbench_is_not_touched(filled: Path) -> None:
    with duckdb.connect(str(filled / DATABASE)) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    before = (filled / DATABASE).read_bytes()
    with pytest.raises(QbenchError, match="newer qbench"):
        Store(filled).__enter__()
    assert (filled / DATABASE).read_bytes() == before
    assert not list(filled.glob("*damaged*"))


def test_an_older_store_is_migrated(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = "ALTER TABLE runs ADD COLUMN mood VARCHAR; UPDATE runs SET mood = 'good';"
    latest = len(schema.MIGRATIONS) + 1
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, migration))
    with Store(filled) as store:
        store.snapshot_is_stale = True
        store.write_snapshot()
    with open_snapshot(filled) as connection:
        assert connection.execute("SELECT DISTINCT mood FROM runs").fetchall() == [("good",)]
        assert store_connection.read_version(connection) == latest


def test_an_older_release_of_duckdb_can_read_the_files(filled: Path) -> None:
    with duckdb.connect(str(filled / SNAPSHOT), read_only=True) as connection:
        tags = connection.execute(
            "SELECT tags FROM duckdb_databases() WHERE NOT internal"
        ).fetchall()[0][0]
    assert tags["storage_version"].startswith(store_connection.OLDEST_READER)
