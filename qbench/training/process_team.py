"""One run on several processes: each takes its part of every batch, and all take the same step.

The batch of a step is cut into slices, one a process, in the order of its samples; a slice is cut into micro-batches as a whole batch is. What the
network's backward leaves, in parameters and in the quantized weights, is summed over the processes before it goes through the quantizers:
a gradient rule that is not linear sees the gradient of the whole batch, as in one process. From there on every process does the
same with the same numbers. Draws are functions of seed, site, step and a sample's place in the whole batch, so there is nothing else to share.

Two processes add the same two numbers that one process with two micro-batches adds, so that on the CPU the two agree bit for bit. With
more of them the sum is taken in another order, in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.api.batch import Batch
    from qbench.training.run import Run

__all__ = ["Team", "current"]


AT_ONCE = 1 << 24
"""Elements that are summed in one go: 64 MiB of float32."""


@dataclass(frozen=True)
class Team:
    """The processes that train one run, and this one's place among them."""

    rank: int
    size: int
    divided: bool = False
    """Whether they divide the parameters and the optimizer's state among them, too."""

    def parts(self, batch: Batch, count: int) -> Iterator[tuple[int, Batch]]:
        """This process's slice in micro-batches, as many in every process, each with the number of its first sample."""
        slices = cut(batch, self.size)
        first = sum(part.count for part in slices[: self.rank])
        parts = cut(slices[self.rank], min(count, batch.count // self.size))
        return zip(
            itertools.accumulate((part.count for part in parts), initial=first), parts, strict=False
        )

    def total(self, x: Tensor) -> Tensor:
        """The sum over the processes."""
        found = x.detach().clone()
        dist.all_reduce(found)
        return found

    def agree(self, wanted: bool) -> bool:
        """What the first process wants, where all must do it together."""
        if not self.divided:
            return wanted
        word = torch.tensor(
            [wanted], dtype=torch.uint8
        )  # on the CPU, so that no step waits for the device
        dist.broadcast(word, 0)
        return bool(word)

    def check(self, run: Run) -> None:
        """That all processes still train one network: a method that keeps what only its own slice told it lets them drift apart."""
        sums = torch.stack([_fingerprint(x) for x in _state(run)])
        least, most = sums.clone(), sums.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise QbenchError(
                f"method {run.method.name}: the {self.size} processes of the run have drifted apart by step {run.step + 1}: "
                "what it gathers from its batches must go through run.everywhere"
            )


def cut(batch: Batch, parts: int) -> list[Batch]:
    """Slices of a batch, of sizes that differ by one at most."""
    assert batch.inputs is not None and batch.targets is not None and parts <= batch.count
    pairs = zip(batch.inputs.tensor_split(parts), batch.targets.tensor_split(parts), strict=True)
    return [
        replace(batch, inputs=inputs, targets=targets, count=len(inputs))
        for inputs, targets in pairs
    ]


def current(divided: bool = False) -> Team | None:
    """The team that this process belongs to; None where it trains alone."""
    return (
        Team(dist.get_rank(), dist.get_world_size(), divided)
        if dist.is_available() and dist.is_initialized()
        else None
    )


@torch.no_grad()
def sum_in_place(tensors: list[Tensor]) -> None:
    """In a few large pieces: a message has a price of its own."""
    for piece in _pieces(tensors):
        flat = torch.cat([x.reshape(-1) for x in piece])
        dist.all_reduce(flat)
        for x, found in zip(piece, flat.split([x.numel() for x in piece]), strict=True):
            x.copy_(found.view(x.shape))


def _pieces(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type side by side, up to a size; a larger one goes alone."""
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        piece, size = list[Tensor](), 0
        for x in (x for x in tensors if x.dtype == dtype):
            if piece and size + x.numel() > AT_ONCE:
                yield piece
                piece, size = [], 0
            piece.append(x)
            size += x.numel()
        yield piece


def _state(run: Run) -> Iterator[Tensor]:
    """Whatever must be the same everywhere: parameters and buffers, but for those of which each process holds a part."""
    modules: list[nn.Module] = [
        *run.quantizers(),
        *([] if run.team and run.team.divided else [run.model]),
    ]
    for module in modules:
        yield from (x.detach() for x in (*module.parameters(), *module.buffers()))
    yield run.clock
    yield from _tensors(run.method.state_dict(), run.clock.device)


def _tensors(state: Any, device: torch.device) -> Iterator[Tensor]:
    """The numbers that a method keeps beside its quantizers'."""
    if isinstance(state, Tensor):
        yield state.detach().to(device)
    elif isinstance(state, bool | int | float):
        yield torch.tensor(float(state), dtype=torch.float64, device=device)
    elif isinstance(state, Mapping):
        for part in state.values():
            yield from _tensors(part, device)


def _fingerprint(x: Tensor) -> Tensor:
    """The sum of the bits, which NaN does not hide from."""
    bits = x.contiguous().view(torch.uint8) if x.dim() else x.reshape(1).view(torch.uint8)
    return bits.sum(dtype=torch.int64)
