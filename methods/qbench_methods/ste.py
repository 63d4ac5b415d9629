"""Straight-through estimator. Bengio, Léonard & Courville 2013, arXiv 1308.3432; fake
quantization, Jacob et al. 2018.

    forward     ŵ = s · clip(round(w/s)),  s from the latent weights by a scale rule, detached
    backward    the identity where the rounded code needed no clipping, 0 elsewhere

The mask is decided by the rounded code and not by |w/s| ≤ q_max: in float32 that test masks the
largest element of one int4 group in twelve. Under absmax no code of more than two levels is ever
clipped, so no mask is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.api import (
    InputQuantizer,
    Method,
    Quantizer,
    Run,
    ScaledQuantizer,
    Site,
    TrainedScaleRule,
    absmax_scale,
    is_tenth,
    straight_through,
)


@dataclass
class STE(Method):
    """Round in the forward pass; pass the gradient through unchanged in the backward pass."""

    name = "ste"
    title = "Straight-through estimator"
    paper = "arXiv 1308.3432"

    scale: TrainedScaleRule = "absmax"
    clip_gradient: bool = False
    """Pass the gradient through everywhere, also where a code was clipped."""
    scale_gradient: bool = False
    """Differentiate through the scale as well."""

    def check(self) -> str | None:
        if self.scale_gradient and self.scale != "absmax":
            return (
                f"scale_gradient needs the scale rule absmax, not {self.scale}: a searched scale "
                "has no gradient, and a learned one has its own"
            )
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return InputQuantizer(site) if site.role == "activation" else STEWeight(site, self)

    def recalibrates(self, run: Run) -> bool:
        return is_tenth(run)


class STEWeight(ScaledQuantizer):
    def __init__(self, site: Site, method: STE) -> None:
        super().__init__(site, method.scale)
        self.scale_gradient = method.scale_gradient
        self.masks = self.may_clip and not method.clip_gradient

    def relax(self, x: Tensor) -> Tensor:
        grid, group = self.grid(x), self.site.grouping.group
        with torch.no_grad():
            value = grid.snap(x)
            mask = grid.needs_no_clipping(x) if self.masks else None
        if not self.scale_gradient:
            return self.straight_through_scaled(x, grid, value, mask)
        scale = absmax_scale(x, self.site, self.levels)
        inside = None if mask is None else group(mask)
        code = straight_through(group(x) / scale, group(value) / grid.scale, inside)
        return (code * scale).reshape(x.shape)
