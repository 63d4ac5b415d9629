"""Trained runs and their bundle, which the tests of this package share and must not change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bundles import submit_to_file, train_runs


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the three finished runs of board `b`."""
    results = tmp_path_factory.mktemp("trained")
    train_runs(results)
    return results


@pytest.fixture(scope="session")
def bundle_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of board `b`."""
    return submit_to_file(trained, tmp_path_factory.mktemp("bundle") / "b.qbench.zip")


@pytest.fixture(scope="session")
def valid_bundle(bundle_file: Path) -> bytes:
    return bundle_file.read_bytes()


@pytest.fixture
def empty_results(trained: Path, tmp_path: Path) -> Path:
    """A results folder that knows board `b` and has none of its runs."""
    results = tmp_path / "results"
    shutil.copytree(trained / "boards", results / "boards")
    return results


@pytest.fixture
def own_results(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs that a test may change."""
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    return results
