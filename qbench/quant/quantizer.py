"""Quantizer: what a method makes for a site. Quantized layers: where a network keeps one.

A quantizer sees its tensor as `(…, rows, columns)`: a weight as outputs × inputs, a layer's input as samples × features.
Axes in front are sites of one shape or runs of one kind, quantized side by side; it reduces over the last two only,
so that one call serves them all and each gets the same bits as alone.

Weights are quantized once a step, not once a forward pass: `Bundle.refresh` stacks the sites of one shape, calls the quantizer,
and hands each layer its part as a leaf of the graph. The network's backward leaves a gradient there, and `Bundle.pull_back`
sends it through the quantizer to the weights. Several micro-batches, probes of the discretised weights and
second passes over one batch all find the same leaves. Only where a step is compiled as one graph are there none (`hand_out`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from qbench.numerics.batched_math import by_run
from qbench.numerics.keyed_random import key_of, uniform
from qbench.quant.grid import Grid, widen
from qbench.quant.site import Site


class Quantizer(nn.Module):
    """The levels of one site and the rule by which a network is trained on them."""

    key: Tensor
    step: Tensor
    part: Tensor
    """Of the batch that an input belongs to: its first sample and how many there are."""
    lead = 0
    """Axes in front of all: one where runs train side by side."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        lead = site.shape[:-2] if site.role == "weight" else ()
        self.register_buffer("key", torch.zeros(*lead, 1, 1, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("part", torch.tensor([0, 1]), persistent=False)

    def reset(self, x: Tensor) -> None:
        """First look at the tensor: initialise learned ranges. An input is shown several batches, one call each."""

    def forget(self) -> None:
        """Before a new round of `reset`: drop what earlier ones gathered."""

    def grid(self, x: Tensor) -> Grid:
        """The levels `x` would ship on now."""
        raise NotImplementedError

    def relax(self, x: Tensor) -> Tensor:
        """What the network computes with while training; the gradient rule lives here."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        if "forward" in cls.__dict__:
            raise TypeError(
                f"{cls.__name__} overrides forward; write relax (training) and grid (shipping) instead"
            )

    def forward(self, x: Tensor) -> Tensor:
        x = widen(x)
        return self.relax(x) if self.training else self.grid(x).snap(x)

    @final
    def draw(self, x: Tensor, stream: int = 0) -> Tensor:
        """Uniform numbers in [0, 1) of the shape of `x`: a function of the run's seed, the site, the step and the stream.

        Those of an input belong to its samples, whatever parts a batch is computed in."""
        first = self.part[0] * (x.shape[-2] // self.part[1])
        return uniform(self.key + stream, self.step, tuple(x.shape), first)

    @final
    def by_run(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """f of each element, for an f that is no plain arithmetic: side by side, a run must get the bits that it has alone."""
        return by_run(f, x, self.lead)

    @final
    def seed(self, seed: int, names: list[str]) -> None:
        """Key the draws by the run's seed and the sites' names."""
        keys = torch.tensor([key_of(seed, name) for name in names], dtype=torch.int64)
        self.key.copy_(keys.view(self.key.shape))
