"""Batch: inputs and targets of samples, split into micro-batches or stacked for several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of `count` samples, which are the first axis.

    Both may be None where a loss is known in closed form.
    """

    inputs: Tensor | None
    targets: Tensor | None
    count: int = 1
    share: float = 1.0
    """The share of the step's batch that this one is, where the step is taken in micro-batches."""

    @property
    def device(self) -> torch.device:
        return self.inputs.device if self.inputs is not None else torch.device("cpu")

    def row(self, place: int) -> Batch:
        """Return the batch of one of several stacked runs."""
        inputs, targets = (None if x is None else x[place] for x in (self.inputs, self.targets))
        return Batch(inputs, targets, self.count)

    @staticmethod
    def stack(batches: Sequence[Batch]) -> Batch:
        """Return the batches of stacked runs as one, with an axis of runs in front.

        Nothing is copied where all runs have the same batch.
        """
        first = batches[0]
        if first.inputs is None or first.targets is None:
            return first
        if all(batch is first for batch in batches):
            inputs, targets = (
                x.expand(len(batches), *x.shape) for x in (first.inputs, first.targets)
            )
        else:
            inputs = torch.stack([b.inputs for b in batches if b.inputs is not None])
            targets = torch.stack([b.targets for b in batches if b.targets is not None])
        return Batch(inputs, targets, first.count)

    def split(self, parts: int, run_axes: int = 0) -> list[Batch]:
        """Return micro-batches, behind the axes of stacked runs.

        A batch without data is not split.
        """
        if parts == 1 or self.inputs is None or self.targets is None:
            return [self]
        pairs = zip(
            self.inputs.chunk(parts, run_axes), self.targets.chunk(parts, run_axes), strict=True
        )
        return [Batch(inputs, targets, inputs.shape[run_axes]) for inputs, targets in pairs]


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on a device, without waiting for the copy.

    From pinned memory the copy takes its place in the device's queue, behind the step before.
    """
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
