"""The Ray engine without a cluster: options that are refused, and clusters that do not answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qbench.engines import ray_cluster
from tests.engines.ray_helpers import MAIN, SMALL_BOARD, needs_ray, run_failing_sweep
from tests.stage import stage

__all__ = ["stage"]


pytestmark = [pytest.mark.usefixtures("stage"), pytest.mark.xdist_group("ray")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(SMALL_BOARD)
    return path


def test_a_missing_ray_is_an_error_of_one_line(file: Path) -> None:
    program = f"sys.modules['ray'] = None; {MAIN}"
    code, line = run_failing_sweep(file, "--engine", "ray", program=program)
    assert code == 2
    assert line == 'qbench: --engine ray: Ray is not installed: pip install "qbench[ray]"'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            ("--engine", "ray", "--device", "cuda:1"),
            "--device cuda:1: Ray says which GPU a run has; write cuda",
            marks=needs_ray,
        ),
        pytest.param(
            ("--engine", "ray", "--device", "cpu", "--gpus-per-run", "0.5"),
            "--gpus-per-run: runs on the CPU take no GPU",
            marks=needs_ray,
        ),
        (("--address", "x:1"), "--address, --cpus-per-run and --gpus-per-run are for --engine ray"),
        (("--engine", "rya"), "unknown engine 'rya'; did you mean ray?"),
    ],
)
def test_options_that_contradict_each_other_are_an_error_of_one_line(
    options: tuple[str, ...], message: str, file: Path
) -> None:
    assert run_failing_sweep(file, *options) == (2, f"qbench: {message}")


@needs_ray
def test_a_cluster_that_does_not_exist_is_an_error_of_one_line(file: Path) -> None:
    code, line = run_failing_sweep(file, "--engine", "ray", "--address", "127.0.0.1:1")
    assert code == 1 and "--address" in line
    assert line.startswith("qbench: --engine ray: no Ray cluster answers at 127.0.0.1:1: ")


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_cluster_that_is_not_ready_for_clients_is_asked_again(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray that has just started says this, and no Ray can be made to say it in a test."""
    monkeypatch.setattr(ray_cluster, "BETWEEN_TRIES_S", 0.0)
    calls: list[str] = []

    def init(**_: Any) -> None:
        calls.append("init")
        if calls.count("init") <= refusals:
            raise ConnectionAbortedError(
                "Initialization failure from server:\nTraceback\nTimeoutError: no GCS yet"
            )

    cluster = ray_cluster.RayCluster.__new__(ray_cluster.RayCluster)
    cluster.ray = SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown"))
    if refusals < ray_cluster.CONNECT_TRIES:
        cluster._connect_with_retries("ray://somewhere")
    else:
        with pytest.raises(ConnectionAbortedError) as refused:
            cluster._connect_with_retries("ray://somewhere")
        line = ray_cluster.first_line(refused.value)
        assert line == "Initialization failure from server: TimeoutError: no GCS yet"
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]
