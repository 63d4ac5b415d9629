"""Readers of a store that an older qbench has made."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from qbench.runs.attempts import all_attempts
from qbench.store import database, schema
from qbench.store.database import SNAPSHOT, Store
from qbench.store.snapshot import view
from tests.made_runs import config, make


@pytest.mark.parametrize("locked", [False, True])
def test_they_bring_its_snapshot_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    make(tmp_path, config())
    with Store(tmp_path) as writer:
        writer.ingest(all_attempts(tmp_path))
        writer.snapshot()
    old = (tmp_path / SNAPSHOT).read_bytes()
    newer = "ALTER TABLE runs ADD COLUMN mood VARCHAR; UPDATE runs SET mood = 'good';"
    monkeypatch.setattr(database, "MIGRATIONS", (*schema.MIGRATIONS, newer))
    with Store(tmp_path) if locked else contextlib.nullcontext():
        with view(tmp_path) as connection:
            assert connection.execute("SELECT DISTINCT mood FROM runs").fetchall() == [("good",)]
        assert ((tmp_path / SNAPSHOT).read_bytes() == old) == locked, (
            "what somebody else writes is read from a copy"
        )
