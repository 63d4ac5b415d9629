"""The Ray engine: the same runs on a Ray cluster, seen from the coordinator.

Nodes need qbench, but no shared disk: files are sent through Ray. The coordinator keeps in its own
results folder all that it knows of a run: the latest checkpoint arrives while the run is trained,
and everything else when it is over. So a worker, a node, the cluster or the coordinator can fail at
any moment, and the next attempt resumes from there.

This module never imports Ray. It starts a process that does; `ray_driver` says why.
"""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from qbench.engines.base import Engine, EngineOptions, Event
from qbench.engines.worker_process import hidden_main_module, without_interrupts
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Assignment, Execution

CONNECT_S = 120.0
"""Longest wait for the cluster's first answer."""
CLOSE_S = 12.0
"""Longest wait for the driver process to end before it is killed. It must be longer than the time
after which the driver forces its own exit."""


class RayEngine(Engine):
    """Workers on the nodes of a cluster, each with a number of CPUs and GPUs, or part of a GPU."""

    def __init__(
        self,
        options: EngineOptions = EngineOptions(),
        run_function: str = "qbench.engines.dispatch:run_one",
    ) -> None:
        check_options(options)
        self.options, self.run_function = options, run_function
        self.address = options.address or os.environ.get("RAY_ADDRESS") or "this machine"
        self.process: Any = None
        self.room, self.device_kind = 0, "cpu"
        self.groups: set[int] = set()
        """Groups that have not ended."""
        self.cancelled: set[int] = set()
        self.fatal: str | None = None
        """Why the cluster cannot be used any more."""
        self.fatal_was_raised = False

    @classmethod
    def open(cls, options: EngineOptions) -> RayEngine:
        engine = cls(options)
        engine.start()
        return engine

    def start(self) -> None:
        """Connect to the cluster, or raise QbenchError if that is not possible.

        It does nothing if the engine is connected.
        """
        if self.process is not None:
            return
        from qbench.engines.ray_driver import run_driver

        # A spawned process starts clean. Ray must not be used in a fork of a process with threads.
        context = mp.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(
            target=run_driver,
            args=(theirs, self.options, self.run_function, list(sys.path)),
            daemon=True,
        )
        with without_interrupts(), hidden_main_module():
            self.process.start()
        # While our copy of its end is open, the pipe would not close when the driver ends.
        theirs.close()
        if not self.link.poll(CONNECT_S):
            self.fatal = f"no Ray cluster answers at {self.address} within {CONNECT_S:.0f} s"
        # The driver sends the kind of device and then the capacity when it is connected.
        while not self.room and not self.fatal:
            self._receive()
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
        return self.device_kind

    def submit(self, group: int, assignments: list[Assignment], execution: Execution) -> None:
        self.start()
        self.groups.add(group)
        # An earlier sweep of this engine may have cancelled a group of the same number.
        self.cancelled.discard(group)
        self._send("submit", group, assignments, execution)

    def poll(self, timeout_s: float) -> list[Event]:
        self.start()
        events: list[Event] = []
        # Wait for the first message only, and then take all that have arrived.
        wait_s = timeout_s
        while not self.fatal and self.link.poll(wait_s):
            events += self._receive()
            wait_s = 0.0
        # Events that arrived before the cluster was lost are reported first.
        if self.fatal and not events:
            return self._report_loss()
        return events

    def _receive(self) -> list[Event]:
        """Receive one message of the driver, and return the event if it is one."""
        try:
            kind, content = self.link.recv()
        except (EOFError, OSError):
            # Ray has ended the driver, which could not say anything any more.
            self.fatal = self.fatal or (
                f"the Ray cluster at {self.address} has gone away; what is finished or in a"
                " checkpoint is kept: run the same command again"
            )
            return []
        if kind == "fatal":
            self.fatal = content
        elif kind == "capacity":
            self.room = content
        elif kind == "device":
            self.device_kind = content
        # An event of a group that has ended is out of date: a worker may have been given up before
        # its last messages were read.
        elif content.group in self.groups:
            if content.kind == "ended":
                self.groups.remove(content.group)
            return [content]
        return []

    def _report_loss(self) -> list[Event]:
        """Raise the loss of the cluster as an error the first time; later return that all ended.

        The coordinator stops at the error, and then polls until its groups have ended.
        """
        if not self.fatal_was_raised:
            self.fatal_was_raised = True
            raise QbenchError(f"--engine ray: {self.fatal}")
        groups, self.groups = self.groups, set()
        details = {"exitcode": -signal.SIGTERM, "cancelled": True}
        return [Event(group, "ended", details=dict(details)) for group in groups]

    def cancel(self, group: int) -> None:
        if group not in self.cancelled:
            self.cancelled.add(group)
            self._send("cancel", group)

    def _send(self, *command: Any) -> None:
        # If the driver is gone, `poll` reports it.
        with suppress(OSError):
            self.link.send(command)

    def close(self) -> None:
        if self.process is None:
            return
        # The driver ends when the link closes.
        self.link.close()
        self.process.join(CLOSE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process = None


def check_options(options: EngineOptions) -> None:
    """Raise UsageError if Ray is not installed or cannot do what the options ask for."""
    # This finds the package without importing it.
    if importlib.util.find_spec("ray") is None:
        raise UsageError('--engine ray: Ray is not installed: pip install "qbench[ray]"')
    if options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {options.device}: Ray says which GPU a run has; write cuda")
    if options.processes > 1:
        raise UsageError(
            "[engine]: gpus_per_run starts the processes of a run on one machine:"
            " leave it out with --engine ray"
        )
    if options.device == "cpu" and options.gpus:
        raise UsageError("--gpus-per-run: runs on the CPU take no GPU")
