"""One place on a node of a Ray cluster: an actor that trains a group at a time, as the local engine does it, and sends home what is written.

It trains in a folder of its own, in a process that the local engine of its node forks: a run is as much alone as on one machine, and
ends in the same ways. What happened comes back as answers to `listen`: first the files, then the event that speaks of them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import qbench
from qbench.engines.base import Event
from qbench.engines.file_transfer import PIECE, Piece, Receiver, Sender
from qbench.engines.local import LocalEngine
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.config import RunConfig

HOME = "qbench-ray-"
Message = tuple[str, Piece] | Event
"""A piece of a file of the run with this key; or what happened."""


@dataclass(frozen=True)
class Order:
    """A run to train here: what an assignment says, without the paths of another machine."""

    config: RunConfig
    key: str
    number: int
    resumes: bool
    has_base: bool
    downstream: tuple[str, ...] = ()


class Worker:
    """The actor. It has a group or none; between two of its groups nothing is kept but the fork server."""

    def __init__(
        self, device: str, preload: Sequence[str], path: Sequence[str], train: str
    ) -> None:
        sys.path += [folder for folder in path if folder not in sys.path and Path(folder).exists()]
        self.home, self.lock = scratch_folder()
        self.engine = LocalEngine(1, device, preload, train)
        self.engine.names = [device]
        self.engine.start()
        self.receivers: dict[str, Receiver] = {}
        self.senders: dict[str, Sender] = {}
        self.outbox: deque[Iterator[tuple[str, Piece]]] = deque()
        self.finished: set[str] = set()
        self.group = 0
        self.over: Event | None = None

    def hello(self) -> dict[str, Any]:
        return {"qbench": qbench.__version__, "node": socket.gethostname(), "pid": os.getpid()}

    def take(self, folder: str, piece: Piece) -> None:
        """A piece of a file that the next group needs, into one of its folders."""
        self.receivers.setdefault(folder, Receiver(self.home / folder)).take(piece)

    def train(self, group: int, orders: Sequence[Order], execution: Execution) -> None:
        self.group, assignments = group, [self._assignment(order) for order in orders]
        for assignment in assignments:
            assignment.folder.mkdir(parents=True, exist_ok=True)
            self.senders[assignment.folder.parent.name] = sender = Sender(assignment.folder)
            sender.know()
        self.engine.submit(group, assignments, execution)

    def _assignment(self, order: Order) -> Assignment:
        resume = self.home / "resume" / order.key / str(order.number) if order.resumes else None
        base = self.home / "base" / order.key / "1" if order.has_base else None
        return Assignment(
            order.config, self.home / folder_of(order), resume, base, order.downstream
        )

    def listen(self, patience_s: float) -> list[Message]:
        """What has happened since the last call; waits a while for something to."""
        messages: list[Message] = []
        for event in self.engine.poll(0.0 if self.outbox or self.over else patience_s):
            if event.kind == "ended":
                self.over = event
            else:
                messages.append(event)
        self._look()
        room = PIECE
        while room > 0 and (found := self._next()):
            messages.append(found)
            room -= len(found[1].data)
        if self.over and not self.outbox:
            messages.append(self.over)
            self._tidy()
        return messages

    def cancel(self) -> None:
        self.engine.cancel(self.group)

    def close(self) -> None:
        self.engine.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _look(self) -> None:
        """Queue what the runs have written since. What a finished run left is sent while the others of its group go on."""
        for key, sender in self.senders.items():
            if self.over or (key not in self.finished and (sender.folder / "result.json").exists()):
                self.finished.add(key)
                self.outbox.append(self._of(key, sender.rest()))
            elif key not in self.finished and not self.outbox:
                self.outbox += [
                    self._of(key, sender.beginnings()),
                    self._of(key, sender.checkpoint()),
                ]
        if self.over:
            self.senders = {}

    @staticmethod
    def _of(key: str, pieces: Iterator[Piece]) -> Iterator[tuple[str, Piece]]:
        return ((key, piece) for piece in pieces)

    def _next(self) -> tuple[str, Piece] | None:
        while self.outbox:
            if (found := next(self.outbox[0], None)) is not None:
                return found
            self.outbox.popleft()
        return None

    def _tidy(self) -> None:
        for folder in ("runs", "resume", "base", ".answered"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        self.receivers, self.senders, self.finished, self.over = {}, {}, set(), None


def folder_of(order: Order) -> Path:
    return Path("runs") / order.key[:2] / order.key / str(order.number)


def scratch_folder() -> tuple[Path, IO[str]]:
    """A folder of our own, and the lock that says that we live; those of the dead are removed."""
    for home in Path(tempfile.gettempdir()).glob(f"{HOME}*"):
        with suppress(OSError), open(home / "lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".{HOME}"))
    lock = open(new / "lock", "a", encoding="utf-8")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    home = new.with_name(new.name[1:])  # only now can it be taken for one of the dead
    new.rename(home)
    return home, lock
