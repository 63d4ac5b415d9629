"""The queue of a sweep: runs in the order of the plan, and beside each the others of its kind."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qbench.execution.assignment import Execution
from qbench.runs.config import RunConfig

if TYPE_CHECKING:
    import torch


Entry = tuple[int, str]


@dataclass
class Queue:
    """Hands out groups: the next run, and of those that may train beside it as many as pay."""

    execution: Execution
    kind: str | None = None
    """Of the device, where runs train on other machines."""
    order: list[Entry] = field(default_factory=list)
    """A heap of places in the plan and keys."""
    kinds: dict[str, list[Entry]] = field(default_factory=dict)
    """The same by kind."""
    waiting: dict[str, str | None] = field(default_factory=dict)
    """The kind of every run that was not handed out yet; the heaps may hold others."""
    left: Counter[str] = field(default_factory=Counter)
    """How many of each kind those are."""

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def push(self, place: int, key: str, kind: str | None) -> None:
        self._forget(key)
        self.waiting[key] = kind
        heapq.heappush(self.order, (place, key))
        if kind is not None:
            self.left[kind] += 1
            heapq.heappush(self.kinds.setdefault(kind, []), (place, key))

    def pop(self, idle: int, config: Callable[[str], RunConfig]) -> list[str]:
        """The next group, for one of the `idle` places; none stays idle so that another's group may be larger."""
        from qbench.execution.group_policy import group_size, neighbours
        from qbench.training.devices import total_memory

        first = next(key for _, key in self._popped(self.order) if key in self.waiting)
        kind = self.waiting[first]
        others = len(self.waiting) - self.left[kind] if kind is not None else 0
        share = -(-self.left[kind] // max(1, idle - others)) if kind is not None else 1
        self._forget(first)
        group = [first]
        if kind is not None and share > 1:
            most = min(
                self.execution.group
                or group_size(config(first), self.device.type, total_memory(self.device)),
                share,
            )
            mates = (
                key for _, key in self._popped(self.kinds[kind]) if self.waiting.get(key) == kind
            )
            while len(group) < most and (key := next(mates, None)) is not None:
                self._forget(key)
                group.append(key)
        return sorted(group, key=lambda key: neighbours(config(key)))

    def _forget(self, key: str) -> None:
        if (kind := self.waiting.pop(key, None)) is not None:
            self.left[kind] -= 1

    @staticmethod
    def _popped(heap: list[Entry]) -> Iterator[Entry]:
        while heap:
            yield heapq.heappop(heap)

    @property
    def device(self) -> torch.device:
        """The one that runs will train on, or the first of several."""
        import torch

        from qbench.training.devices import device_named

        return torch.device(self.kind) if self.kind else device_named(self.execution.device)
