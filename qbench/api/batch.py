"""Batch: inputs and targets, split and stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Batch", "Split", "send"]


Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of `count` samples (the first axis); both may be None where a loss is known in closed form."""

    inputs: Tensor | None
    targets: Tensor | None
    count: int = 1

    @property
    def device(self) -> torch.device:
        return self.inputs.device if self.inputs is not None else torch.device("cpu")

    def of(self, place: int) -> Batch:
        """The batch of one of several runs side by side."""
        own = [None if x is None else x[place] for x in (self.inputs, self.targets)]
        return Batch(own[0], own[1], self.count)

    @staticmethod
    def beside(batches: Sequence[Batch]) -> Batch:
        """Those of runs side by side: an axis of runs in front, without a copy where all have the same one."""
        first = batches[0]
        if first.inputs is None or first.targets is None:
            return first
        if all(batch is first for batch in batches):
            inputs, targets = (
                x.expand(len(batches), *x.shape) for x in (first.inputs, first.targets)
            )
            return Batch(inputs, targets, first.count)
        return Batch(
            torch.stack([b.inputs for b in batches]),
            torch.stack([b.targets for b in batches]),
            first.count,
        )  # type: ignore[misc]

    def split(self, parts: int, lead: int = 0) -> list[Batch]:
        """Micro-batches, behind `lead` axes of runs; one without data cannot be split."""
        if parts == 1 or self.inputs is None or self.targets is None:
            return [self]
        pairs = zip(self.inputs.chunk(parts, lead), self.targets.chunk(parts, lead), strict=True)
        return [Batch(inputs, targets, inputs.shape[lead]) for inputs, targets in pairs]


def send(x: Tensor, device: torch.device) -> Tensor:
    """To a device, without waiting for it: from pinned memory the copy takes its place in the queue behind the step before."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
