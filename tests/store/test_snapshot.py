"""Readers of a store that an older qbench has made."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from qbench.runs.attempts import iterate_attempts
from qbench.store import schema
from qbench.store.connection import SNAPSHOT
from qbench.store.database import Store
from qbench.store.snapshot import open_snapshot
from tests.run_folders import make_attempt, make_run_config


@pytest.mark.parametrize("locked", [False, True])
def test_a_reader_migrates_an_older_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    make_attempt(tmp_path, make_run_config())
    with Store(tmp_path) as writer:
        writer.ingest_attempts(iterate_attempts(tmp_path))
        writer.write_snapshot()
    before = (tmp_path / SNAPSHOT).read_bytes()
    migration = "ALTER TABLE runs ADD COLUMN mood VARCHAR; UPDATE runs SET mood = 'good';"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, migration))
    with Store(tmp_path) if locked else contextlib.nullcontext():
        with open_snapshot(tmp_path) as connection:
            moods = connection.execute("SELECT DISTINCT mood FROM runs").fetchall()
        assert moods == [("good",)]
        assert ((tmp_path / SNAPSHOT).read_bytes() == before) == locked, (
            "while another process writes, a copy of its snapshot is migrated"
        )
