"""One forward and backward pass, in micro-batches or as one compiled graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from qbench.api.batch import Batch
from qbench.quant.quantizer import Quantizer
from qbench.training.process_team import sum_in_place

if TYPE_CHECKING:
    from qbench.training.run import Run

__all__ = ["add_up", "take_gradients"]


def take_gradients(run: Run) -> list[Tensor | None]:
    """Lay aside the gradients that are there, which are sums over all processes already."""
    if run.team is None:
        return []
    before = [p.grad for p in run.parameters]
    for p in run.parameters:
        p.grad = None
    return before


def add_up(run: Run, before: Iterable[Tensor | None], terms: dict[str, Tensor]) -> None:
    """Sum over all processes the gradients that the network's backward has left, and the terms; then put back what was laid aside."""
    if run.team is None:
        return
    leaves = [
        layer.used.grad
        for bundle in run.bundles
        for layer in bundle.layers
        if layer.used is not None and layer.used.is_leaf
    ]
    own = [] if run.team.divided else [p.grad for p in run.parameters]
    sum_in_place([x for x in (*own, *leaves, *terms.values()) if x is not None])
    for p, earlier in zip(run.parameters, before, strict=True):
        if earlier is not None:
            p.grad = earlier if p.grad is None else earlier + p.grad


def _numbered(parts: list[Batch]) -> Iterator[tuple[int, Batch]]:
    """Parts of a batch, each with the number of its first sample."""
    counts = [part.count for part in parts]
    return zip(itertools.accumulate(counts, initial=0), parts, strict=False)


def _keep(quantizer: Quantizer, made: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def keep(x: Tensor) -> Tensor:
        made[name] = quantizer(x)
        return made[name]

    return keep
