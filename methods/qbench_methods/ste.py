"""Straight-through estimator. Bengio, Léonard & Courville 2013, arXiv 1308.3432; fake quantization, Jacob et al. 2018.

    forward     ŵ = s · clip(round(w/s)),  s from the live weights by a scale rule, detached
    backward    the identity where the rounded code needed no clipping, 0 elsewhere

The mask is decided by the rounded code and not by |w/s| ≤ q_max: in float32 that test masks the largest element of one
int4 group in twelve. Under absmax no code of more than two levels is ever clipped, so no mask is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.api import (
    Batch,
    InputRange,
    Method,
    Quantizer,
    ScaledQuantizer,
    Site,
    TrainedScaleRule,
    absmax_scale,
    straight_through,
)
from qbench.training.calibration import settle, settle_now_and_then, undivided
from qbench.training.run import Run


@dataclass
class STE(Method):
    """Round in the forward pass; in the backward pass pretend that nothing happened."""

    name = "ste"
    title = "Straight-through estimator"
    paper = "arXiv 1308.3432"
    knobs = ("scale",)
    varies = ("format",)
    compiled_alike = True

    scale: TrainedScaleRule = "absmax"
    clip_gradient: bool = False
    """The identity everywhere, also where a code was clipped."""
    scale_gradient: bool = False
    """Differentiate through the scale as well."""

    def check(self) -> str | None:
        if self.scale_gradient and self.scale != "absmax":
            return f"scale_gradient needs the scale rule absmax: a searched one has no gradient, a learned one its own; not {self.scale}"
        return None

    def alone(self) -> None:
        return None

    def unrecorded(self) -> None:
        return None

    def undivided(self) -> str | None:
        return undivided(self.name, self.scale)

    def quantizer(self, site: Site) -> Quantizer:
        return InputRange(site) if site.role == "activation" else STEWeight(site, self)

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        settle(run, batches)

    def before_step(self, run: Run, batch: Batch) -> None:
        settle_now_and_then(run)

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        self.prepare(run, batches)


class STEWeight(ScaledQuantizer):
    def __init__(self, site: Site, method: STE) -> None:
        super().__init__(site, method.scale)
        self.scale_gradient = method.scale_gradient
        self.masks = not method.clip_gradient and (method.scale != "absmax" or self.levels.two)

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value = grid.snap(x)
            mask = grid.inside(x) if self.masks else None
        if not self.scale_gradient:
            return self.straight(x, grid, value, mask)
        scale = absmax_scale(x, self.site, self.levels)
        z = self.site.grouping.group(x) / scale
        inside = None if mask is None else self.site.grouping.group(mask)
        return (
            straight_through(z, self.site.grouping.group(value) / grid.scale, inside) * scale
        ).reshape(x.shape)
