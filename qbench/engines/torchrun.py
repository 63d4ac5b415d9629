"""One run on several processes, started by torch's elastic launcher.

The launcher runs in the worker of the local engine, and ends all processes if one of them fails.
The processes are new interpreters (`python -m qbench.engines.torchrun`), each on a device of its
own. They send their results to the launcher over a socket, and end when it closes. The first
process writes the attempt's files, as a run that trains alone does; the others write to a folder
that is deleted. The launcher writes the result, because only it knows whether a process failed by
itself or because another process was lost.
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

from qbench.engines.device_slots import list_slot_devices
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.config import RunConfig

Report = Callable[[dict[str, Any]], None]
MONITOR_S = 0.1
"""Time between two looks of the launcher at its processes."""
PROCESS_GROUP_TIMEOUT_S = 1800
"""Longest wait of a process for another one. A whole evaluation may take place in this time. The
engine's own limits are shorter, so this one only ends processes that nobody watches any more."""
JOIN_S = 10
"""Longest wait for the last messages of a process that has ended."""


class ProcessLost(QbenchError):
    """A process of the run ended without a message.

    `details` holds what an engine reports of a worker that ended in this way.
    """

    def __init__(self, rank: int, processes: int, exitcode: int) -> None:
        self.details = {"exitcode": exitcode, "who": f"process {rank + 1} of {processes}"}
        super().__init__(
            f"{self.details['who']} ended with exit code {exitcode}; the next attempt resumes from"
            " the run's checkpoint"
        )


# ---- in the launcher ----


def run_together(assignment: Assignment, execution: Execution, report: Report) -> dict[str, Any]:
    """Train, export, audit and score one run on several processes, and return the result.

    Unlike `execute_group`, it does not write the result.
    """
    processes = execution.gpus_per_run
    if ":" not in execution.device:
        # The engine gives its workers a device with an index. Without an engine, choose it here.
        first_device = list_slot_devices(execution.device, processes, 1)[0]
        execution = replace(execution, device=first_device)
    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        collector = ResultCollector(Path(scratch), report)
        job_file = Path(scratch) / "job.json"
        job_file.write_text(json.dumps(job_to_json(assignment, execution, collector.address)))
        try:
            exit_codes = launch_processes(processes, job_file)
        finally:
            collector.close()
        return outcome_of_processes(collector, exit_codes, processes)


def launch_processes(processes: int, job_file: Path) -> dict[int, int]:
    """Run the processes of a job to their end, and return the exit codes of those that failed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from qbench.engines.worker_process import worker_environment

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        # The coordinator decides whether a run is tried again.
        max_restarts=0,
        # Port 0 lets the system choose a free port, so that several runs can share a machine.
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        monitor_interval=MONITOR_S,
        logs_specs=DefaultLogsSpecs(log_dir=str(job_file.parent)),
    )
    try:
        with worker_environment({}):
            elastic_launch(config, sys.executable)("-m", "qbench.engines.torchrun", str(job_file))
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    return {}


def outcome_of_processes(
    collector: ResultCollector, exit_codes: Mapping[int, int], processes: int
) -> dict[str, Any]:
    """Return the run's result, or raise the error that has ended it.

    If a process was killed, that is the cause of what all others report. Otherwise the first
    failure that was reported is the cause.

    Args:
        collector: What the processes have sent.
        exit_codes: The exit codes of the processes that failed, by rank.
        processes: The number of processes.
    """
    # The launcher itself sends SIGTERM to the processes that are left when one has failed.
    killed = {
        rank: code for rank, code in exit_codes.items() if code < 0 and code != -signal.SIGTERM
    }
    failures = [result for result in collector.results if result["state"] != "ok"]
    if collector.errno is not None:
        raise OSError(collector.errno, os.strerror(collector.errno))
    if killed or (exit_codes and not failures):
        rank, code = next(iter((killed or exit_codes).items()))
        raise ProcessLost(rank, processes, code)
    if failures:
        return failures[0]
    # Only the first process scores the run.
    return next(result for result in collector.results if "scores" in result)


@dataclass
class ResultCollector:
    """Receives what the processes of a run send, in threads of the launcher."""

    folder: Path
    report: Report
    results: list[dict[str, Any]] = field(default_factory=list)
    """Results in the order in which they arrived."""
    errno: int | None = None
    """The error number of a failed write, if there was one."""

    def __post_init__(self) -> None:
        self.address = str(self.folder / "socket")
        self.listener = Listener(self.address, "AF_UNIX", backlog=64)
        self.threads: list[threading.Thread] = []
        self.links: list[Connection] = []
        self._start_thread(self._accept_processes)

    def _start_thread(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        thread.start()
        self.threads.append(thread)

    def _accept_processes(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                self.links.append(self.listener.accept())
                self._start_thread(self._receive_messages, self.links[-1])

    def _receive_messages(self, link: Connection) -> None:
        # The link of a process that was killed ends with one of these errors.
        with suppress(OSError, EOFError):
            while True:
                message = json.loads(link.recv_bytes())
                if "result" in message:
                    self.results.append(message["result"])
                elif "errno" in message:
                    self.errno = message["errno"]
                else:
                    self.report(message["step"])

    def close(self) -> None:
        """Wait until all messages of the ended processes have been received, and close."""
        # The first thread accepts processes, and ends only when the listener is closed.
        for thread in self.threads[1:]:
            thread.join(timeout=JOIN_S)
        self.listener.close()
        for link in self.links:
            link.close()


def job_to_json(assignment: Assignment, execution: Execution, address: str) -> dict[str, Any]:
    """Return what a process needs to know as plain data."""
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


def main(job_file: Path) -> int:
    """Run one process, and return its exit code. The launcher's environment holds its rank."""
    import torch.distributed as dist

    from qbench.engines.worker_process import end_with_parent

    job, rank = json.loads(job_file.read_text()), int(os.environ["RANK"])
    link = Client(job["address"], "AF_UNIX")
    end_with_parent(link)

    def send(**message: Any) -> None:
        link.send_bytes(json.dumps(message).encode())

    execution = process_execution(Execution(**job["execution"]), rank)
    set_up_torch(execution)
    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        assignment = read_assignment(job, Path(scratch) if rank else None)
        # All processes make the same steps, so one of them reports.
        report: Report = (lambda _: None) if rank else (lambda step: send(step=step))
        try:
            result = run_process(rank, assignment, execution, report)
        except OSError as error:
            # A full disk must reach the engine as such. The launcher passes on exit codes only.
            send(errno=error.errno)
            raise
    send(result=result)
    if result["state"] != "ok":
        # The process group is not destroyed: that could wait for processes that wait for this one.
        # The exit code makes the launcher end them.
        return 1
    dist.destroy_process_group()
    return 0


def set_up_torch(execution: Execution) -> None:
    """Set this process's threads and device, and join the other processes of the run."""
    import torch
    import torch.distributed as dist

    # As in a worker that trains alone: the number of threads can change the last bits.
    torch.set_num_threads(1)
    uses_cpu = execution.device == "cpu"
    if not uses_cpu:
        torch.cuda.set_device(execution.device)
    # nccl exchanges only tensors on GPUs. gloo is for the tensors that are on the CPU.
    dist.init_process_group(
        "gloo" if uses_cpu else "cpu:gloo,cuda:nccl",
        timeout=timedelta(seconds=PROCESS_GROUP_TIMEOUT_S),
    )


def process_execution(execution: Execution, rank: int) -> Execution:
    """Return a run's execution with the device of one of its processes."""
    import torch

    if execution.device == "cpu":
        return execution
    first_index = torch.device(execution.device).index or 0
    return replace(execution, device=f"cuda:{first_index + rank}")


def run_process(
    rank: int, assignment: Assignment, execution: Execution, report: Report
) -> dict[str, Any]:
    """Train a run as one of its processes, and return the result. The first process scores it."""
    from qbench.execution.execute import RunExecution, train_run

    run_execution = RunExecution(assignment, execution, report)
    with run_execution.record_failure():
        run_execution.open()
        train_run(run_execution.run, [run_execution])
    return run_execution.result if rank else run_execution.finish()


def read_assignment(job: Mapping[str, Any], scratch: Path | None) -> Assignment:
    """Return the assignment of a job.

    Args:
        job: The data that `job_to_json` returned.
        scratch: If given, the run writes its files here instead of into the attempt's folder.
    """
    folder, resume, base = (
        None if job[name] is None else Path(job[name]) for name in ("folder", "resume", "base")
    )
    assert folder is not None
    if scratch:
        # The end of the path stays, because the key and the number are read from it.
        folder = scratch / folder.parent.name / folder.name
    return Assignment(RunConfig.from_json(job["config"]), folder, resume, base)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
