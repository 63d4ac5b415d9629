"""InputQuantizer: the quantizer of a layer's input for methods that have no rule of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.quant.grid import Grid
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale_rules import absmax_scale
from qbench.quant.site import Site
from qbench.quant.straight_through import straight_through


class InputQuantizer(Quantizer):
    """One scale for a layer's input, absmax over the calibration batches, straight-through.

    Codes are unsigned where the input cannot be negative.
    """

    size: Tensor
    """The scale; 0 until an element that is not zero was seen."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.levels = site.levels("symmetric")
        self.register_buffer("size", torch.zeros(1, 1))

    def calibrate(self, x: Tensor, first: bool) -> None:
        """Widen the range to what `x` needs."""
        if first:
            self.size.zero_()
        x = x.detach()
        # absmax_scale returns 1 for a batch of zeros, which must not count.
        is_nonzero = x.flatten(-2).any(-1)[..., None, None]
        scale = torch.where(is_nonzero, absmax_scale(x, self.site, self.levels), 0.0)
        self.size.copy_(torch.maximum(self.size, scale))

    def grid(self, x: Tensor) -> Grid:
        return Grid(self.levels, self.site.grouping, torch.where(self.size > 0, self.size, 1.0))

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value, mask = grid.snap(x), grid.needs_no_clipping(x)
        return straight_through(x, value, mask)
