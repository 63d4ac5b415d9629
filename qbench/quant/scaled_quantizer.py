"""A weight quantizer whose scale follows a rule; methods add the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qbench.quant.grid import Grid
from qbench.quant.levels import LevelKind
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale_rules import SMALLEST, absmax_scale, best_fraction, searched_scale
from qbench.quant.site import Site
from qbench.quant.straight_through import straight_through

if TYPE_CHECKING:
    from qbench.quant.scale_rules import TrainedScaleRule


class ScaledQuantizer(Quantizer):
    """A weight whose scale follows from its live elements by a rule. What remains to be said is how it is trained."""

    curvature: Tensor
    fraction: Tensor
    size: nn.Parameter
    """The scale where it is learned."""

    def __init__(self, site: Site, rule: TrainedScaleRule, kind: LevelKind = "symmetric") -> None:
        super().__init__(site)
        self.rule, self.levels, self.settled = rule, site.levels(kind), False
        if rule == "learned":
            self.size = nn.Parameter(torch.ones(site.scale_shape))
        if rule in ("mse", "hessian"):
            self.register_buffer("fraction", torch.ones(site.scale_shape))
        if rule == "hessian":
            self.register_buffer("curvature", torch.ones(site.shape))

    @torch.no_grad()
    def reset(self, x: Tensor) -> None:
        """Search the fraction of absmax anew, which then stays until the next call; a learned scale starts, once. A quantizer that
        never was reset searches whenever it is asked."""
        if self.rule == "learned" and not self.settled:
            self.size.copy_(searched_scale(x, self.site, self.levels))
        elif self.searches:
            self.fraction.copy_(self.search(x))
        self.settled = True

    @property
    def searches(self) -> bool:
        return self.rule in ("mse", "hessian")

    def search(self, x: Tensor) -> Tensor:
        return best_fraction(
            x, self.site, self.levels, self.curvature if self.rule == "hessian" else None
        )

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        if self.rule == "learned":
            scale = (
                self.size.abs().clamp(min=SMALLEST)
                if self.settled
                else searched_scale(x, self.site, self.levels)
            )
        else:
            scale = absmax_scale(x, self.site, self.levels)
            if self.searches:
                scale = scale * (self.fraction if self.settled else self.search(x))
        return Grid(self.levels, self.site.grouping, scale)

    def straight(self, x: Tensor, grid: Grid, value: Tensor, mask: Tensor | None) -> Tensor:
        """`value` with the gradient of `x` where the mask holds, and with LSQ's gradient of a scale that is learned."""
        if self.rule != "learned":
            return straight_through(x, value, mask)
        group = self.site.grouping.group
        with torch.no_grad():
            v = grid.encode(x)
            inside = (v > self.levels.low) & (v < self.levels.high)
            size = self.levels.number(lambda levels: (v.shape[-1] * levels.high) ** -0.5)
            slope = (group(value) / grid.scale - torch.where(inside, v, 0.0)) * size
        source = x if mask is None else torch.where(mask, x, x.detach())
        return straight_through((group(source) + slope * self.size.abs()).reshape(x.shape), value)
