"""A results folder with a few runs, for all tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qbench.store.database import Store
from qbench.store.snapshot import open_snapshot
from tests.run_folders import fake_board_members, make_attempt, make_run_config


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A results folder with five runs and a board `b` of them."""
    attempts = [make_attempt(tmp_path, make_run_config(s), score=0.1 * s) for s in range(5)]
    with Store(tmp_path) as store:
        assert not store.ingest_attempts(attempts)
        store.save_board(fake_board_members("b", [(make_run_config(), None)], 5))
        store.write_snapshot()
    return tmp_path


def read_rows(results: Path) -> set[tuple[Any, ...]]:
    """Return the main columns of all runs that a reader sees."""
    with open_snapshot(results) as connection:
        return set(connection.execute("SELECT key, attempt, state, packed FROM runs").fetchall())
