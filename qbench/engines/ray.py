"""The Ray engine: the same runs on a Ray cluster. Nodes need qbench and no disk that is shared: files come and go through Ray.

What the coordinator knows of a run is in its own results folder: the latest checkpoint comes in while the run is trained, and everything
else when it is over. So a worker, a node, the cluster or the coordinator can go at any moment, and the next attempt goes on from there.
This is the coordinator's end; it never imports Ray (`raydriver` says why).
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from qbench.engines.base import Engine, Event, Wishes
from qbench.engines.worker_process import anonymous_main, without_interrupts
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Assignment, Execution

CONNECT_S = 120.0
CLOSE_S = 12.0


class RayEngine(Engine):
    """Workers on the nodes of a cluster, each with so many CPUs and GPUs, or a part of a GPU."""

    def __init__(
        self, wishes: Wishes = Wishes(), train: str = "qbench.engines.dispatch:run_one"
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UsageError('--engine ray: Ray is not installed: pip install "qbench[ray]"')
        if wishes.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device {wishes.device}: Ray says which GPU a run has; write cuda")
        if wishes.processes > 1:
            raise UsageError(
                "[engine]: gpus_per_run starts the processes of a run on one machine: leave it out with --engine ray"
            )
        if wishes.device == "cpu" and wishes.gpus:
            raise UsageError("--gpus-per-run: runs on the CPU take no GPU")
        self.wishes, self.train = wishes, train
        self.name = wishes.address or os.environ.get("RAY_ADDRESS") or "this machine"
        self.process: Any = None
        self.room, self.kind = 0, "cpu"
        self.groups: set[int] = set()
        self.cancelled: set[int] = set()
        self.fatal: str | None = None
        self.raised = False

    @classmethod
    def open(cls, wishes: Wishes) -> RayEngine:
        engine = cls(wishes)
        engine.start()
        return engine

    def start(self) -> None:
        """Connect. A cluster that cannot be had is an error here, before anything is written."""
        if self.process is not None:
            return
        from qbench.engines.ray_driver import drive

        context = mp.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(
            target=drive, args=(theirs, self.wishes, self.train, list(sys.path)), daemon=True
        )
        with without_interrupts(), anonymous_main():
            self.process.start()
        theirs.close()
        if not self.link.poll(CONNECT_S):
            self.fatal = f"no Ray cluster answers at {self.name} within {CONNECT_S:.0f} s"
        while not self.room and not self.fatal:
            self._hear()
        if self.fatal:
            self.close()
            raise QbenchError(f"--engine ray: {self.fatal}")

    @property
    def capacity(self) -> int:
        self.start()
        return self.room

    @property
    def remote_device(self) -> str | None:
        self.start()
        return self.kind

    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        self.start()
        self.groups.add(group)
        self.cancelled.discard(group)  # of an earlier sweep
        self._tell("submit", group, assignments, execution)

    def poll(self, timeout_s: float) -> list[Event]:
        self.start()
        events: list[Event] = []
        patience = timeout_s
        while not self.fatal and self.link.poll(patience):
            events += self._hear()
            patience = 0.0
        if self.fatal and not events:
            return self._say_it()
        return events

    def _hear(self) -> list[Event]:
        try:
            kind, what = self.link.recv()
        except (EOFError, OSError):
            self.fatal = (
                self.fatal
                or f"the Ray cluster at {self.name} has gone away; what is finished or in a checkpoint is kept: run the same command again"
            )
            return []
        if kind == "fatal":
            self.fatal = what
        elif kind == "capacity":
            self.room = what
        elif kind == "device":
            self.kind = what
        elif what.group in self.groups:
            self.groups -= {what.group} if what.kind == "ended" else set()
            return [what]
        return []

    def _say_it(self) -> list[Event]:
        """Once as an error; to whoever asks on, that every group has been stopped."""
        if not self.raised:
            self.raised = True
            raise QbenchError(f"--engine ray: {self.fatal}")
        over, self.groups = self.groups, set()
        return [
            Event(group, "ended", details={"exitcode": -signal.SIGTERM, "cancelled": True})
            for group in over
        ]

    def cancel(self, group: int) -> None:
        if group not in self.cancelled:
            self.cancelled.add(group)
            self._tell("cancel", group)

    def _tell(self, *words: Any) -> None:
        with suppress(OSError):  # whoever does not listen any more is found out by `poll`
            self.link.send(words)

    def close(self) -> None:
        if self.process is None:
            return
        self.link.close()
        self.process.join(CLOSE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = None
