"""A worker on a node of a Ray cluster: an actor that trains groups and sends their files home.

It uses the local engine of its node and a temporary folder of its own. So a run is isolated in a
process as it is on one machine, and ends in the same ways. What happened is returned by
`collect_messages`: first the files, then the event that depends on them.
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
from qbench.engines.file_transfer import PART_BYTES, FilePart, FileReceiver, FileSender
from qbench.engines.local import LocalEngine
from qbench.execution.assignment import Assignment, Execution
from qbench.runs.config import RunConfig

HOME_PREFIX = "qbench-ray-"
Message = tuple[str, FilePart] | Event
"""A part of a file with the key of its run, or an event."""


@dataclass(frozen=True)
class WorkOrder:
    """A run to train on another machine: an assignment without this machine's paths.

    All paths of an order are relative to the worker's temporary folder.
    """

    config: RunConfig
    key: str
    number: int
    """The number of the attempt."""
    resumes: bool
    has_base: bool
    downstream: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the attempt."""
        return Path("runs") / self.key[:2] / self.key / str(self.number)

    @property
    def resume_folder(self) -> Path:
        """The folder of the attempt whose checkpoint the run resumes from."""
        return Path("resume") / self.key / str(self.number)

    @property
    def base_folder(self) -> Path:
        """The folder of the finished run that the run starts from."""
        return Path("base") / self.key / "1"


class RayWorker:
    """The actor. It has one group at a time, and keeps only the fork server between two groups."""

    def __init__(
        self, device: str, preload: Sequence[str], path: Sequence[str], run_function: str
    ) -> None:
        # The coordinator's module path may contain plugins, if the node has the same folders.
        sys.path += [folder for folder in path if folder not in sys.path and Path(folder).exists()]
        # The lock is held for as long as this object, and with it the process, lives.
        self.home, self.lock = create_home()
        self.engine = LocalEngine(1, device, preload, run_function)
        # The local engine would choose among all devices; Ray has already chosen.
        self.engine.slot_devices = [device]
        self.engine.start()
        self.receivers: dict[str, FileReceiver] = {}
        self.senders: dict[str, FileSender] = {}
        self.outbox: deque[Iterator[tuple[str, FilePart]]] = deque()
        """Files to send. They are read only when they are sent."""
        self.finished: set[str] = set()
        self.group = 0
        self.end_event: Event | None = None
        """The end of the group. It is sent after all files."""

    def describe_node(self) -> dict[str, Any]:
        """Return the version of qbench, the node's name and this process's id."""
        return {"qbench": qbench.__version__, "node": socket.gethostname(), "pid": os.getpid()}

    def receive_part(self, folder: str, part: FilePart) -> None:
        """Write a part of a file that the next group needs into one of its folders."""
        self.receivers.setdefault(folder, FileReceiver(self.home / folder)).write_part(part)

    def train_group(self, group: int, orders: Sequence[WorkOrder], execution: Execution) -> None:
        """Start to train a group. All files that it needs must have been received."""
        self.group, assignments = group, [self._make_assignment(order) for order in orders]
        for assignment in assignments:
            assignment.folder.mkdir(parents=True, exist_ok=True)
            sender = FileSender(assignment.folder)
            self.senders[assignment.folder.parent.name] = sender
            # What came from the coordinator need not be sent back.
            sender.mark_all_as_sent()
        self.engine.submit(group, assignments, execution)

    def _make_assignment(self, order: WorkOrder) -> Assignment:
        return Assignment(
            order.config,
            self.home / order.folder,
            self.home / order.resume_folder if order.resumes else None,
            self.home / order.base_folder if order.has_base else None,
            order.downstream,
        )

    def collect_messages(self, wait_s: float) -> list[Message]:
        """Return what has happened since the last call, and wait up to `wait_s` for it.

        One call returns about one part of a file. A large file takes several calls, so that its
        parts need not all be in memory, and that a cancellation can come in between.
        """
        messages: list[Message] = []
        has_more = bool(self.outbox or self.end_event)
        for event in self.engine.poll(0.0 if has_more else wait_s):
            if event.kind == "ended":
                self.end_event = event
            else:
                messages.append(event)
        self._queue_files()
        room = PART_BYTES
        while room > 0 and (message := self._next_part()):
            messages.append(message)
            room -= len(message[1].data)
        if self.end_event and not self.outbox:
            # Whoever reads the end must find all files.
            messages.append(self.end_event)
            self._clean_up()
        return messages

    def cancel(self) -> None:
        """Stop the group. Its end is still reported."""
        self.engine.cancel(self.group)

    def close(self) -> None:
        """Stop everything, and delete the temporary folder."""
        self.engine.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def _queue_files(self) -> None:
        """Queue the files that the runs have written since the last call.

        The files of a finished run are sent while the other runs of its group go on.
        """
        for key, sender in self.senders.items():
            is_over = self.end_event or (
                key not in self.finished and (sender.folder / "result.json").exists()
            )
            if is_over:
                self.finished.add(key)
                self.outbox.append(self._with_key(key, sender.send_remaining()))
            # A checkpoint is queued only when all that was queued before is sent. Otherwise a slow
            # network would be given more checkpoints than it can carry.
            elif key not in self.finished and not self.outbox:
                self.outbox.append(self._with_key(key, sender.send_first_files()))
                self.outbox.append(self._with_key(key, sender.send_checkpoint()))
        if self.end_event:
            self.senders = {}

    @staticmethod
    def _with_key(key: str, parts: Iterator[FilePart]) -> Iterator[tuple[str, FilePart]]:
        return ((key, part) for part in parts)

    def _next_part(self) -> tuple[str, FilePart] | None:
        while self.outbox:
            if (message := next(self.outbox[0], None)) is not None:
                return message
            self.outbox.popleft()
        return None

    def _clean_up(self) -> None:
        for folder in ("runs", "resume", "base", ".answered"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        self.receivers, self.senders, self.finished, self.end_event = {}, {}, set(), None


def create_home() -> tuple[Path, IO[str]]:
    """Create a temporary folder, and delete those of workers that were killed.

    Returns:
        The folder, and an open file with a lock that says that the folder is in use.
    """
    for home in Path(tempfile.gettempdir()).glob(f"{HOME_PREFIX}*"):
        # The kernel releases the lock of a process that ends, however it ends. A lock that is held
        # raises OSError.
        with suppress(OSError), open(home / "lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)
    # The folder gets its final name only when it is locked. Until then, another worker would take
    # it for a dead one's.
    hidden = Path(tempfile.mkdtemp(prefix=f".{HOME_PREFIX}"))
    lock = open(hidden / "lock", "a", encoding="utf-8")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    home = hidden.with_name(hidden.name[1:])
    hidden.rename(home)
    return home, lock
