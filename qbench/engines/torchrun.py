"""A run on several processes: started by torch's elastic launcher, which ends them all when one of them ends badly.

The worker of the local engine is the launcher. Its processes are interpreters of their own (`python -m qbench.engines.torchrun`), each on a device
of its own; they tell the launcher what they come to over a socket, and end when it closes. The first process writes the attempt's files
as one that trains alone does; the others write to a folder that is thrown away. Who writes the result is the launcher: only it knows
whether a process failed by itself or because another one is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from qbench.engines.device_slots import slots
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.config import RunConfig

Report = Callable[[dict[str, Any]], None]
MONITOR_S = 0.1
PATIENCE_S = 1800
"""Longest wait for another process; a whole evaluation may lie in it. The coordinator loses patience earlier."""


class Lost(QbenchError):
    """A process of the run is gone and said nothing. `details` are what an engine says of a worker that ended so."""

    def __init__(self, place: int, processes: int, exitcode: int) -> None:
        self.details = {"exitcode": exitcode, "who": f"process {place + 1} of {processes}"}
        super().__init__(
            f"{self.details['who']} ended with exit code {exitcode}; the run goes on from its checkpoint when it is made again"
        )


def run_together(assignment: Assignment, execution: Execution, report: Report) -> dict[str, Any]:
    """Train, export, audit and score one run on several processes. Returns the result, as `train.run_one` does."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from qbench.engines.worker_process import worker_environment

    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        execution = replace(
            execution,
            device=execution.device
            if ":" in execution.device
            else slots(execution.device, execution.gpus_per_run, 1)[0],
        )
        office = Office(Path(scratch), report)
        job = Path(scratch) / "job.json"
        job.write_text(json.dumps(written(assignment, execution, office.address)))
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=execution.gpus_per_run, run_id=uuid.uuid4().hex, max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost", monitor_interval=MONITOR_S,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )  # fmt: skip
        try:
            with worker_environment({}):
                elastic_launch(config, sys.executable)("-m", "qbench.engines.torchrun", str(job))
            codes = {}
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        finally:
            office.close()
        return judged(office, codes, execution.gpus_per_run)


def judged(office: Office, codes: Mapping[int, int], processes: int) -> dict[str, Any]:
    """What the run came to. A process that was killed is the cause of whatever the others say; else the one that failed first is."""
    killed = {place: code for place, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    failed = [result for result in office.heard if result["state"] != "ok"]
    if office.errno is not None:
        raise OSError(office.errno, os.strerror(office.errno))
    if killed or (codes and not failed):
        place, code = next(iter((killed or codes).items()))
        raise Lost(place, processes, code)
    return failed[0] if failed else next(result for result in office.heard if "scores" in result)


@dataclass
class Office:
    """Where the launcher hears its processes."""

    folder: Path
    report: Report
    heard: list[dict[str, Any]] = field(default_factory=list)
    """Results, in the order in which they came."""
    errno: int | None = None
    """What the disk has refused."""

    def __post_init__(self) -> None:
        self.listener = Listener(str(self.folder / "office"), "AF_UNIX", backlog=64)
        self.address = str(self.folder / "office")
        self.listening: list[threading.Thread] = []
        self.links: list[Connection] = []
        self._begin(self._accept)

    def _begin(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        self.listening.append(thread)

    def _accept(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                self.links.append(self.listener.accept())
                self._begin(self._hear, self.links[-1])

    def _hear(self, link: Connection) -> None:
        with suppress(OSError, EOFError):
            while True:
                word = json.loads(link.recv_bytes())
                if "result" in word:
                    self.heard.append(word["result"])
                elif "errno" in word:
                    self.errno = word["errno"]
                else:
                    self.report(word["step"])

    def close(self) -> None:
        """When the processes are gone: whatever they have said has been heard."""
        for thread in self.listening[1:]:
            thread.join(timeout=10)
        self.listener.close()
        for link in self.links:
            link.close()


def written(assignment: Assignment, execution: Execution, address: str) -> dict[str, Any]:
    folders = {
        name: None if (path := getattr(assignment, name)) is None else str(path)
        for name in ("folder", "resume", "base")
    }
    return {
        "config": assignment.config.to_json(),
        "execution": asdict(execution),
        "address": address,
        **folders,
    }


# ---- in a process of the run ----


def main(job: Path) -> int:
    """One process of a run: its place among them is in the environment."""
    import torch
    import torch.distributed as dist

    from qbench.engines.worker_process import end_with

    told, rank = json.loads(job.read_text()), int(os.environ["RANK"])
    link = Client(told["address"], "AF_UNIX")
    end_with(link)

    def say(**word: Any) -> None:
        link.send_bytes(json.dumps(word).encode())

    torch.set_num_threads(1)
    execution = Execution(**told["execution"])
    if execution.device != "cpu":
        execution = replace(
            execution, device=f"cuda:{(torch.device(execution.device).index or 0) + rank}"
        )
        torch.cuda.set_device(execution.device)
    dist.init_process_group(
        "gloo" if execution.device == "cpu" else "cpu:gloo,cuda:nccl",
        timeout=timedelta(seconds=PATIENCE_S),
    )
    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        assignment = read(told, Path(scratch) if rank else None)
        try:
            result = part_of(
                rank, assignment, execution, lambda step: None if rank else say(step=step)
            )
        except OSError as error:
            say(errno=error.errno)
            raise
    say(result=result)
    if result["state"] != "ok":
        return 1  # without a word to the others: they may wait for us
    dist.destroy_process_group()
    return 0


def part_of(
    rank: int, assignment: Assignment, execution: Execution, report: Report
) -> dict[str, Any]:
    """What one process does of a run: all train it, the first one scores it."""
    from qbench.execution.execute import RunExecution, train_run

    making = RunExecution(assignment, execution, report)
    with making.record_failure():
        making.open()
        train_run(making.run, [making])
    return making.result if rank else making.finish()


def read(told: Mapping[str, Any], instead: Path | None) -> Assignment:
    """The assignment as it was written; its folder in another place for a process whose files nobody reads."""
    folder, resume, base = (
        None if told[name] is None else Path(told[name]) for name in ("folder", "resume", "base")
    )
    assert folder is not None
    folder = instead / folder.parent.name / folder.name if instead else folder
    return Assignment(RunConfig.from_json(told["config"]), folder, resume, base)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
