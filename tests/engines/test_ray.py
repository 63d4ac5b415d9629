"""The Ray engine on a real cluster of two nodes.

Its results are those of the local engine, and nothing is lost when a worker, a node or the
coordinator fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from qbench.engines.base import EngineOptions
from qbench.engines.local import LocalEngine, local_engine
from qbench.engines.ray import RayEngine
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import create_attempt, iterate_attempts
from qbench.runs.state import find_checkpoint_folder
from qbench.store.consistency import check_store
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.downstream_questions import ask_finished_runs
from tests.engines.processes import wait_until
from tests.engines.ray_helpers import (
    EVERY_STEP,
    LITTLE_NODE,
    SMALL_BOARD,
    Watcher,
    assert_results_are_complete,
    make_slow_board,
    map_trainers,
    needs_ray,
    read_checkpoint_step,
    read_outcomes,
    read_scores,
    run_board,
    run_failing_sweep,
    start_sweep,
)
from tests.stage import a_config, stage

__all__ = ["stage"]


pytestmark = [pytest.mark.usefixtures("stage"), pytest.mark.xdist_group("ray"), needs_ray]


@pytest.fixture(scope="module")
def cluster(stage: Path) -> Iterator[Any]:
    """A head without CPUs, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LITTLE_NODE})
        cluster.add_node(num_cpus=1, **LITTLE_NODE)
        cluster.second = cluster.add_node(num_cpus=1, **LITTLE_NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[RayEngine]:
    options = EngineOptions(device="cpu", address=cluster.address)
    with closing(RayEngine.open(options)) as engine:
        yield engine


@pytest.fixture(scope="module")
def undisturbed_scores(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scores of the slow board if nothing happens to it."""
    results, board = tmp_path_factory.mktemp("undisturbed"), make_slow_board(1)
    with local_engine(parse_sweep(board, "s.toml"), EVERY_STEP) as local:
        run_board(local, board, results)
    return read_scores(results)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(SMALL_BOARD)
    return path


# ---- the results ----


def test_a_killed_coordinator_leaves_no_worker_and_the_next_one_resumes(
    cluster: Any, engine: RayEngine, tmp_path: Path
) -> None:
    file, results = tmp_path / "s.toml", tmp_path / "results"
    file.write_text(make_slow_board(2))

    def list_saved_steps() -> list[int]:
        return [
            read_checkpoint_step(attempt)
            for attempt in iterate_attempts(results)
            if attempt.checkpoint.exists()
        ]

    def has_checkpoints() -> bool:
        return len(list_saved_steps()) == 2 and min(list_saved_steps()) > 5

    process = start_sweep(file, results, "--address", cluster.address)
    wait_until(lambda: process.poll() is not None or has_checkpoints(), 60)
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.communicate()
    wait_until(lambda: not map_trainers(cluster), 60)
    saved_steps = list_saved_steps()
    watcher = Watcher()
    summary = run_board(engine, make_slow_board(2), results, watcher)
    assert (summary.ok, summary.cached) == (2, 0)
    first_steps: dict[str, int] = {}
    for kind, details in watcher.events:
        if kind == "step":
            first_steps.setdefault(details["label"], details["step"])
    # Both resume from the checkpoints that the coordinator had received.
    assert min(first_steps.values()) > min(saved_steps)
    assert max(first_steps.values()) > max(saved_steps)
    assert_results_are_complete(results, 2)


def test_the_results_are_those_of_the_local_engine(engine: RayEngine, tmp_path: Path) -> None:
    """They agree bit for bit, with artefacts and curves, also if a run starts from another."""
    summary = run_board(engine, SMALL_BOARD, tmp_path / "ray")
    assert (summary.ok, summary.failed, summary.left) == (6, 0, 0)
    with local_engine(parse_sweep(SMALL_BOARD, "s.toml"), EVERY_STEP) as local:
        run_board(local, SMALL_BOARD, tmp_path / "local")
    assert read_outcomes(tmp_path / "ray") == read_outcomes(tmp_path / "local")
    assert_results_are_complete(tmp_path / "ray", 6)
    again = run_board(engine, SMALL_BOARD, tmp_path / "ray")
    assert again.cached == 6, "nothing is trained twice"


STACKED_BOARD = """
board = "group"
methods = ["ste"]
formats = ["int4"]
seeds = 2
recipe.steps = 4
tasks = ["grammar"]
[downstream]
tasks = ["grammar_agreement"]
"""
ON_CPU = Execution(device="cpu")


def test_stacked_runs_send_their_results_and_their_answers(
    engine: RayEngine, tmp_path: Path
) -> None:
    config = parse_sweep(STACKED_BOARD, "s.toml")
    with closing(LocalEngine(1, "cpu")) as local:
        for name, one_engine in (("ray", engine), ("local", local)):
            assert run_sweep(config, tmp_path / name, one_engine, ON_CPU).ok == 2
    assert read_outcomes(tmp_path / "ray") == read_outcomes(tmp_path / "local")
    assert ask_finished_runs(config, tmp_path / "ray", engine, ON_CPU).failures == []
    answers = [
        (attempt.read("downstream") or {})["tasks"]["grammar_agreement"]
        for attempt in iterate_attempts(tmp_path / "ray")
    ]
    assert [answer["items"] for answer in answers] == [400, 400]
    with open_snapshot(tmp_path / "ray") as connection:
        assert connection.execute("SELECT count(DISTINCT key) FROM downstream").fetchall() == [(2,)]


# ---- failures ----


def test_the_runs_of_a_lost_node_resume_on_another_node(
    cluster: Any, engine: RayEngine, tmp_path: Path
) -> None:
    steps: dict[str, int] = {}

    def both_have_begun(kind: str, details: dict[str, Any]) -> bool:
        steps[details["label"]] = details.get("step", 0)
        return len(steps) == 2 and min(steps.values()) > 10

    watcher = Watcher(lambda: cluster.remove_node(cluster.second), both_have_begun)
    summary = run_board(engine, make_slow_board(2, steps=80), tmp_path, watcher)
    assert (summary.ok, summary.failed, summary.left) == (2, 0, 0), summary
    (message,) = watcher.retry_messages
    assert "was lost" in message
    assert watcher.steps_after_retry < 75, "it did not start again from the beginning"
    assert_results_are_complete(tmp_path, 2)
    assert wait_until(lambda: engine.poll(0.1) == [] and engine.capacity == 1, 60)
    assert engine.remote_device == "cpu", "the device that groups are sized for"


@pytest.mark.parametrize("victim", ["process", "actor"])
def test_the_run_of_a_killed_worker_resumes_with_the_same_result(
    victim: str,
    cluster: Any,
    engine: RayEngine,
    undisturbed_scores: dict[str, Any],
    tmp_path: Path,
) -> None:
    """The victim is the process that trains, or the actor around it."""

    def kill_victim() -> None:
        ((process, actor),) = map_trainers(cluster).items()
        os.kill(process if victim == "process" else actor, signal.SIGKILL)

    results = tmp_path / "killed"
    watcher = Watcher(kill_victim, lambda kind, details: details.get("step", 0) >= 30)
    summary = run_board(engine, make_slow_board(1), results, watcher)
    assert summary.ok == 1 and "was killed" in str(watcher.retry_messages)
    first, second = iterate_attempts(results)
    assert first.read("result") is None
    assert first.checkpoint.exists() and not second.checkpoint.exists()
    assert watcher.steps_after_retry < 40, "from the beginning it would be 60"
    curve = [json.loads(line)["step"] for line in second.curve.read_text().splitlines()]
    assert curve == list(range(1, 61)), "the curve is complete"
    assert_results_are_complete(results, 1)
    assert read_scores(results) == undisturbed_scores


# ---- other clusters ----


def test_two_runs_share_a_gpu(stage: Path, tmp_path: Path) -> None:
    """Each takes half of it, and sees it as its first. Ray counts GPUs that do not exist, too."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "num_gpus": 1, **LITTLE_NODE}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    options = EngineOptions(address=cluster.address, gpus=0.5, cpus=1)
    try:
        with closing(RayEngine(options, run_function="tests.stage:stand_in")) as engine:
            assert (engine.capacity, engine.remote_device) == (2, "cuda")
            configs = [a_config("chatter", seed) for seed in range(2)]
            attempts = [create_attempt(tmp_path, config.key) for config in configs]
            for seed, attempt in enumerate(attempts):
                engine.submit(seed, [Assignment(configs[seed], attempt.folder)], EVERY_STEP)

            def read_environments() -> list[Any] | None:
                engine.poll(0.2)
                found = [attempt.read("env") for attempt in attempts]
                return found if all(found) else None

            environments = wait_until(read_environments, 120)
            for seed in range(2):
                engine.cancel(seed)
    finally:
        cluster.shutdown()
    assert len({env["pid"] for env in environments}) == 2
    assert [(env["device"], env["visible"]) for env in environments] == [("cuda:0", "0")] * 2


def test_a_cluster_is_reached_through_its_client_port(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the port for programs on machines that are not part of the cluster."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    port, client_port = find_free_ports(2)
    home = tempfile.mkdtemp(prefix="ray-")
    options = [
        f"--port={port}",
        f"--ray-client-server-port={client_port}",
        "--num-cpus=2",
        "--include-dashboard=false",
        f"--temp-dir={home}",
        f"--object-store-memory={LITTLE_NODE['object_store_memory']}",
    ]
    log = file.with_suffix(".log")
    with open(log, "wb") as out:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *options],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    sweep = None
    try:
        wait_until(lambda: head.poll() is not None or is_listening(client_port), 120)
        assert head.poll() is None, log.read_text()
        file.write_text(SMALL_BOARD.replace("seeds = 2", "seeds = 1"))
        address = f"ray://127.0.0.1:{client_port}"
        sweep = start_sweep(file, file.parent / "results", "--address", address)
        output = sweep.communicate(timeout=150)[0]
        assert sweep.returncode == 0, output
    finally:
        for process in (sweep, head):
            if process is not None and process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)
    assert_results_are_complete(file.parent / "results", 3)


def find_free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def is_listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# ---- errors ----


def test_a_cluster_without_room_is_an_error_of_one_line(cluster: Any, file: Path) -> None:
    options = ["--engine", "ray", "--address", cluster.address, "--device", "cuda"]
    code, line = run_failing_sweep(file, *options, "--gpus-per-run", "0.5")
    pattern = r": the Ray cluster has [12] CPU: no room for a run of 1 CPU and 0.5 GPU$"
    assert code == 1 and re.search(pattern, line)


def test_the_loss_of_the_cluster_is_an_error_of_one_line_and_keeps_what_was_received(
    cluster: Any, engine: RayEngine, tmp_path: Path
) -> None:
    """This must be the last test with this cluster."""
    watcher = Watcher(cluster.shutdown, lambda kind, details: details.get("step", 0) >= 30)
    line = (
        f"--engine ray: the Ray cluster at {cluster.address} has gone away; what is finished or in"
        " a checkpoint is kept: run the same command again"
    )
    with pytest.raises(QbenchError, match=f"^{re.escape(line)}$"):
        run_board(engine, make_slow_board(1, steps=120), tmp_path, watcher)
    first, *_ = iterate_attempts(tmp_path)
    assert read_checkpoint_step(first) > 20 and check_store(tmp_path).agrees
    assert find_checkpoint_folder(tmp_path, first.key), "the next sweep can resume from it"
