"""Randomised rounding (RR, also RAT) in the forward pass: the control for LOTION, arXiv 2510.08757.
Reconstructed.

    forward     ŵ = RR(w):  the level above with probability (w − lo)/(hi − lo), else the level
                below; fresh random numbers each step
    backward    the identity where the code nearest to w needs no clipping, 0 elsewhere

Where nothing is clipped E[ŵ] = w, so on a quadratic loss the expected gradient is H(w − w*), that
of full precision: the noise costs accuracy and moves nothing. LOTION differs by the dependence of
the noise's law on w, which the identity drops. Under absmax no code of more than two levels is ever
clipped, so no mask is made. The run is scored on the nearest levels.
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
    is_tenth,
)


@dataclass
class RR(Method):
    """Round at random in the forward pass; let the gradient pass unchanged in the backward pass."""

    name = "rr"
    title = "Randomised rounding"
    provenance = "reconstructed"

    scale: TrainedScaleRule = "absmax"

    def quantizer(self, site: Site) -> Quantizer:
        if site.role == "activation":
            return InputQuantizer(site)
        return RandomRounding(site, self.scale)

    def recalibrates(self, run: Run) -> bool:
        return is_tenth(run)


class RandomRounding(ScaledQuantizer):
    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value = grid.snap_randomly(x, self.random(x))
            mask = grid.needs_no_clipping(x) if self.may_clip else None
        return self.straight_through_scaled(x, grid, value, mask)
