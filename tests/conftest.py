"""What all tests share: one thread for torch, as in the workers (two processes of two threads each would fight over two cores), no deadline
for a test that draws examples (machines differ), and a cache of tokenised text that is nobody's."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("qbench", deadline=None)
settings.load_profile("qbench")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["QBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
