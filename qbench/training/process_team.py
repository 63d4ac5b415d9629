"""ProcessTeam: one run in several processes, each of which takes its part of every batch.

The batch of a step is cut into slices, one a process, in the order of its samples. A slice is cut
into micro-batches as a whole batch is. What the network's backward pass leaves, in parameters and
in quantized weights, is summed over the processes before it goes through the quantizers: a gradient
rule that is not linear sees the gradient of the whole batch, as in one process. From there on every
process does the same with the same numbers. Random numbers are functions of seed, site, step and a
sample's place in the whole batch, so there is nothing else to share.

Two processes add the same two numbers that one process with two micro-batches adds, so on the CPU
the two agree bit for bit. More processes take the sum in another order, in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.api.batch import Batch
    from qbench.training.run import TrainingRun

MESSAGE_ELEMENTS = 1 << 24
"""Elements that are summed in one message: 64 MiB of float32."""


@dataclass(frozen=True)
class ProcessTeam:
    """The processes that train one run, and the place of this one among them."""

    rank: int
    size: int

    def parts(self, batch: Batch, count: int) -> Iterator[tuple[int, Batch]]:
        """Yield this process's slice in micro-batches, each with the number of its first sample.

        The number of micro-batches is the same in every process, even where the slices differ by
        one sample: each micro-batch is followed by the same collective operations.
        """
        slices = cut_batch(batch, self.size)
        first = sum(part.count for part in slices[: self.rank])
        parts = cut_batch(slices[self.rank], min(count, batch.count // self.size))
        first_samples = itertools.accumulate((part.count for part in parts), initial=first)
        return zip(first_samples, parts, strict=False)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of `x` over the processes."""
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def check_agreement(self, run: TrainingRun) -> None:
        """Check that all processes still train the same network.

        Raises:
            QbenchError: They do not: the method keeps something that only its own slice told it.
        """
        sums = torch.stack([_sum_bytes(x.to(run.network.device)) for x in run.tensors_to_agree()])
        least, most = sums.clone(), sums.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise QbenchError(
                f"method {run.method.name}: the {self.size} processes of the run have drifted "
                f"apart by step {run.step + 1}: what it gathers from its batches must go "
                "through run.sum_over_processes"
            )


def cut_batch(batch: Batch, parts: int) -> list[Batch]:
    """Return slices of a batch, of sizes that differ by one at most."""
    assert batch.inputs is not None and batch.targets is not None and parts <= batch.count
    pairs = zip(batch.inputs.tensor_split(parts), batch.targets.tensor_split(parts), strict=True)
    return [
        replace(batch, inputs=inputs, targets=targets, count=len(inputs))
        for inputs, targets in pairs
    ]


def current_team() -> ProcessTeam | None:
    """Return the team that this process belongs to, or None where it trains alone."""
    if dist.is_available() and dist.is_initialized():
        return ProcessTeam(dist.get_rank(), dist.get_world_size())
    return None


@torch.no_grad()
def sum_in_place(tensors: list[Tensor]) -> None:
    """Sum tensors over the processes, in a few large messages: each message has a price."""
    for group in _group_for_messages(tensors):
        flat = torch.cat([x.reshape(-1) for x in group])
        dist.all_reduce(flat)
        for x, total in zip(group, flat.split([x.numel() for x in group]), strict=True):
            x.copy_(total.view(x.shape))


def _group_for_messages(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one type together, up to the size of a message; a larger one goes alone."""
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        group, size = list[Tensor](), 0
        for x in (x for x in tensors if x.dtype == dtype):
            if group and size + x.numel() > MESSAGE_ELEMENTS:
                yield group
                group, size = [], 0
            group.append(x)
            size += x.numel()
        yield group


def _sum_bytes(x: Tensor) -> Tensor:
    """Return the sum of a tensor's bytes, from which NaN cannot hide as it does from `==`."""
    bits = x.contiguous().view(torch.uint8) if x.dim() else x.reshape(1).view(torch.uint8)
    return bits.sum(dtype=torch.int64)
