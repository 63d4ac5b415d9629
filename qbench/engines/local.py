"""The local engine: one worker process a group, forked from a server that has imported torch once.

Three processes are at work. The coordinator (whoever made the engine) asks the fork server for workers and listens to them over
pipes. The fork server holds torch and the plugins, so that a worker costs hundredths of a second and its memory is given back when
it ends. A worker trains its group and writes files; what it prints goes to `log.txt` beside them.

Nobody outlives the coordinator. A worker watches its pipe and ends when the other end closes; should it be too busy to notice, the
kernel ends it when the fork server goes, which goes when the coordinator does. Ctrl-C reaches the coordinator alone.
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

from qbench.engines.base import Engine, Event, Wishes
from qbench.engines.worker_process import (
    GRACE_S,
    PRELOAD,
    anonymous_main,
    cores,
    without_interrupts,
    work,
    worker_environment,
)
from qbench.errors import UsageError
from qbench.execution.assignment import Assignment, Execution
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import list_plugin_modules

ORPHANED = 255
"""What Python says where the fork server died, and the worker with it."""


@contextmanager
def local_engine(
    config: SweepConfig, execution: Execution, workers: int | None = None
) -> Iterator[LocalEngine]:
    """The engine for a sweep, its fork server already on the way; whatever happens, none of its workers is left."""
    engine = LocalEngine(
        workers, execution.device, list_plugin_modules(config), gpus_per_run=execution.gpus_per_run
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class _Worker:
    process: BaseProcess
    link: Connection
    slot: int
    execution: Execution
    began: float
    heard: float
    linked: bool = True
    told_to_end: float | None = None
    details: dict[str, Any] | None = None
    """Why it is being ended, or what it said when it failed."""

    def end(self, **why: Any) -> None:
        if self.told_to_end is None:
            self.told_to_end, self.details = time.monotonic(), (self.details or {}) | why
            self.process.terminate()

    def overdue(self, now: float) -> float:
        """Seconds until something must be done about it."""
        if self.told_to_end is not None:
            return self.told_to_end + GRACE_S - now
        limit = self.heard + self.execution.silence_s
        return (
            min(limit, self.began + self.execution.timeout_s) if self.execution.timeout_s else limit
        ) - now


class LocalEngine(Engine):
    """Worker processes on this machine: one a core, or one a GPU."""

    def __init__(
        self,
        workers: int | None = None,
        device: str = "auto",
        preload: Sequence[str] = (),
        train: str = "qbench.engines.dispatch:run_one",
        gpus_per_run: int = 1,
    ) -> None:
        self.limit, self.device, self.preload, self.train, self.gpus_per_run = (
            workers,
            device,
            preload,
            train,
            gpus_per_run,
        )
        self.workers: dict[int, _Worker] = {}
        self.context: Any = mp.get_context(
            "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        )
        self.names: list[str] = []

    @classmethod
    def open(cls, wishes: Wishes) -> LocalEngine:
        if wishes.address or wishes.cpus or wishes.gpus:
            raise UsageError("--address, --cpus-per-run and --gpus-per-run are for --engine ray")
        engine = cls(wishes.workers, wishes.device, wishes.preload, gpus_per_run=wishes.processes)
        engine.start()
        if wishes.device != "auto" or wishes.processes > 1:
            engine.devices  # noqa: B018 - one that is not there is an error before anything is written
        return engine

    def start(self) -> None:
        """Let the fork server import torch while the caller goes on planning. Needs not be called."""
        if self.context.get_start_method() != "forkserver":
            return
        self.context.set_forkserver_preload(["qbench.engines.preload", "qbench.engines.local"])
        resource_tracker.ensure_running()  # before the mask: it clears SIGINT from it
        with self._as_a_server_begins():
            forkserver.ensure_running()

    @contextmanager
    def _as_a_server_begins(self) -> Iterator[None]:
        """What a fork server, or without one a worker, takes over from us; also where asking for a worker begins a server anew."""
        modules = ",".join((self.train.partition(":")[0], *self.preload))
        with without_interrupts(), worker_environment({PRELOAD: modules}), anonymous_main():
            yield

    @property
    def devices(self) -> list[str]:
        """The device of each slot."""
        if not self.names:
            import torch

            from qbench.training.devices import device_named

            device = device_named(self.device)
            if self.gpus_per_run > 1:
                from qbench.engines.device_slots import slots

                self.names = slots(self.device, self.gpus_per_run, self.limit)
            elif device.type == "cpu" or device.index is not None:
                self.names = [str(device)] * (
                    self.limit or (cores() if device.type == "cpu" else 1)
                )
            else:
                count = torch.cuda.device_count()
                self.names = [f"cuda:{slot % count}" for slot in range(self.limit or count)]
        return self.names

    @property
    def capacity(self) -> int:
        return len(self.devices)

    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        taken = {w.slot for w in self.workers.values()}
        slot = next(s for s in range(len(taken) + 1) if s not in taken)
        execution = replace(execution, device=self.devices[slot % self.capacity])
        process, ours = self._launch(assignments, execution)
        now = time.monotonic()
        self.workers[group] = _Worker(process, ours, slot, execution, now, now)

    def _launch(
        self, assignments: list[Assignment], execution: Execution
    ) -> tuple[BaseProcess, Connection]:
        """Have the fork server make a worker. One that was just killed refuses for a moment before it counts as dead, or falls silent."""
        refused_at: float | None = None
        while True:
            self.start()
            ours, theirs = self.context.Pipe()
            process = self.context.Process(
                target=work, args=(assignments, execution, self.train, theirs), daemon=True
            )
            try:
                with self._as_a_server_begins():
                    process.start()
            except (ConnectionError, EOFError):
                ours.close()
                refused_at = refused_at or time.monotonic()
                if time.monotonic() > refused_at + GRACE_S:
                    raise
                time.sleep(0.01)
            else:
                return process, ours
            finally:
                theirs.close()

    def poll(self, timeout_s: float) -> list[Event]:
        now = time.monotonic()
        patience = min([timeout_s, *(w.overdue(now) for w in self.workers.values())])
        heard = [w.link for w in self.workers.values() if w.linked] + [
            w.process.sentinel for w in self.workers.values()
        ]
        if heard:
            connection.wait(heard, max(0.0, patience))
        events: list[Event] = []
        for group, worker in list(self.workers.items()):
            events += self._look_at(group, worker)
        return events

    def _look_at(self, group: int, worker: _Worker) -> Iterator[Event]:
        over = worker.process.exitcode is not None  # asked before the last messages are read
        while worker.linked:
            try:
                if not worker.link.poll():
                    break
                kind, key, details = worker.link.recv()
            except (EOFError, OSError):
                worker.linked = False
                break
            worker.heard = time.monotonic()
            if kind == "failed":
                worker.details = (worker.details or {}) | details
            else:
                yield Event(group, kind, key, details)
        if over:
            worker.link.close()
            del self.workers[group]
            code = (
                -signal.SIGKILL
                if worker.process.exitcode == ORPHANED and not worker.details
                else worker.process.exitcode
            )
            yield Event(group, "ended", details={"exitcode": code} | (worker.details or {}))
        else:
            _hurry(worker)

    def cancel(self, group: int) -> None:
        if group in self.workers:
            self.workers[group].end(cancelled=True)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.end(cancelled=True)
        while self.workers:
            self.poll(GRACE_S)


def _hurry(worker: _Worker) -> None:
    """End a worker that has said nothing for too long or has lived too long; make sure of one that has been told to."""
    now = time.monotonic()
    if worker.overdue(now) > 0:
        return
    if worker.told_to_end is not None:
        worker.process.kill()
    elif now - worker.heard >= worker.execution.silence_s:
        worker.end(hung=True)
    else:
        worker.end(late=True)
