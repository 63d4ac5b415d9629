"""RunQueue: the runs that wait to be trained, in the order of the plan, and how to stack them."""

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

    from qbench.sweeps.cells import Cell


HeapItem = tuple[int, str]
"""A place in the plan and the key of the run."""


@dataclass
class RunQueue:
    """Hands out groups: the next run, with as many runs of its kind as it pays to stack.

    A run is in up to two heaps: one of all runs and one of its kind. When it is handed out from one
    of them, it stays in the other, because a heap cannot remove from its middle. `kind_of` holds
    the truth, and what a heap still holds beyond it is dropped when it comes to the top.
    """

    execution: Execution
    remote_device: str | None = None
    """The type of the device, if runs train on other machines."""
    heap: list[HeapItem] = field(default_factory=list)
    """All runs."""
    heaps_by_kind: dict[str, list[HeapItem]] = field(default_factory=dict)
    """The runs of each kind. Runs of one kind may be stacked."""
    kind_of: dict[str, str | None] = field(default_factory=dict)
    """The runs that were not handed out yet, each with its kind; None for one that trains alone."""
    left: Counter[str] = field(default_factory=Counter)
    """How many of those there are of each kind."""
    cell_kinds: dict[tuple[str, ...], str | None] = field(default_factory=dict)
    """The kind of each cell, by what the cell trains."""

    def __bool__(self) -> bool:
        return bool(self.kind_of)

    def find_kind(self, cell: Cell) -> str | None:
        """Return a name that two cells share if their runs may be stacked, or None."""
        from qbench.execution.group_policy import stacking_kind

        if cell.key_parts not in self.cell_kinds:
            size = self.execution.group
            may_stack = size != 1 and self.execution.gpus_per_run == 1
            # Integers of different width are stacked only if a group size was requested.
            self.cell_kinds[cell.key_parts] = (
                stacking_kind(cell.example, size is not None) if may_stack else None
            )
        return self.cell_kinds[cell.key_parts]

    def push(self, place: int, key: str, kind: str | None) -> None:
        """Add a run, or put back one that is tried again."""
        self._remove_run(key)
        self.kind_of[key] = kind
        heapq.heappush(self.heap, (place, key))
        if kind is not None:
            self.left[kind] += 1
            heapq.heappush(self.heaps_by_kind.setdefault(kind, []), (place, key))

    def pop(self, idle: int, config: Callable[[str], RunConfig]) -> list[str]:
        """Return the keys of the next group, and remove them from the queue.

        Args:
            idle: How many places of the engine are free. The group takes one of them.
            config: Returns the configuration of a run.
        """
        from qbench.execution.group_policy import group_sort_key

        first = next(key for _, key in _pop_all(self.heap) if key in self.kind_of)
        kind = self.kind_of[first]
        size = 1 if kind is None else self._group_size(kind, idle, config(first))
        self._remove_run(first)
        group = [first]
        if kind is not None and size > 1:
            for _, key in _pop_all(self.heaps_by_kind[kind]):
                # The heap may hold runs that are gone or were put back with another kind.
                if self.kind_of.get(key) != kind:
                    continue
                self._remove_run(key)
                group.append(key)
                if len(group) == size:
                    break
        return sorted(group, key=lambda key: group_sort_key(config(key)))

    @property
    def device(self) -> torch.device:
        """The device that runs will train on, or the first of several."""
        import torch

        from qbench.training.devices import parse_device

        if self.remote_device:
            return torch.device(self.remote_device)
        return parse_device(self.execution.device)

    def _group_size(self, kind: str, idle: int, config: RunConfig) -> int:
        """Return how many runs of a kind, the first included, make the next group."""
        from qbench.execution.group_policy import group_size
        from qbench.training.devices import total_memory

        # No place of the engine may stay idle because this group is larger. Runs of other kinds
        # fill some of the free places; those that remain share the runs of this kind.
        others = len(self.kind_of) - self.left[kind]
        share = -(-self.left[kind] // max(1, idle - others))  # rounded up
        if share <= 1:
            return 1
        most = self.execution.group
        most = most or group_size(config, self.device.type, total_memory(self.device))
        return min(most, share)

    def _remove_run(self, key: str) -> None:
        if (kind := self.kind_of.pop(key, None)) is not None:
            self.left[kind] -= 1


def _pop_all(heap: list[HeapItem]) -> Iterator[HeapItem]:
    """Yield the items of a heap, the smallest first, each removed from it."""
    while heap:
        yield heapq.heappop(heap)
