"""The process that speaks with Ray, between the coordinator and the workers on the nodes. Only this module knows Ray.

It is a process of its own because Ray ends the process that uses it when the cluster goes away: the coordinator then still has its word.
Workers are actors, one a place, asked one question at a time; answers and commands come into one queue. Files are written where they
belong before the event that speaks of them goes on to the coordinator.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import socket
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
from qbench.engines.base import Event, Wishes
from qbench.engines.file_transfer import Piece, Receiver, read, read_all
from qbench.engines.ray_worker import Order, Worker, folder_of
from qbench.engines.worker_process import cores
from qbench.errors import QbenchError
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.attempts import Attempt, mark_new_answers

LISTEN_S = 1.0
"""A worker answers at least so often."""
DEAF_S = 120.0
"""A worker that does not answer for so long is given up: its node hangs, or the network."""
IDLE_S = 30.0
"""A place that has had nothing to do for so long is given back to the cluster."""
KNOCK_S = 10.0
ENTRANCES, BETWEEN_S = 3, 3.0
"""How often a cluster that listens is asked to take this process in, and how long between."""
EMPTY_S = 600.0
"""So long a cluster may be without any node that has room for a run."""
TICK_S = 1.0
NEEDED = ("checkpoint", "curve.jsonl")
"""Of an earlier attempt, to go on from it."""
LOCAL_STORE = 256 << 20


@dataclass(frozen=True)
class Group:
    number: int
    assignments: list[Assignment]
    execution: Execution


@dataclass(eq=False)
class Slot:
    """A worker, as far as we know."""

    actor: Any
    heard: float
    node: str = ""
    """Empty until it has said hello."""
    group: Group | None = None
    receivers: dict[str, Receiver] = field(default_factory=dict)
    cancelled: bool = False


def drive(link: Connection, wishes: Wishes, train: str, path: list[str]) -> None:
    """The process: until the other end of the link closes, or the cluster is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _be_quiet()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    driver = Driver(link, wishes, train, path)
    try:
        driver.connect()
        driver.run()
    except QbenchError as error:
        driver.tell("fatal", str(error))
    except Exception as error:  # noqa: BLE001 - Ray's, of whatever kind: it is the last that is heard of the cluster
        driver.tell(
            "fatal",
            f"{type(error).__name__}: {_first_line(error)}; what is finished or in a checkpoint is kept: run the same command again",
        )
    finally:
        threading.Timer(10, os._exit, [1]).start()  # should Ray not let go
        driver.disconnect()
        os._exit(0)


def _be_quiet() -> None:
    """Ray writes to the terminal what it thinks of its cluster."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Driver:
    def __init__(self, link: Connection, wishes: Wishes, train: str, path: list[str]) -> None:
        self.link, self.wishes, self.train, self.path = link, wishes, train, path
        self.inbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.groups: deque[Group] = deque()
        """Not yet with a worker."""
        self.slots: list[Slot] = []
        self.capacity = 0
        self.room_at = time.monotonic()
        """When there was last room for a run."""

    # ---- the cluster ----

    def connect(self) -> None:
        import ray

        self.ray: Any = ray
        asked = self.wishes.address or os.environ.get("RAY_ADDRESS")
        try:
            _knock(asked or "")
            self._come_in(asked or "auto")
        except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
            if asked or not isinstance(error, ConnectionError):
                where = f"at {asked}" if asked else "here"
                raise QbenchError(
                    f"no Ray cluster answers {where}: {_first_line(error)}; start one with `ray start`, or see --address"
                ) from error
            self._init("local")
        self._count()
        if not self.capacity:
            raise QbenchError(
                f"the Ray cluster has {_told(self.ray.cluster_resources())}: no room for a run of {_told(self._resources())}"
            )
        self.tell("device", "cuda" if self._resources()["GPU"] else "cpu")
        self.tell("capacity", self.capacity)

    def _come_in(self, address: str) -> None:
        """A cluster that has just begun, or has much to do, listens at `ray://` before it can take anyone in."""
        for _ in range(ENTRANCES - 1):
            with suppress(ConnectionAbortedError):
                self._init(address)
                return
            self.ray.shutdown()
            time.sleep(BETWEEN_S)
        self._init(address)

    def _init(self, address: str) -> None:
        own: dict[str, Any] = (
            {"num_cpus": cores(), "object_store_memory": LOCAL_STORE, "include_dashboard": False}
            if address == "local"
            else {}
        )
        self.ray.init(address=address, log_to_driver=False, configure_logging=False, **own)

    def disconnect(self) -> None:
        with suppress(Exception):
            for slot in self.slots:
                self.ray.get(slot.actor.close.remote(), timeout=3)
        with suppress(Exception):
            self.ray.shutdown()

    def _resources(self) -> dict[str, float]:
        """What a place takes. Without a word, a GPU if the cluster has any."""
        gpus = self.wishes.gpus
        if gpus is None:
            some = self.wishes.device.startswith("cuda") or (
                self.wishes.device == "auto" and self.ray.cluster_resources().get("GPU")
            )
            gpus = 1.0 if some else 0.0
        return {"CPU": 1.0 if self.wishes.cpus is None else self.wishes.cpus, "GPU": gpus}

    def _count(self) -> None:
        """How many places the nodes that are there have."""
        wanted = {name: x for name, x in self._resources().items() if x}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(
            int(min((has.get(name, 0.0) / x + 1e-9 for name, x in wanted.items()), default=1))
            for has in nodes
        )
        self.capacity = min(room, self.wishes.workers or room)

    def _place(self) -> Slot:
        asks = self._resources()
        device = "cuda:0" if asks["GPU"] else "cpu"
        options = {
            "num_cpus": asks["CPU"],
            "num_gpus": asks["GPU"],
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        actor: Any = (
            self.ray.remote(Worker)
            .options(**options)
            .remote(device, self.wishes.preload, self.path, self.train)
        )
        slot = Slot(actor, time.monotonic())
        self._await(slot, actor.hello.remote())
        return slot

    def _await(self, slot: Slot, ref: Any) -> None:
        ref.future().add_done_callback(lambda future: self.inbox.put(("answer", slot, future)))

    # ---- the loop ----

    def run(self) -> None:
        threading.Thread(target=self._read_commands, daemon=True).start()
        ticked = time.monotonic()
        while True:
            try:
                what = self.inbox.get(timeout=TICK_S)
            except queue.Empty:
                what = ()
            if what is None:
                return
            if what:
                getattr(self, f"_on_{what[0]}")(*what[1:])
            if time.monotonic() - ticked > TICK_S:
                self._tick()
                ticked = time.monotonic()
            self._hand_out()

    def _read_commands(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.inbox.put(self.link.recv())
        threading.Timer(15, os._exit, [1]).start()
        self.inbox.put(None)

    def tell(self, kind: str, what: Any) -> None:
        with suppress(OSError):
            self.link.send((kind, what))

    def _tick(self) -> None:
        before = self.capacity
        self._count()
        if self.capacity != before:
            self.tell("capacity", self.capacity)
        now = time.monotonic()
        self.room_at = now if self.capacity else self.room_at
        if now - self.room_at > EMPTY_S:
            raise QbenchError(
                f"the Ray cluster has had no room for a run of {_told(self._resources())} for {EMPTY_S / 60:.0f} minutes"
            )
        for slot in list(self.slots):
            if slot.group and now - slot.heard > DEAF_S:
                self._give_up(
                    slot,
                    {
                        "exitcode": -signal.SIGKILL,
                        "gone": f"the worker on {slot.node} has not answered for {DEAF_S:.0f} s",
                    },
                )
            elif slot.node and not slot.group and not self.groups and now - slot.heard > IDLE_S:
                self._give_up(slot)

    def _hand_out(self) -> None:
        """Groups to workers that wait for one; more workers while there are more groups and room for them."""
        for slot in self.slots:
            if slot.node and slot.group is None and self.groups:
                self._start(slot, self.groups.popleft())
        coming = sum(not slot.node for slot in self.slots)
        while self.groups and coming < len(self.groups) and len(self.slots) < self.capacity:
            self.slots.append(self._place())
            coming += 1

    # ---- commands ----

    def _on_submit(self, number: int, assignments: list[Assignment], execution: Execution) -> None:
        self.groups.append(Group(number, assignments, execution))

    def _on_cancel(self, number: int) -> None:
        for group in list(self.groups):
            if group.number == number:
                self.groups.remove(group)
                self.tell(
                    "event",
                    Event(
                        number, "ended", details={"exitcode": -signal.SIGTERM, "cancelled": True}
                    ),
                )
        for slot in self.slots:
            if slot.group and slot.group.number == number and not slot.cancelled:
                slot.cancelled = True
                slot.actor.cancel.remote()

    def _start(self, slot: Slot, group: Group) -> None:
        slot.group, slot.cancelled, slot.heard = group, False, time.monotonic()
        slot.receivers = {a.folder.parent.name: Receiver(a.folder) for a in group.assignments}
        orders = []
        for assignment in group.assignments:
            order, sent = packed(assignment)
            for folder, piece in sent:
                slot.actor.take.remote(folder, piece)
            orders.append(order)
        slot.actor.train.remote(group.number, orders, group.execution)
        self._await(slot, slot.actor.listen.remote(LISTEN_S))

    # ---- answers ----

    def _on_answer(self, slot: Slot, future: Future[Any]) -> None:
        if slot not in self.slots:
            return
        try:
            answer = future.result()
        except self.ray.exceptions.RayActorError as error:
            self._lost(slot, error)
        except self.ray.exceptions.RayError as error:
            self._give_up(
                slot, {"exitcode": 1, "error": f"the worker on {slot.node}: {_cause(error)}"}
            )
        else:
            slot.heard = time.monotonic()
            self._heard(slot, answer)

    def _heard(self, slot: Slot, answer: Any) -> None:
        if isinstance(answer, Mapping):
            slot.node = str(answer["node"])
            if answer["qbench"] != qbench.__version__:
                raise QbenchError(
                    f"qbench is {answer['qbench']} on {slot.node} and {qbench.__version__} here: install the same everywhere"
                )
            return
        try:
            for message in answer:
                self._take(slot, message)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._give_up(slot, {"exitcode": 1, "error": str(error), "disk_full": full})
        if slot.group:
            self._await(slot, slot.actor.listen.remote(LISTEN_S))

    def _take(self, slot: Slot, message: tuple[str, Piece] | Event) -> None:
        if not isinstance(message, Event):
            key, piece = message
            slot.receivers[key].take(piece)
        elif message.kind == "ended":
            assert slot.group
            for assignment in slot.group.assignments:
                if assignment.downstream:
                    mark_new_answers(Attempt(assignment.folder))
            slot.group = None
            self.tell("event", self._told_where(message, slot))
        else:
            self.tell("event", message)

    def _told_where(self, event: Event, slot: Slot) -> Event:
        """A full disk of a node is not ours, and the same for every run that comes there."""
        if event.details.get("disk_full"):
            raise QbenchError(
                f"no space left in the temporary folder of {slot.node}; nothing is lost: free some and run the same command again"
            )
        return event

    def _lost(self, slot: Slot, error: Exception) -> None:
        if (
            isinstance(error, self.ray.exceptions.RayTaskError)
            or "creation task" in str(error).lower().split("\n")[0]
        ):
            raise QbenchError(
                f"a worker cannot start on the Ray cluster: {_cause(error)}; is the same qbench installed on every node?"
            ) from error
        node = "node" in str(error) and any(
            w in str(error) for w in ("node has died", "node was terminated", "node is dead")
        )
        gone = f"the node {slot.node} was lost" if node else f"the worker on {slot.node} was killed"
        self._give_up(slot, {"exitcode": -signal.SIGKILL, "gone": gone, "node": node})

    def _give_up(self, slot: Slot, details: Mapping[str, Any] | None = None) -> None:
        """A worker is not ours any more; what it had in hand has ended."""
        self.slots.remove(slot)
        for receiver in slot.receivers.values():
            receiver.close()
        with suppress(Exception):
            self.ray.kill(slot.actor)
        if slot.group:
            number, slot.group = slot.group.number, None
            self.tell(
                "event",
                Event(
                    number,
                    "ended",
                    details={**(details or {}), **({"cancelled": True} if slot.cancelled else {})},
                ),
            )


def packed(assignment: Assignment) -> tuple[Order, list[tuple[str, Piece]]]:
    """What a worker must be told, and the files that it needs: those of another run, or those of a finished one that is asked something."""
    config, folder = assignment.config, assignment.folder
    order = Order(
        config,
        folder.parent.name,
        int(folder.name),
        bool(assignment.resume),
        bool(assignment.base),
        assignment.downstream,
    )
    sent: list[tuple[str, Piece]] = []
    if assignment.resume:
        where = f"resume/{order.key}/{order.number}"
        sent += [(where, piece) for piece in read_all(assignment.resume, NEEDED)]
    if assignment.base:
        sent += [
            (f"base/{order.key}/1", piece)
            for name in _export(assignment.base)
            for piece in read(assignment.base, name)
        ]
    if assignment.downstream:
        sent += [(str(folder_of(order)), piece) for piece in read_all(folder)]
    return order, sent


def _export(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in sorted((folder / "export").rglob("*"))
        if path.is_file()
    ]


def _knock(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _told(resources: Mapping[str, float]) -> str:
    return " and ".join(
        f"{resources.get(name, 0.0):g} {name}"
        for name in ("CPU", "GPU")
        if name == "CPU" or name in resources
    )


def _first_line(error: BaseException) -> str:
    """With the last one, too, where the first only says that it comes."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [
        type(error).__name__
    ]
    return (f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0])[
        :200
    ]


def _cause(error: BaseException) -> str:
    """The last line of what Ray says, which is the exception that was raised."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
