"""ScaledQuantizer: a weight quantizer whose scale follows from a scale rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qbench.quant.grid import Grid
from qbench.quant.levels import LevelKind
from qbench.quant.quantizer import Quantizer
from qbench.quant.scale_rules import (
    MIN_SCALE,
    TrainedScaleRule,
    absmax_scale,
    best_fraction,
    searched_scale,
)
from qbench.quant.site import Site
from qbench.quant.straight_through import straight_through


class ScaledQuantizer(Quantizer):
    """A weight whose scale follows from its live elements by a rule.

    A subclass writes `relax`, the rule by which the weight is trained.
    """

    curvature: Tensor
    """Diagonal of the Hessian, by which the rule `hessian` weights rounding errors."""
    fraction: Tensor
    """The searched scale, as a fraction of the absmax scale."""
    size: nn.Parameter
    """The scale where it is learned."""

    def __init__(self, site: Site, rule: TrainedScaleRule, kind: LevelKind = "symmetric") -> None:
        super().__init__(site)
        self.rule, self.levels, self.calibrated = rule, site.levels(kind), False
        if rule == "learned":
            self.size = nn.Parameter(torch.ones(site.scale_shape))
        if self.is_searched:
            self.register_buffer("fraction", torch.ones(site.scale_shape))
        if self.needs_curvature:
            self.register_buffer("curvature", torch.ones(site.shape))

    @property
    def is_searched(self) -> bool:
        """Whether the rule searches the scale."""
        return self.rule in ("mse", "hessian")

    @property
    def needs_curvature(self) -> bool:
        """Whether the search needs the diagonal of the Hessian."""
        return self.rule == "hessian"

    @property
    def may_clip(self) -> bool:
        """Whether some codes may be clipped: under absmax only those of two levels."""
        return self.rule != "absmax" or self.levels.is_binary

    @torch.no_grad()
    def calibrate(self, x: Tensor, first: bool) -> None:
        """Search the fraction of absmax anew. It then stays until the next call.

        A learned scale is initialised once, at the first call, and moves by gradient from then on.
        """
        if self.rule == "learned" and not self.calibrated:
            self.size.copy_(searched_scale(x, self.site, self.levels))
        elif self.is_searched:
            self.fraction.copy_(self.search(x))
        self.calibrated = True

    def search(self, x: Tensor) -> Tensor:
        """Return the fraction of the absmax scale with the least (weighted) rounding error."""
        weight = self.curvature if self.needs_curvature else None
        return best_fraction(x, self.site, self.levels, weight)

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        if self.rule == "learned":
            if self.calibrated:
                scale = self.size.abs().clamp(min=MIN_SCALE)
            else:
                scale = searched_scale(x, self.site, self.levels)
        else:
            scale = absmax_scale(x, self.site, self.levels)
            if self.is_searched:
                # A quantizer that was never calibrated searches whenever it is asked.
                scale = scale * (self.fraction if self.calibrated else self.search(x))
        return Grid(self.levels, self.site.grouping, scale)

    def straight_through_scaled(
        self, x: Tensor, grid: Grid, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return `value` with the gradient of `x` where `mask` holds.

        A scale that is learned gets LSQ's gradient beside it.
        """
        if self.rule != "learned":
            return straight_through(x, value, mask)
        group = self.site.grouping.group
        with torch.no_grad():
            v = grid.encode(x)
            inside = (v > self.levels.low) & (v < self.levels.high)
            size = self.levels.per_run_number(lambda levels: (v.shape[-1] * levels.high) ** -0.5)
            slope = (group(value) / grid.scale - torch.where(inside, v, 0.0)) * size
        source = x if mask is None else torch.where(mask, x, x.detach())
        return straight_through((group(source) + slope * self.size.abs()).reshape(x.shape), value)
