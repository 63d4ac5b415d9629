"""What all tests share: one thread for torch, Hypothesis profiles and a separate cache folder."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests import SOAK

# Workers do the same: two processes of two threads each would compete for two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples have no deadline, because machines differ.
settings.register_profile("ordinary", deadline=None, max_examples=30)
settings.register_profile("soak", deadline=None, max_examples=500)
settings.load_profile("soak" if SOAK else "ordinary")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tokenised text in a folder that no other process uses."""
    os.environ["QBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
