"""The local engine: one worker process per group, forked from a server that has imported torch.

Three kinds of processes take part. The coordinator, which is whoever made the engine, asks the fork
server for workers and listens to them over pipes. The fork server has imported torch and the
plugins, so that a worker starts in hundredths of a second, and its memory is freed when it ends. A
worker trains its group and writes files. What it prints goes to `log.txt` in the run's folder.

No process outlives the coordinator. A worker watches its pipe, and ends when the other end closes.
If it is too busy to notice, the kernel kills it when the fork server ends, and the fork server ends
with the coordinator. Ctrl-C reaches the coordinator alone.
"""

from __future__ import annotations

import multiprocessing as mp
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from qbench.engines.base import Engine, EngineOptions, Event
from qbench.engines.worker_process import (
    GRACE_S,
    PRELOAD,
    count_cores,
    hidden_main_module,
    run_worker,
    without_interrupts,
    worker_environment,
)
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import list_plugin_modules

FORK_SERVER_DIED = 255
"""The exit code that Python reports for a worker whose fork server died."""


@contextmanager
def local_engine(
    config: SweepConfig, execution: Execution, workers: int | None = None
) -> Iterator[LocalEngine]:
    """Provide a started engine for a sweep, and end all of its workers afterwards."""
    engine = LocalEngine(
        workers, execution.device, list_plugin_modules(config), gpus_per_run=execution.gpus_per_run
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


class LocalEngine(Engine):
    """Worker processes on this machine: one per core, or one per GPU."""

    def __init__(
        self,
        workers: int | None = None,
        device: str = "auto",
        preload: Sequence[str] = (),
        run_function: str = "qbench.engines.dispatch:run_one",
        gpus_per_run: int = 1,
    ) -> None:
        self.limit, self.device, self.preload = workers, device, preload
        self.run_function, self.gpus_per_run = run_function, gpus_per_run
        self.workers: dict[int, WorkerHandle] = {}
        # Forking this process itself is no choice: it has threads, and may have initialised CUDA.
        has_fork_server = "forkserver" in mp.get_all_start_methods()
        self.context: Any = mp.get_context("forkserver" if has_fork_server else "spawn")
        self.slot_devices: list[str] = []

    @classmethod
    def open(cls, options: EngineOptions) -> LocalEngine:
        if options.address or options.cpus or options.gpus:
            raise UsageError("--address, --cpus-per-run and --gpus-per-run are for --engine ray")
        engine = cls(
            options.workers, options.device, options.preload, gpus_per_run=options.processes
        )
        engine.start()
        if options.device != "auto" or options.processes > 1:
            # A device that does not exist must be an error before anything is written.
            engine.devices  # noqa: B018
        return engine

    def start(self) -> None:
        """Start the fork server, so that it imports torch while the caller goes on planning.

        Calling this is optional.
        """
        if self.context.get_start_method() != "forkserver":
            return
        self.context.set_forkserver_preload(["qbench.engines.preload", "qbench.engines.local"])
        # The resource tracker clears SIGINT from the signal mask of whoever starts it, so it must
        # run before the mask is set.
        resource_tracker.ensure_running()
        with self._worker_surroundings():
            forkserver.ensure_running()

    @contextmanager
    def _worker_surroundings(self) -> Iterator[None]:
        """Set what a new fork server, or without one a new worker, inherits from this process.

        It is needed for every new worker, because asking for one starts the fork server again if it
        has died.
        """
        modules = ",".join((self.run_function.partition(":")[0], *self.preload))
        with without_interrupts(), worker_environment({PRELOAD: modules}), hidden_main_module():
            yield

    @property
    def devices(self) -> list[str]:
        """The device of each slot. A device that does not exist raises UsageError."""
        if not self.slot_devices:
            self.slot_devices = self._list_devices()
        return self.slot_devices

    def _list_devices(self) -> list[str]:
        import torch

        from qbench.training.devices import parse_device

        device = parse_device(self.device)
        if self.gpus_per_run > 1:
            from qbench.engines.device_slots import list_slot_devices

            return list_slot_devices(self.device, self.gpus_per_run, self.limit)
        if device.type == "cpu":
            return [str(device)] * (self.limit or count_cores())
        if device.index is not None:
            return [str(device)] * (self.limit or 1)
        count = torch.cuda.device_count()
        return [f"cuda:{slot % count}" for slot in range(self.limit or count)]

    @property
    def capacity(self) -> int:
        return len(self.devices)

    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        used_slots = {worker.slot for worker in self.workers.values()}
        slot = next(s for s in range(len(used_slots) + 1) if s not in used_slots)
        execution = replace(execution, device=self.devices[slot % self.capacity])
        process, link = self._start_worker(assignments, execution)
        now = time.monotonic()
        self.workers[group] = WorkerHandle(process, link, slot, execution, now, now)

    def _start_worker(
        self, assignments: list[Assignment], execution: Execution
    ) -> tuple[BaseProcess, Connection]:
        """Have the fork server make a worker, and return its process and our end of the pipe."""
        refused_since: float | None = None
        while True:
            self.start()
            ours, theirs = self.context.Pipe()
            process = self.context.Process(
                target=run_worker,
                args=(assignments, execution, self.run_function, theirs),
                daemon=True,
            )
            try:
                with self._worker_surroundings():
                    process.start()
            except (ConnectionError, EOFError):
                # For a moment after a fork server was killed, its socket is closed but the process
                # still counts as alive, and Python does not start another one. Try again until it
                # does.
                ours.close()
                refused_since = refused_since or time.monotonic()
                if time.monotonic() > refused_since + GRACE_S:
                    raise
                time.sleep(0.01)
            else:
                return process, ours
            finally:
                # The worker has its own copy. While ours is open, the pipe would not close when
                # the worker ends.
                theirs.close()

    def poll(self, timeout_s: float) -> list[Event]:
        now = time.monotonic()
        workers = list(self.workers.items())
        wait_s = min([timeout_s, *(worker.seconds_left(now) for _, worker in workers)])
        # A pipe that was closed by its worker would always be ready, and is not waited for. The
        # sentinel of a process is ready when the process has ended.
        sources: list[Any] = [worker.link for _, worker in workers if worker.link_is_open]
        sources += [worker.process.sentinel for _, worker in workers]
        if sources:
            connection.wait(sources, max(0.0, wait_s))
        events: list[Event] = []
        for group, worker in workers:
            events += self._read_events(group, worker)
        return events

    def _read_events(self, group: int, worker: WorkerHandle) -> Iterator[Event]:
        """Yield what a worker has sent, and its end if it is over; end it if it is overdue."""
        # This is asked before the messages are read. Asked afterwards, a worker could send its last
        # messages and end in between, and they would be lost.
        exit_code = worker.process.exitcode
        for kind, key, details in worker.receive():
            if kind == "failed":
                # It is reported with the end of the worker, which follows.
                worker.details = (worker.details or {}) | details
            else:
                yield Event(group, kind, key, details)
        if exit_code is None:
            worker.end_if_overdue()
            return
        worker.link.close()
        del self.workers[group]
        if exit_code == FORK_SERVER_DIED and not worker.details:
            # The kernel has killed the worker together with the fork server.
            exit_code = -signal.SIGKILL
        yield Event(group, "ended", details={"exitcode": exit_code} | (worker.details or {}))

    def cancel(self, group: int) -> None:
        if group in self.workers:
            self.workers[group].end(cancelled=True)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.end(cancelled=True)
        # `poll` kills the workers that do not end by themselves.
        while self.workers:
            self.poll(GRACE_S)


@dataclass
class WorkerHandle:
    """A worker process as the engine sees it. Times are those of the monotonic clock."""

    process: BaseProcess
    link: Connection
    slot: int
    execution: Execution
    started_at: float
    last_heard: float
    link_is_open: bool = True
    asked_to_end_at: float | None = None
    details: dict[str, Any] | None = None
    """Why the engine ends it, or what it said when it failed."""

    def receive(self) -> Iterator[tuple[Any, str, dict[str, Any]]]:
        """Yield the messages that have arrived."""
        while self.link_is_open:
            try:
                if not self.link.poll():
                    return
                message = self.link.recv()
            except (EOFError, OSError):
                self.link_is_open = False
                return
            self.last_heard = time.monotonic()
            yield message

    def end(self, **reason: Any) -> None:
        """Ask the worker to end, and note the reason. Only the first request counts."""
        if self.asked_to_end_at is None:
            self.asked_to_end_at = time.monotonic()
            self.details = (self.details or {}) | reason
            self.process.terminate()

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the worker is overdue."""
        if self.asked_to_end_at is not None:
            return self.asked_to_end_at + GRACE_S - now
        deadline = self.last_heard + self.execution.silence_s
        if self.execution.timeout_s:
            deadline = min(deadline, self.started_at + self.execution.timeout_s)
        return deadline - now

    def end_if_overdue(self) -> None:
        """End a worker that is silent or alive for too long; kill one that was asked to end."""
        now = time.monotonic()
        if self.seconds_left(now) > 0:
            return
        if self.asked_to_end_at is not None:
            # It ignores SIGTERM.
            self.process.kill()
        elif now - self.last_heard >= self.execution.silence_s:
            self.end(hung=True)
        else:
            self.end(late=True)
