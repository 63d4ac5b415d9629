"""The default quantizer of a layer input: one calibrated scale."""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.quant.grid import Grid
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale_rules import absmax_scale
from qbench.quant.site import Site
from qbench.quant.straight_through import straight_through


class InputRange(Quantizer):
    """A layer's input where the method has no rule of its own: one scale for the tensor, absmax over the calibration batches, straight-through.

    Unsigned codes where the input cannot be negative. `reset` widens the range; `run.calibrate` begins a new one.
    """

    size: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.levels = site.levels("symmetric")
        self.register_buffer("size", torch.zeros(1, 1))

    def forget(self) -> None:
        self.size.zero_()

    def reset(self, x: Tensor) -> None:
        x = x.detach()
        seen = x.flatten(-2).any(-1)[..., None, None]
        scale = torch.where(
            seen, absmax_scale(x, self.site, self.levels), 0.0
        )  # a batch of zeros has no say
        self.size.copy_(torch.maximum(self.size, scale))

    def grid(self, x: Tensor) -> Grid:
        return Grid(self.levels, self.site.grouping, torch.where(self.size > 0, self.size, 1.0))

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value, inside = grid.snap(x), grid.inside(x)
        return straight_through(x, value, inside)
