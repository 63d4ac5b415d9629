"""The driver process, which stands between the coordinator and the workers on a Ray cluster.

It is a process of its own because Ray ends the process that uses it when the cluster goes away. The
coordinator survives that, and can say what happened. Workers are actors. Each is asked one question
at a time; their answers and the coordinator's commands arrive in one queue, so that one thread
handles everything in order. Files are written to their final place before the event that depends on
them is passed on to the coordinator.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import qbench
from qbench.engines.base import EngineOptions, Event
from qbench.engines.file_transfer import FilePart, FileReceiver, read_all_parts, read_parts
from qbench.engines.ray_cluster import (
    RayCluster,
    first_line,
    format_resources,
    is_node_loss,
    last_line,
)
from qbench.engines.ray_worker import Message, WorkOrder
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, mark_new_answers

ANSWER_S = 1.0
"""A worker that has nothing to say answers after this time."""
DEAF_S = 120.0
"""A worker without an answer for this time is given up: its node or the network hangs."""
IDLE_S = 30.0
"""A worker without a group for this time is given back to the cluster."""
NO_ROOM_S = 600.0
"""Longest time that a cluster may have no node with room for a run."""
CHECK_S = 1.0
"""Time between two checks of the cluster and of its workers."""
RESUME_FILES = ("checkpoint", "curve.jsonl")
"""The files of an earlier attempt that a run needs to resume."""
FORCED_EXIT_S = 10.0
"""If Ray does not let go within this time, the process ends anyway. The coordinator waits a little
longer (`CLOSE_S`) before it kills this process."""


def run_driver(
    link: Connection, options: EngineOptions, run_function: str, path: list[str]
) -> None:
    """Connect to the cluster and drive it until the link closes or the cluster is gone.

    This is the main function of the driver process.
    """
    # Ctrl-C is for the coordinator, which then cancels what runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _silence_output()
    # Without this, Ray reports to its authors that it is used.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    driver = RayDriver(link, RayCluster(options, run_function, path))
    try:
        driver.connect()
        driver.run()
    except QbenchError as error:
        driver.send("fatal", str(error))
    except Exception as error:  # noqa: BLE001 - Ray raises errors of many kinds
        driver.send(
            "fatal",
            f"{type(error).__name__}: {first_line(error)}; what is finished or in a checkpoint is"
            " kept: run the same command again",
        )
    finally:
        threading.Timer(FORCED_EXIT_S, os._exit, [1]).start()
        driver.disconnect()
        # A normal exit would wait for Ray's threads.
        os._exit(0)


def _silence_output() -> None:
    """Discard all output. Ray prints its opinion of the cluster into the progress display."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


@dataclass(frozen=True)
class QueuedGroup:
    """A group as the coordinator submitted it."""

    number: int
    assignments: list[Assignment]
    execution: Execution


@dataclass(eq=False)
class ActorHandle:
    """A worker as the driver sees it. Workers are compared by identity."""

    actor: Any
    last_heard: float
    node: str = ""
    """The name of its node; empty until the worker has started."""
    group: QueuedGroup | None = None
    receivers: dict[str, FileReceiver] = field(default_factory=dict)
    """Where the files of each run are written, by its key."""
    cancelled: bool = False


class RayDriver:
    """Hands groups to workers, and passes their files and events on to the coordinator."""

    def __init__(self, link: Connection, cluster: RayCluster) -> None:
        self.link, self.cluster = link, cluster
        self.inbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        """Commands and answers. None means that the coordinator has closed the link."""
        self.groups: deque[QueuedGroup] = deque()
        """Groups that no worker has yet."""
        self.workers: list[ActorHandle] = []
        self.capacity = 0
        self.last_room_at = time.monotonic()
        """When there was last room for a run."""

    def connect(self) -> None:
        """Connect to the cluster, and tell the coordinator its kind of device and capacity."""
        self.cluster.connect()
        self.capacity = self.cluster.count_room()
        resources = self.cluster.worker_resources()
        if not self.capacity:
            raise QbenchError(
                f"the Ray cluster has {self.cluster.describe_resources()}:"
                f" no room for a run of {format_resources(resources)}"
            )
        # The capacity comes last: the coordinator waits for it and then reads both.
        self.send("device", "cuda" if resources["GPU"] else "cpu")
        self.send("capacity", self.capacity)

    def disconnect(self) -> None:
        """Leave the cluster. It does nothing if the connection has failed."""
        self.cluster.disconnect([worker.actor for worker in self.workers])

    def run(self) -> None:
        """Handle commands and answers until the coordinator closes the link."""
        threading.Thread(target=self._read_commands, daemon=True).start()
        checked_at = time.monotonic()
        while True:
            try:
                message = self.inbox.get(timeout=CHECK_S)
            except queue.Empty:
                pass
            else:
                if message is None:
                    return
                self._handle_message(*message)
            if time.monotonic() - checked_at > CHECK_S:
                self._check_cluster()
                checked_at = time.monotonic()
            self._assign_groups()

    def send(self, kind: str, content: Any) -> None:
        """Send a message to the coordinator."""
        # A coordinator that is gone is noticed by `_read_commands`.
        with suppress(OSError):
            self.link.send((kind, content))

    def _read_commands(self) -> None:
        """Put the coordinator's commands into the queue. This runs in a thread of its own."""
        with suppress(EOFError, OSError):
            while True:
                self.inbox.put(self.link.recv())
        # The main thread may hang in a call of Ray and never see the end of the queue.
        threading.Timer(FORCED_EXIT_S + 5, os._exit, [1]).start()
        self.inbox.put(None)

    def _handle_message(self, kind: str, *content: Any) -> None:
        if kind == "submit":
            self.groups.append(QueuedGroup(*content))
        elif kind == "cancel":
            self._cancel_group(*content)
        else:
            assert kind == "answer", kind
            self._handle_answer(*content)

    # ---- the cluster and its workers ----

    def _check_cluster(self) -> None:
        """Update the capacity, and give up workers that are deaf or idle."""
        capacity_before = self.capacity
        self.capacity = self.cluster.count_room()
        if self.capacity != capacity_before:
            self.send("capacity", self.capacity)
        # The cluster may have taken its time to answer.
        now = time.monotonic()
        if self.capacity:
            self.last_room_at = now
        if now - self.last_room_at > NO_ROOM_S:
            resources = format_resources(self.cluster.worker_resources())
            raise QbenchError(
                f"the Ray cluster has had no room for a run of {resources}"
                f" for {NO_ROOM_S / 60:.0f} minutes"
            )
        for worker in list(self.workers):
            silent_s = now - worker.last_heard
            if worker.group and silent_s > DEAF_S:
                gone = f"the worker on {worker.node} has not answered for {DEAF_S:.0f} s"
                self._give_up(worker, {"exitcode": -signal.SIGKILL, "gone": gone})
            elif worker.node and not worker.group and not self.groups and silent_s > IDLE_S:
                self._give_up(worker)

    def _assign_groups(self) -> None:
        """Give groups to idle workers, and start more workers if there are more groups."""
        for worker in self.workers:
            if worker.node and worker.group is None and self.groups:
                self._start_group(worker, self.groups.popleft())
        # Each worker that is starting will take one group.
        starting = sum(not worker.node for worker in self.workers)
        while self.groups and starting < len(self.groups) and len(self.workers) < self.capacity:
            worker = ActorHandle(self.cluster.start_worker(), time.monotonic())
            self._await_answer(worker, worker.actor.describe_node.remote())
            self.workers.append(worker)
            starting += 1

    def _start_group(self, worker: ActorHandle, group: QueuedGroup) -> None:
        worker.group, worker.cancelled = group, False
        worker.last_heard = time.monotonic()
        worker.receivers = {a.folder.parent.name: FileReceiver(a.folder) for a in group.assignments}
        orders = []
        # Ray executes the calls of one actor in the order in which they are made. So the files
        # arrive before the training starts, though nobody waits for them here.
        for assignment in group.assignments:
            order, parts = make_work_order(assignment)
            for folder, part in parts:
                worker.actor.receive_part.remote(folder, part)
            orders.append(order)
        worker.actor.train_group.remote(group.number, orders, group.execution)
        self._await_answer(worker, worker.actor.collect_messages.remote(ANSWER_S))

    def _cancel_group(self, number: int) -> None:
        for group in list(self.groups):
            if group.number == number:
                self.groups.remove(group)
                details = {"exitcode": -signal.SIGTERM, "cancelled": True}
                self.send("event", Event(number, "ended", details=details))
        for worker in self.workers:
            if worker.group and worker.group.number == number and not worker.cancelled:
                worker.cancelled = True
                worker.actor.cancel.remote()

    def _give_up(self, worker: ActorHandle, details: Mapping[str, Any] | None = None) -> None:
        """Kill a worker, and report the end of its group for the reason given in `details`."""
        self.workers.remove(worker)
        # A file that has not arrived completely is deleted; the version before it stays.
        for receiver in worker.receivers.values():
            receiver.close()
        self.cluster.kill(worker.actor)
        if worker.group:
            number, worker.group = worker.group.number, None
            cancelled = {"cancelled": True} if worker.cancelled else {}
            self.send("event", Event(number, "ended", details={**(details or {}), **cancelled}))

    # ---- answers ----

    def _await_answer(self, worker: ActorHandle, reference: Any) -> None:
        """Have the answer to a question put into the queue when it is there."""
        # Ray calls this function in one of its own threads, which must not do more than this.
        reference.future().add_done_callback(
            lambda future: self.inbox.put(("answer", worker, future))
        )

    def _handle_answer(self, worker: ActorHandle, future: Future[Any]) -> None:
        if worker not in self.workers:
            # It was given up after it had been asked.
            return
        try:
            answer = future.result()
        except self.cluster.ray.exceptions.RayActorError as error:
            self._handle_death(worker, error)
        except self.cluster.ray.exceptions.RayError as error:
            message = f"the worker on {worker.node}: {last_line(error)}"
            self._give_up(worker, {"exitcode": 1, "error": message})
        else:
            worker.last_heard = time.monotonic()
            # The first answer of a worker describes its node; all others are lists of messages.
            if isinstance(answer, Mapping):
                self._handle_start(worker, answer)
            else:
                self._handle_messages(worker, answer)

    def _handle_start(self, worker: ActorHandle, description: Mapping[str, Any]) -> None:
        worker.node = str(description["node"])
        # Another version may train differently, and its result would have the same key.
        if description["qbench"] != qbench.__version__:
            raise QbenchError(
                f"qbench is {description['qbench']} on {worker.node} and {qbench.__version__} here:"
                " install the same everywhere"
            )

    def _handle_messages(self, worker: ActorHandle, messages: list[Message]) -> None:
        try:
            for message in messages:
                self._handle_worker_message(worker, message)
        except OSError as error:
            # A file could not be written here.
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._give_up(worker, {"exitcode": 1, "error": str(error), "disk_full": full})
        if worker.group:
            self._await_answer(worker, worker.actor.collect_messages.remote(ANSWER_S))

    def _handle_worker_message(self, worker: ActorHandle, message: Message) -> None:
        if not isinstance(message, Event):
            key, part = message
            worker.receivers[key].write_part(part)
            return
        if message.kind == "ended":
            assert worker.group
            for assignment in worker.group.assignments:
                if assignment.downstream:
                    mark_new_answers(Attempt(assignment.folder))
            worker.group = None
            # Passed on, `disk_full` would stop the sweep with a message about this machine's disk.
            # It is the node's disk that is full, and every run that goes there would fail.
            if message.details.get("disk_full"):
                raise QbenchError(
                    f"no space left in the temporary folder of {worker.node}; nothing is lost:"
                    " free some and run the same command again"
                )
        self.send("event", message)

    def _handle_death(self, worker: ActorHandle, error: Exception) -> None:
        if self.cluster.cannot_start(error):
            raise QbenchError(
                f"a worker cannot start on the Ray cluster: {last_line(error)};"
                " is the same qbench installed on every node?"
            ) from error
        node_lost = is_node_loss(error)
        gone = (
            f"the node {worker.node} was lost"
            if node_lost
            else f"the worker on {worker.node} was killed"
        )
        self._give_up(worker, {"exitcode": -signal.SIGKILL, "gone": gone, "node": node_lost})


def make_work_order(assignment: Assignment) -> tuple[WorkOrder, list[tuple[str, FilePart]]]:
    """Return the order for a worker, and the parts of the files that it needs with their folders.

    A run that resumes needs its checkpoint, one that starts from another run needs that run's
    artefact, and a finished run that is asked questions needs all of its files.
    """
    folder = assignment.folder
    order = WorkOrder(
        assignment.config,
        folder.parent.name,
        int(folder.name),
        bool(assignment.resume),
        bool(assignment.base),
        assignment.downstream,
    )
    parts: list[tuple[str, FilePart]] = []
    if assignment.resume:
        resume_parts = read_all_parts(assignment.resume, RESUME_FILES)
        parts += [(str(order.resume_folder), part) for part in resume_parts]
    if assignment.base:
        for name in list_export_files(assignment.base):
            base_parts = read_parts(assignment.base, name)
            parts += [(str(order.base_folder), part) for part in base_parts]
    if assignment.downstream:
        parts += [(str(order.folder), part) for part in read_all_parts(folder)]
    return order, parts


def list_export_files(folder: Path) -> list[str]:
    """Return the names of the files of a run's export, relative to the run's folder."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted((folder / "export").rglob("*"))
        if path.is_file()
    ]
