"""The Ray engine, on a real cluster of two nodes: the same results as the local engine's, and nothing lost when a worker, a node or the
coordinator goes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qbench.engines import ray_driver
from qbench.engines.base import Engine, EngineOptions
from qbench.engines.local import LocalEngine, local_engine
from qbench.engines.ray import RayEngine
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, iterate_attempts, create_attempt
from qbench.runs.state import find_checkpoint_folder
from qbench.store.consistency import check_store
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.downstream_questions import ask_finished_runs
from qbench.sweeps.listener import NullListener, SweepSummary
from tests.stage import ROOT, a_config, stage

__all__ = ["stage"]


NO_RAY = importlib.util.find_spec("ray") is None
pytestmark = [pytest.mark.usefixtures("stage"), pytest.mark.xdist_group("ray")]
needs_ray = pytest.mark.skipif(
    NO_RAY and os.environ.get("QBENCH_RAY") != "required",
    reason='Ray is not installed: pip install "qbench[ray]"',
)
EAGER = Execution(device="cpu", checkpoint_s=0)
"""A checkpoint after every step."""
MEASURED = ("started", "finished", "cost")
SMALL = 'board = "b"\nmethods = ["plain", "after", "actor"]\ntasks = ["stage"]\nformats = ["int4"]\nseeds = 2\n'


def slow(
    count: int, once: Path | None = None, role: str = "good", steps: int = 60, seconds: float = 0.05
) -> str:
    """A board of actors that take their time."""
    marker = f'role = "{role}"\nonce = "{once}"\n' if once else ""
    return f"""
board = "slow"
formats = ["int4"]
seeds = {count}
[[method]]
name = "actor"
seconds = {seconds}
{marker}
[[task]]
name = "stage"
[recipe]
steps = {steps}
"""


@dataclass
class Watcher(NullListener):
    """Does something when a sweep has come so far."""

    act: Callable[[], object] = lambda: None
    when: Callable[[str, dict[str, Any]], bool] = lambda kind, details: False
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    place: int = -1

    @property
    def acted(self) -> bool:
        return self.place >= 0

    @property
    def steps_again(self) -> int:
        """How many steps were told of by attempts that came after another."""
        again = {d["label"] for k, d in self.heard if k == "retry"}
        begun = [
            n
            for n, (k, d) in enumerate(self.heard)
            if k == "started" and d["label"] in again and d["attempt"] > 1
        ]
        return (
            sum(k == "step" and d["label"] in again for k, d in self.heard[begun[0] :])
            if begun
            else 0
        )

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        details = {"label": run_label, **details}
        self.heard.append((kind, details))
        if not self.acted and self.when(kind, details):
            self.place = len(self.heard) - 1
            self.act()


# ---- the cluster ----

LITTLE = {"include_dashboard": False, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster(stage: Path) -> Iterator[Any]:
    """A head without CPUs, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LITTLE})
        cluster.add_node(num_cpus=1, **LITTLE)
        cluster.second = cluster.add_node(num_cpus=1, **LITTLE)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[RayEngine]:
    with closing(RayEngine.open(EngineOptions(device="cpu", address=cluster.address))) as engine:
        yield engine


def play(engine: Engine, text: str, results: Path, watcher: Watcher | None = None) -> SweepSummary:
    return run_sweep(parse_sweep(text, "s.toml"), results, engine, EAGER, watcher or Watcher())


def outcomes(results: Path) -> dict[str, Any]:
    """What the runs came to, without what a clock says."""
    found = {}
    for attempt in iterate_attempts(results):
        result = attempt.read("result") or {}
        files = {
            p.relative_to(attempt.folder).as_posix()
            for p in attempt.folder.rglob("*")
            if p.is_file()
        }
        curve = (
            [json.loads(line) for line in attempt.curve.read_text().splitlines()]
            if attempt.curve.exists()
            else []
        )
        weights = (
            {p.name: p.read_bytes() for p in attempt.export.iterdir()}
            if attempt.export.is_dir()
            else {}
        )
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in curve]
        found[attempt.key] = (
            {k: v for k, v in result.items() if k not in MEASURED},
            files,
            lines,
            weights,
        )
    return found


def agree(results: Path, runs: int) -> None:
    """The files and the store say the same, every run is there once, and no temporary file is left."""
    assert check_store(results).agrees
    with open_snapshot(results) as connection:
        rows = connection.execute(
            "SELECT key, count(*) FROM runs WHERE state = 'ok' GROUP BY key"
        ).fetchall()
    assert [n for _, n in rows] == [1] * runs
    assert not [p for p in results.rglob(".*") if p.is_file() and p.name != ".lock"]


def scores(results: Path) -> dict[str, Any]:
    found = [(a.key, a.read("result")) for a in iterate_attempts(results)]
    return {key: result["scores"] for key, result in found if result}


@pytest.fixture(scope="module")
def whole(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the slow board comes to where nothing happens to it."""
    results = tmp_path_factory.mktemp("whole")
    with local_engine(parse_sweep(slow(1), "s.toml"), EAGER) as local:
        play(local, slow(1), results)
    return scores(results)


@needs_ray
def test_a_coordinator_that_is_killed_leaves_no_worker_and_the_next_goes_on(
    cluster: Any, engine: RayEngine, tmp_path: Path
) -> None:
    file, results = tmp_path / "s.toml", tmp_path / "results"
    file.write_text(slow(2))

    def saved() -> list[int]:
        return [
            resumable_step(attempt)
            for attempt in iterate_attempts(results)
            if attempt.checkpoint.exists()
        ]

    process = command(file, results, "--address", cluster.address)
    until(lambda: process.poll() is not None or (len(saved()) == 2 and min(saved()) > 5))
    assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.communicate()
    until(lambda: not trainers(cluster))
    left = saved()
    watcher = Watcher()
    summary = play(engine, slow(2), results, watcher)
    assert (summary.ok, summary.cached) == (2, 0)
    begun: dict[str, int] = {}
    for kind, details in watcher.heard:
        if kind == "step":
            begun.setdefault(details["label"], details["step"])
    assert min(begun.values()) > min(left) and max(begun.values()) > max(left), (
        "from the checkpoints that had come home"
    )
    agree(results, 2)


@needs_ray
def test_results_are_those_of_the_local_engine(engine: RayEngine, tmp_path: Path) -> None:
    """Bit for bit, artefacts and curves too; a run that goes on from another gets that one's artefact."""
    summary = play(engine, SMALL, tmp_path / "ray")
    assert (summary.ok, summary.failed, summary.left) == (6, 0, 0)
    with local_engine(parse_sweep(SMALL, "s.toml"), EAGER) as local:
        play(local, SMALL, tmp_path / "local")
    assert outcomes(tmp_path / "ray") == outcomes(tmp_path / "local")
    agree(tmp_path / "ray", 6)
    assert play(engine, SMALL, tmp_path / "ray").cached == 6, "nothing is trained twice"


@needs_ray
def test_a_group_in_one_pass_comes_home_run_by_run_and_so_do_its_answers(
    engine: RayEngine, tmp_path: Path
) -> None:
    config = parse_sweep(GROUP, "s.toml")
    with closing(LocalEngine(1, "cpu")) as local:
        assert [
            run_sweep(config, tmp_path / name, where, PLAIN).ok
            for name, where in (("ray", engine), ("local", local))
        ] == [2, 2]
    assert outcomes(tmp_path / "ray") == outcomes(tmp_path / "local")
    assert ask_finished_runs(config, tmp_path / "ray", engine, PLAIN).failures == []
    answers = [
        (a.read("downstream") or {})["tasks"]["grammar_agreement"]
        for a in iterate_attempts(tmp_path / "ray")
    ]
    assert [answer["items"] for answer in answers] == [400, 400]
    with open_snapshot(tmp_path / "ray") as connection:
        assert connection.execute("SELECT count(DISTINCT key) FROM downstream").fetchall() == [(2,)]


GROUP = """
board = "group"
methods = ["ste"]
formats = ["int4"]
seeds = 2
recipe.steps = 4
tasks = ["grammar"]
[downstream]
tasks = ["grammar_agreement"]
"""
PLAIN = Execution(device="cpu")


@needs_ray
def test_a_node_that_is_removed_costs_nothing_but_time(
    cluster: Any, engine: RayEngine, tmp_path: Path
) -> None:
    """Its run goes on elsewhere from the checkpoint that had come home."""
    steps: dict[str, int] = {}

    def both_are_going(kind: str, details: dict[str, Any]) -> bool:
        steps[details["label"]] = details.get("step", 0)
        return len(steps) == 2 and min(steps.values()) > 10

    watcher = Watcher(lambda: cluster.remove_node(cluster.second), both_are_going)
    summary = play(engine, slow(2, steps=80), tmp_path, watcher)
    assert (summary.ok, summary.failed, summary.left) == (2, 0, 0), summary
    (message,) = [d["message"] for k, d in watcher.heard if k == "retry"]
    assert "was lost" in message
    assert watcher.steps_again < 75, "it did not begin anew"
    agree(tmp_path, 2)
    assert until(lambda: engine.poll(0.1) == [] and engine.capacity == 1)
    assert engine.remote_device == "cpu", "what groups are sized for"


@needs_ray
@pytest.mark.parametrize("victim", ["process", "actor"])
def test_a_worker_that_is_killed_goes_on_from_what_was_sent(
    victim: str, cluster: Any, engine: RayEngine, whole: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL to the process that trains, and to the actor around it: another attempt, from the checkpoint, and the same result."""

    def kill() -> None:
        ((process, actor),) = trainers(cluster).items()
        os.kill(process if victim == "process" else actor, signal.SIGKILL)

    watcher = Watcher(kill, lambda kind, details: details.get("step", 0) >= 30)
    summary = play(engine, slow(1), tmp_path / "killed", watcher)
    assert summary.ok == 1 and "was killed" in str(
        [d["message"] for k, d in watcher.heard if k == "retry"]
    )
    first, second = iterate_attempts(tmp_path / "killed")
    assert (
        first.read("result") is None
        and first.checkpoint.exists()
        and not second.checkpoint.exists()
    )
    assert watcher.steps_again < 40, "it did not begin anew: that would be 60"
    assert [json.loads(line)["step"] for line in second.curve.read_text().splitlines()] == list(
        range(1, 61)
    ), "and its curve is whole"
    agree(tmp_path / "killed", 1)
    assert scores(tmp_path / "killed") == whole


MAIN = "from qbench.cli import main; sys.exit(main())"


def resumable_step(attempt: Attempt) -> int:
    return int(torch.load(attempt.checkpoint, weights_only=True)["step"])


def command(file: Path, results: Path, *words: str) -> subprocess.Popen[str]:
    """`qbench sweep` in a process of its own, with the stage's methods; a checkpoint after every step."""
    start = f"""
import sys
from qbench.execution.assignment import Execution
of = list(Execution.__dataclass_fields__).index("checkpoint_s")
Execution.__init__.__defaults__ = (*Execution.__init__.__defaults__[:of], 0.0, *Execution.__init__.__defaults__[of + 1 :])
{MAIN}"""
    return subprocess.Popen(
        [sys.executable, "-c", start, "sweep", str(file), "--results", str(results), "--engine", "ray", "--device", "cpu", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = stat.read_text().rsplit(")", 1)[1].split()
            if int(words[1]) == pid and words[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


def actors(cluster: Any) -> list[int]:
    """The workers of this cluster, and of none that somebody else has on this machine."""
    raylets = [
        process.process.pid
        for node in cluster.list_all_nodes()
        for process in node.all_processes["raylet"]
    ]
    found = []
    for pid in (child for raylet in raylets for child in children(raylet)):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(pid)
    return found


def trainers(cluster: Any) -> dict[int, int]:
    """The processes that train, and the actor of each: children of its fork server."""
    return {
        trainer: actor
        for actor in actors(cluster)
        for server in children(actor)
        for trainer in children(server)
    }


def until(true: Callable[[], Any], limit_s: float = 60) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


# ---- other clusters ----


@needs_ray
def test_runs_share_gpus(stage: Path, tmp_path: Path) -> None:
    """Half a GPU each, two places on one that both see. Ray counts GPUs where there are none, too."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, **LITTLE})
    wishes = EngineOptions(address=cluster.address, gpus=0.5, cpus=1)
    try:
        with closing(RayEngine(wishes, train="tests.stage:stand_in")) as engine:
            assert (engine.capacity, engine.remote_device) == (2, "cuda")
            attempts = [create_attempt(tmp_path, a_config("chatter", seed).key) for seed in range(2)]
            for seed, attempt in enumerate(attempts):
                engine.submit(seed, [Assignment(a_config("chatter", seed), attempt.folder)], EAGER)
            envs = until(
                lambda: (
                    engine.poll(0.2),
                    all(found := [a.read("env") for a in attempts]) and found,
                )[1],
                120,
            )
            for seed in range(2):
                engine.cancel(seed)
    finally:
        cluster.shutdown()
    assert len({env["pid"] for env in envs}) == 2
    assert [(env["device"], env["visible"]) for env in envs] == [("cuda:0", "0")] * 2


@needs_ray
def test_a_cluster_is_reached_from_outside(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the port that Ray keeps for those who are not part of it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, client = one.getsockname()[1], other.getsockname()[1]
    words = f"start --head --block --port={port} --ray-client-server-port={client} --num-cpus=2 --include-dashboard=false".split()
    home = tempfile.mkdtemp(prefix="ray-")
    more = [f"--object-store-memory={LITTLE['object_store_memory']}", f"--temp-dir={home}"]
    log = file.with_suffix(".log")
    with open(log, "wb") as out:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *words, *more],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    sweeping = None
    try:
        until(lambda: head.poll() is not None or listens(client), 120)
        assert head.poll() is None, log.read_text()
        file.write_text(SMALL.replace("seeds = 2", "seeds = 1"))
        sweeping = command(file, file.parent / "results", "--address", f"ray://127.0.0.1:{client}")
        said = sweeping.communicate(timeout=150)[0]
        assert sweeping.returncode == 0, said
    finally:
        for process in (sweeping, head):
            if process is not None and process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)
    agree(file.parent / "results", 3)


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_cluster_that_listens_before_it_can_take_anyone_in_is_asked_again(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a Ray that has just begun says, which no Ray here can be made to say."""
    monkeypatch.setattr(ray_driver, "BETWEEN_S", 0.0)
    calls: list[str] = []

    def init(**_: Any) -> None:
        calls.append("init")
        if calls.count("init") <= refusals:
            raise ConnectionAbortedError(
                "Initialization failure from server:\nTraceback\nTimeoutError: no GCS yet"
            )

    driver = ray_driver.RayDriver.__new__(ray_driver.RayDriver)
    driver.ray = SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown"))
    if refusals < ray_driver.ENTRANCES:
        driver._come_in("ray://somewhere")
    else:
        with pytest.raises(ConnectionAbortedError) as refused:
            driver._come_in("ray://somewhere")
        assert (
            ray_driver._first_line(refused.value)
            == "Initialization failure from server: TimeoutError: no GCS yet"
        )
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# ---- bad input ----


def said(*words: str, file: Path, start: str = MAIN) -> tuple[int, str]:
    """Exit code and last line of a command."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {start}", "sweep", str(file), "--results", str(file.parent / "results"), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, cwd=ROOT, timeout=200,
    )  # fmt: skip
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert not (file.parent / "results").exists(), "nothing was written"
    return done.returncode, lines[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(SMALL)
    return path


def test_ray_that_is_not_installed_is_one_line(file: Path) -> None:
    code, line = said("--engine", "ray", file=file, start=f"sys.modules['ray'] = None; {MAIN}")
    assert (
        code == 2
        and line == 'qbench: --engine ray: Ray is not installed: pip install "qbench[ray]"'
    )


@pytest.mark.parametrize(
    ("words", "what"),
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
def test_words_that_do_not_go_together_are_one_line(
    words: tuple[str, ...], what: str, file: Path
) -> None:
    assert said(*words, file=file) == (2, f"qbench: {what}")


@needs_ray
def test_a_cluster_that_is_not_there_is_one_line(file: Path) -> None:
    code, line = said("--engine", "ray", "--address", "127.0.0.1:1", file=file)
    assert (
        code == 1
        and line.startswith("qbench: --engine ray: no Ray cluster answers at 127.0.0.1:1: ")
        and "--address" in line
    )


@needs_ray
def test_a_cluster_without_room_is_one_line(cluster: Any, file: Path) -> None:
    code, line = said(
        "--engine",
        "ray",
        "--address",
        cluster.address,
        "--gpus-per-run",
        "0.5",
        "--device",
        "cuda",
        file=file,
    )
    assert code == 1 and re.search(
        r": the Ray cluster has [12] CPU: no room for a run of 1 CPU and 0.5 GPU$", line
    )


@needs_ray
def test_a_cluster_that_goes_away_is_one_line_and_what_came_home_is_kept(
    cluster: Any, engine: RayEngine, tmp_path: Path
) -> None:
    """The last of the tests with this cluster."""
    watcher = Watcher(cluster.shutdown, lambda kind, details: details.get("step", 0) >= 30)
    line = f"--engine ray: the Ray cluster at {cluster.address} has gone away; what is finished or in a checkpoint is kept: run the same command again"
    with pytest.raises(QbenchError, match=f"^{re.escape(line)}$"):
        play(engine, slow(1, steps=120), tmp_path, watcher)
    first, *_ = iterate_attempts(tmp_path)
    assert resumable_step(first) > 20 and check_store(tmp_path).agrees
    assert find_checkpoint_folder(tmp_path, first.key), "and the next sweep goes on from there"
